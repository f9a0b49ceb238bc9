"""One RPC while it runs: who called, until when, what it did so far, and how to write to it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from tokenwire_service.errors import ShedError, TokenwireError
from tokenwire_service.observability.telemetry import RequestTelemetry
from tokenwire_service.rpc.driven import Driver

REQUEST_ID_KEY = "x-request-id"
INSTANCE_KEY = "x-tokenwire-instance"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
access_log = logging.getLogger("tokenwire_service.access")

Context = grpc.aio.ServicerContext[Any, Any]


def text_metadata(pairs: Any) -> dict[str, str]:
    """The call's text metadata; of a repeated key the last value."""
    return {key: value for key, value in pairs or () if isinstance(value, str)}


def request_id_of(metadata: Mapping[str, str]) -> str:
    """The caller's x-request-id when it is at most 128 visible ASCII characters, else a new one."""
    given = metadata.get(REQUEST_ID_KEY, "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


@dataclass(slots=True)
class CallRecord:
    """What the access log tells about a call besides its end."""

    response_id: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_time_s: float | None = None
    first_token_time_s: float | None = None
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class ReaderGoneError(Exception):
    """The other end vanished while a message was being written."""


def write_error(error: BaseException) -> BaseException:
    """What a write is said to have raised when gRPC raised `error`."""
    return ReaderGoneError() if isinstance(error, grpc.aio.BaseError) else error


class Call:
    """Made by the endpoint for each RPC; handlers see this and never the gRPC context."""

    def __init__(
        self,
        context: Context,
        method: str,
        request_id: str,
        telemetry: RequestTelemetry,
        *,
        endless: bool,
        instance_id: str,
        write_stall_timeout_s: float,
    ) -> None:
        self.method = method
        self.telemetry = telemetry
        self.endless = endless
        self.record = CallRecord()
        self.request_id = request_id
        self.arrival_time = time.monotonic()
        self.create_time = time.time()
        remaining = context.time_remaining()
        self.deadline: float | None = None if remaining is None else self.arrival_time + remaining
        """On the monotonic clock; None when the caller set none."""
        self._context = context
        self._instance_id = instance_id
        self._write_stall_timeout_s = write_stall_timeout_s
        self._accepted = False
        self._writing_since: float | None = None
        self._begun_at = 0.0
        self._stall_check: asyncio.TimerHandle | None = None
        self.writer = Driver()
        """Of writes begun by `begin_write`."""
        self._task = asyncio.current_task()
        self.ended_by: TokenwireError | None = None
        """Set when the server ended this call from outside."""

    def end(self, error: TokenwireError) -> None:
        """End the call from outside with `error`, wherever it is; the first one wins."""
        if self.ended_by is None and self._task is not None:
            self.ended_by = error
            self._task.cancel()

    async def accept(self) -> None:
        """Send initial metadata, which commits the call: clients no longer retry it by themselves. Idempotent."""
        if self._accepted:
            return
        self._accepted = True
        await self._context.send_initial_metadata(
            ((REQUEST_ID_KEY, self.request_id), (INSTANCE_KEY, self._instance_id))
        )

    async def write(self, message: bytes) -> None:
        """Write one message of a stream; waits while the reader is behind.

        Raises ReaderGoneError when the reader is gone. When it took nothing for the stall timeout, the call is ended
        with a ShedError.
        """
        if not self._accepted:
            await self._begin_writing()
        self._writing_since = time.monotonic()
        try:
            await self._context.write(message)
        except grpc.aio.BaseError as error:
            raise write_error(error) from None
        finally:
            self._writing_since = None

    def begin_write(self, message: bytes, now: float) -> bool:
        """Begin to write one message of a stream that was written to before; whether that was all.

        Else `writer` tells when it is, before the next may begin. `now`: monotonic seconds, a moment ago. Raises what
        gRPC raises, as `writer` does: see `write_error`.
        """
        self._begun_at = now
        return self.writer.start(self._context.write(message))

    async def _begin_writing(self) -> None:
        self._check_stall()
        self._writing_since = time.monotonic()
        try:
            await self.accept()
        except grpc.aio.BaseError:
            raise ReaderGoneError from None
        finally:
            self._writing_since = None

    def _check_stall(self) -> None:
        """Look for a write that takes too long. A timer for each write would cost as much as the write itself."""
        timeout_s = self._write_stall_timeout_s
        since = self._begun_at if self.writer.waits else self._writing_since
        left_s = timeout_s / 4 if since is None else since + timeout_s - time.monotonic()
        if left_s > 0:
            self._stall_check = asyncio.get_running_loop().call_later(left_s, self._check_stall)
            return
        self._stall_check = None
        self.end(
            ShedError(f"the reader took nothing for {timeout_s:g} s; read the stream as it comes", retry_after_s=0.0)
        )

    def close(self) -> None:
        """Nothing is written any more."""
        if self._stall_check is not None:
            self._stall_check.cancel()
            self._stall_check = None

    def log_end(self, code: str, reason: str) -> None:
        """The one access-log line and the end of the call's telemetry."""
        self.telemetry.ended(code, reason)
        record, total_s = self.record, time.monotonic() - self.arrival_time
        facts: dict[str, object] = {
            "method": self.method,
            "code": code,
            "reason": reason,
            "request_id": self.request_id,
            "response_id": record.response_id,
            "prompt_tokens": record.prompt_tokens or None,
            "completion_tokens": record.completion_tokens or None,
            "queue_ms": _milliseconds(record.queue_time_s),
            "first_token_ms": _milliseconds(record.first_token_time_s),
            "total_ms": _milliseconds(total_s),
            # What callers chose is shown as JSON, so that it cannot pass for anything else on the line.
            "user": json.dumps(record.user) if record.user else None,
            "labels": json.dumps(dict(record.labels)) if record.labels else None,
        }
        access_log.info("rpc", extra={key: value for key, value in facts.items() if value not in ("", None)})


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
