"""How much may be under way at once: requests in flight, prompt tokens waiting for a place in the batch."""

from __future__ import annotations

import time
from types import TracebackType

from tokenwire_service.errors import QueueFullError

MIN_RETRY_S, MAX_RETRY_S = 0.1, 30.0
_SMOOTHING = 0.2


class Admission:
    """Counts what is in flight and refuses what would be too much. One event loop owns it."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._mean_time_s = 1.0
        self.in_flight = 0
        """Requests at the door: being read, waiting, or running."""
        self.waiting_tokens = 0
        """Prompt tokens of requests that have no place in the batch yet."""

    def enter(self, max_waiting_tokens: int) -> Ticket:
        """Take one request in; use the ticket as a context manager. Raises QueueFullError."""
        if self.in_flight >= self._max_requests:
            raise QueueFullError(
                f"{self.in_flight} requests are in flight, as many as this server takes; retry later",
                retry_after_s=self.retry_after_s(),
            )
        return Ticket(self, max_waiting_tokens)

    def retry_after_s(self) -> float:
        """When a place should be free: the mean time of a request over the number that run side by side."""
        return min(max(self._mean_time_s / self._max_requests, MIN_RETRY_S), MAX_RETRY_S)

    def left(self, seconds: float | None) -> None:
        """A request is gone; `seconds` is how long it took when it ended well."""
        self.in_flight -= 1
        if seconds is not None:
            self._mean_time_s += _SMOOTHING * (seconds - self._mean_time_s)


class Ticket:
    """One request's place at the door; leaving it frees what it counted for."""

    def __init__(self, admission: Admission, max_waiting_tokens: int) -> None:
        self._admission = admission
        self._max_waiting_tokens = max_waiting_tokens
        self._waiting_tokens = 0
        self._entered = time.monotonic()

    def __enter__(self) -> Ticket:
        self._admission.in_flight += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.placed()
        self._admission.left(time.monotonic() - self._entered if error is None else None)

    def queue(self, prompt_tokens: int) -> None:
        """Its tokens begin to wait. Raises QueueFullError when too many would; a request alone always may."""
        waiting = self._admission.waiting_tokens
        if waiting and waiting + prompt_tokens > self._max_waiting_tokens:
            raise QueueFullError(
                f"{waiting} prompt tokens are waiting and at most {self._max_waiting_tokens} may; retry later",
                retry_after_s=self._admission.retry_after_s(),
            )
        self._waiting_tokens = prompt_tokens
        self._admission.waiting_tokens += prompt_tokens

    def placed(self) -> None:
        """It got its place in the batch: its tokens wait no more. Idempotent."""
        self._admission.waiting_tokens -= self._waiting_tokens
        self._waiting_tokens = 0
