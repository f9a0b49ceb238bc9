"""Readiness by grpc.health.v1, apart from its I/O."""

from __future__ import annotations

import time
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenwire_client.errors import Cancelled, DeadlineExceeded, NotFound, TokenwireError, Unavailable
from tokenwire_client.options import CallOptions

# Serving when the model is loaded and the engine alive.
GENERATION = "tokenwire.v1.TextGenerationService"
# Answers to a check that mean no.
NOT_SERVING = (Unavailable, NotFound, DeadlineExceeded)

_PAUSE_S = 0.2


def stub(channel: Any) -> Any:
    """The health service of a channel of either of grpc's APIs."""
    return health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]


def check(service: str) -> Any:
    """The request of Check and Watch."""
    return health_pb2.HealthCheckRequest(service=service)


def serving(response: Any) -> bool:
    """Whether an answer says serving."""
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


class Waiting:
    """One wait for readiness: its deadline and what was seen last."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._last = "no answer yet"

    def options(self) -> CallOptions:
        """Options of the next watch. Raises DeadlineExceeded when the time is up."""
        if self._deadline is None:
            return {"timeout": None}
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise self._expired()
        return {"timeout": remaining}

    def saw(self, response: Any) -> bool:
        """Notes an answer; true when it says serving."""
        self._last = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        return serving(response)

    def failed(self, error: TokenwireError, *, closed: bool) -> None:
        """Notes the end of a watch; raises when watching again would not help."""
        if isinstance(error, DeadlineExceeded):
            raise self._expired() from error
        if closed or not isinstance(error, (Unavailable, Cancelled)):
            raise error
        self._last = error.message

    def pause(self) -> float:
        """Seconds before the next watch."""
        return _PAUSE_S

    def _expired(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The server was not ready within {self._timeout:g} s; last seen: {self._last}")
