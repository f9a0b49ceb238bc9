"""From bytes to handler and from exceptions to statuses: what every RPC of ours shares."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Never

import grpc
from google.protobuf.message import Message

from tokenwire_service.errors import EngineFailureError, InvalidParameterError, TokenwireError
from tokenwire_service.observability.telemetry import Telemetry
from tokenwire_service.rpc.call import REQUEST_ID_KEY, Call, Context, ReaderGoneError, request_id_of, text_metadata
from tokenwire_service.rpc.status import to_status
from tokenwire_service.rpc.wire import Malformed, parse

log = logging.getLogger(__name__)
Handler = Callable[[Any, Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: a unary handler returns its response, a streaming one writes to the call."""

    name: str
    request: type[Message]
    response: type[Message]
    handle: Handler
    streams: bool = False
    endless: bool = False
    """Goes on until the caller has enough: a drain does not wait for it."""


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service: its full name and its methods."""

    name: str
    methods: tuple[Method, ...]


class LiveCalls:
    """Opens calls, knows those in flight, and can end them all."""

    def __init__(self, telemetry: Telemetry, instance_id: str, write_stall_timeout_s: float) -> None:
        self._telemetry = telemetry
        self._instance_id = instance_id
        self._write_stall_timeout_s = write_stall_timeout_s
        self._live: set[Call] = set()
        self._changed = asyncio.Event()

    def open(self, context: Context, method: str, model: str = "", *, endless: bool = False) -> Call:
        """A call arrived; pair with `ended`."""
        metadata = text_metadata(context.invocation_metadata())
        request_id = request_id_of(metadata)
        call = Call(
            context,
            method,
            request_id,
            self._telemetry.request(method, model, request_id, metadata),
            endless=endless,
            instance_id=self._instance_id,
            write_stall_timeout_s=self._write_stall_timeout_s,
        )
        self._live.add(call)
        return call

    def ended(self, call: Call, code: str, reason: str) -> None:
        """Nothing is left to do for the call but to send its status, which may have to wait for the reader."""
        call.close()
        call.log_end(code, reason)
        self._live.discard(call)
        self._changed.set()
        self._changed = asyncio.Event()

    async def finished(self) -> None:
        """Wait until no call is in flight that would end by itself."""
        while any(not call.endless for call in self._live):
            await self._changed.wait()

    def end_all(self, error: TokenwireError) -> None:
        """End every call in flight with `error`."""
        for call in tuple(self._live):
            call.end(error)


def generic_handler(service: Service, calls: LiveCalls) -> grpc.GenericRpcHandler:
    """What `add_generic_rpc_handlers` takes."""
    handlers = {
        method.name: _method_handler(f"{service.name}/{method.name}", method, calls) for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.name, handlers)


def _method_handler(full_name: str, method: Method, calls: LiveCalls) -> grpc.RpcMethodHandler[Any, Any]:
    make = grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
    endpoint = _Endpoint(full_name, method, calls)
    return make(
        endpoint.serve,
        request_deserializer=functools.partial(parse, message_class=method.request),
        # A stream's calls write bytes.
        response_serializer=None if method.streams else method.response.SerializeToString,
    )


class _Endpoint:
    def __init__(self, full_name: str, method: Method, calls: LiveCalls) -> None:
        self._full_name = full_name
        self._method = method
        self._calls = calls

    async def serve(self, request: Message | Malformed, context: Context) -> Any:
        """Run the handler. Every way out tells the caller, the log and telemetry the same code and reason."""
        call = self._calls.open(context, self._full_name, getattr(request, "model", ""), endless=self._method.endless)
        try:
            response = await self._respond(request, call)
        except (Exception, asyncio.CancelledError) as raised:
            error = _domain_error(raised, call)
            if error is None:
                self._calls.ended(call, _cancelled_code(call), "")
                raise asyncio.CancelledError from raised
            await refuse(self._calls, call, context, error)
        self._calls.ended(call, "OK", "")
        return response

    async def _respond(self, request: Message | Malformed, call: Call) -> Any:
        if isinstance(request, Malformed):
            raise InvalidParameterError(request.violations)
        response = await self._method.handle(request, call)
        if not self._method.streams:
            await call.accept()
        return response


async def refuse(calls: LiveCalls, call: Call, context: Context, error: TokenwireError) -> Never:
    """End the call with the status of `error`."""
    status = to_status(error, call.request_id)
    calls.ended(call, status.code.name, error.reason)
    try:
        await context.abort(status.code, status.message, ((REQUEST_ID_KEY, call.request_id), *status.trailers))
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as gone:
        raise asyncio.CancelledError from gone


def _domain_error(raised: BaseException, call: Call) -> TokenwireError | None:
    """What the caller is told; None when the caller is gone. Never the text of an exception that is not ours."""
    if isinstance(raised, TokenwireError):
        return raised
    if isinstance(raised, asyncio.CancelledError):
        return call.ended_by
    if isinstance(raised, ReaderGoneError | grpc.aio.BaseError):
        return None
    log.error("%s failed, request_id=%s", call.method, call.request_id, exc_info=raised)
    return EngineFailureError(f"a fault of the server; report it with request id {call.request_id}")


def _cancelled_code(call: Call) -> str:
    late = call.deadline is not None and time.monotonic() >= call.deadline
    return "DEADLINE_EXCEEDED" if late else "CANCELLED"
