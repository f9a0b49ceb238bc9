"""One call, apart from its I/O: its metadata, its deadline, and whether a failure is tried again."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokenwire_client.errors import Overloaded, QueueTimeout, TokenwireError
from tokenwire_client.options import CallOptions, Metadata

# A server that asks for a longer pause than this has its error raised instead.
MAX_RETRY_DELAY_S = 30.0
# The shortest pause before the first retry, whatever the server says; it doubles with each.
MIN_RETRY_DELAY_S = 0.05

Pairs = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class CallDefaults:
    """What a client puts into each of its calls. Metadata given with a call replaces these by key."""

    timeout: float | None
    metadata: Pairs
    max_retries: int

    def begin(self, options: CallOptions) -> Call:
        """A call that starts now."""
        timeout = options.get("timeout", self.timeout)
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout: {timeout} is not greater than 0; None waits without end")
        given = pairs(options.get("metadata"))
        if traceparent := options.get("traceparent"):
            given = (*given, ("traceparent", traceparent))
        keys = {key for key, _ in given}
        metadata = [(key, value) for key, value in self.metadata if key not in keys] + list(given)
        request_id = options.get("request_id") or _request_id(metadata) or uuid.uuid4().hex
        metadata = [(key, value) for key, value in metadata if key != "x-request-id"]
        metadata.append(("x-request-id", request_id))
        return Call(request_id, tuple(metadata), timeout, self.max_retries)


class Call:
    """State of one call over its attempts. Its timeout starts with the first attempt and bounds them all."""

    def __init__(self, request_id: str, metadata: Pairs, timeout: float | None, max_retries: int) -> None:
        self.request_id = request_id
        self._metadata = metadata
        self._timeout = timeout
        self._deadline: float | None = None
        self._retries_left = max_retries
        self._backoff = MIN_RETRY_DELAY_S

    def metadata(self, token: str | None) -> Pairs:
        """Metadata of an attempt, with `token` as bearer unless there is an authorization already."""
        if not token or any(key == "authorization" for key, _ in self._metadata):
            return self._metadata
        return (*self._metadata, ("authorization", f"Bearer {token}"))

    def remaining(self) -> float | None:
        """Seconds the next attempt may take; None for no limit."""
        if self._timeout is None:
            return None
        if self._deadline is None:
            self._deadline = time.monotonic() + self._timeout
        return max(0.0, self._deadline - time.monotonic())

    def retry_delay(self, error: TokenwireError) -> float | None:
        """Seconds to wait before another attempt; None when `error` is final.

        Only an overload for which the server said when to come back is tried again here, and only within the timeout. A
        queue timeout is not: the caller asked for that limit. What is UNAVAILABLE, the channel itself has tried again.
        """
        if self._retries_left == 0 or not isinstance(error, Overloaded) or isinstance(error, QueueTimeout):
            return None
        if error.retry_after is None or error.retry_after > MAX_RETRY_DELAY_S:
            return None
        # Up to a fifth later, so that callers refused together do not come back together.
        delay = max(error.retry_after, self._backoff) * (1 + 0.2 * random.random())
        remaining = self.remaining()
        if remaining is not None and delay >= remaining:
            return None
        self._retries_left -= 1
        self._backoff *= 2
        return delay


def endless(options: CallOptions) -> CallOptions:
    """The options with no timeout where none is given."""
    return {"timeout": None, **options}


def pairs(metadata: Metadata | None) -> Pairs:
    """Metadata as gRPC takes it: keys in lower case."""
    if metadata is None:
        return ()
    items: Iterable[tuple[str, str | bytes]] = metadata.items() if isinstance(metadata, Mapping) else metadata
    return tuple((key.lower(), value) for key, value in items)


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    return next((value for key, value in metadata if key == "x-request-id" and isinstance(value, str)), None)
