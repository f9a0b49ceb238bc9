"""A real grpc.aio server that does what a test tells it to, attempt by attempt, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_status import rpc_status

from tokenwire.v1 import engine_pb2 as engine
from tokenwire.v1 import engine_pb2_grpc as engine_grpc
from tokenwire.v1 import models_pb2 as models
from tokenwire.v1 import models_pb2_grpc as models_grpc
from tokenwire.v1 import text_generation_pb2 as generation
from tokenwire.v1 import text_generation_pb2_grpc as generation_grpc
from tokenwire.v1 import tokenization_pb2 as tokenization
from tokenwire.v1 import tokenization_pb2_grpc as tokenization_grpc

# One attempt's behaviour: yields the messages to send. A unary method sends the only one.
Step = Callable[[Any, aio.ServicerContext], AsyncIterator[Message]]


@dataclass(frozen=True)
class Attempt:
    """One attempt as the server saw it."""

    request: Any
    metadata: dict[str, str | bytes]
    keys: list[str]
    time_remaining: float | None


def respond(*messages: Message) -> Step:
    """Sends these messages and ends well."""

    async def step(_request: Any, _context: aio.ServicerContext) -> AsyncIterator[Message]:
        for message in messages:
            yield message

    return step


def fail(
    code: grpc.StatusCode,
    reason: str = "",
    *,
    after: tuple[Message, ...] = (),
    message: str = "No.",
    metadata: dict[str, str] | None = None,
    retry_after: float | None = None,
    details: tuple[Message, ...] = (),
    domain: str = "tokenwire",
) -> Step:
    """Sends the messages of `after`, then fails with a rich status; without a reason there is no ErrorInfo."""
    packed = list(details)
    if reason:
        packed.append(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    if retry_after is not None:
        delay = Duration(seconds=int(retry_after), nanos=int(retry_after % 1 * 1e9))
        packed.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in packed:
        boxed = any_pb2.Any()
        boxed.Pack(detail)
        status.details.append(boxed)

    async def step(_request: Any, context: aio.ServicerContext) -> AsyncIterator[Message]:
        for event in after:
            yield event
        rich = rpc_status.to_status(status)
        await context.abort(code, message, rich.trailing_metadata if packed else ())

    return step


def abort(code: grpc.StatusCode, message: str, trailing: tuple[tuple[str, str | bytes], ...]) -> Step:
    """Fails with these trailers, whatever they say."""

    async def step(_request: Any, context: aio.ServicerContext) -> AsyncIterator[Message]:
        await context.abort(code, message, trailing)
        yield Message()

    return step


class ScriptedServer(
    generation_grpc.TextGenerationServiceServicer,
    tokenization_grpc.TokenizationServiceServicer,
    models_grpc.ModelServiceServicer,
    engine_grpc.EngineServiceServicer,
):
    """Serves every RPC the client calls. `script` queues a step per attempt; the last one stays for all that follow."""

    def __init__(self) -> None:
        self.attempts: dict[str, list[Attempt]] = defaultdict(list)
        self.cancelled = asyncio.Event()
        self.asked = asyncio.Event()
        self.target = ""
        self.health = health.aio.HealthServicer()
        self._steps: dict[str, deque[Step]] = defaultdict(deque)
        self._server: aio.Server | None = None

    async def start(
        self, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None, **options: int
    ) -> None:
        server = aio.server(options=[(name.replace("__", "."), value) for name, value in options.items()])
        generation_grpc.add_TextGenerationServiceServicer_to_server(self, server)
        tokenization_grpc.add_TokenizationServiceServicer_to_server(self, server)
        models_grpc.add_ModelServiceServicer_to_server(self, server)
        engine_grpc.add_EngineServiceServicer_to_server(self, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        self.target = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        await server.start()
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def script(self, method: str, *steps: Step) -> None:
        self._steps[method].extend(steps)

    def hang(self, *after: Message) -> Step:
        """Sends the messages of `after`, then nothing more; sets `cancelled` when the call ends."""

        async def step(_request: Any, _context: aio.ServicerContext) -> AsyncIterator[Message]:
            try:
                for event in after:
                    yield event
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

        return step

    async def _run(self, method: str, request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        metadata = [(key, value) for key, value in context.invocation_metadata() or ()]
        keys = [key for key, _ in metadata]
        self.attempts[method].append(Attempt(request, dict(metadata), keys, context.time_remaining()))
        self.asked.set()
        steps = self._steps[method]
        step = steps.popleft() if len(steps) > 1 else steps[0]
        async for message in step(request, context):
            yield message

    async def _only(self, method: str, request: Any, context: aio.ServicerContext) -> Any:
        async for message in self._run(method, request, context):
            return message
        raise AssertionError(f"the script of {method} sent nothing")


def _unary(method: str) -> Callable[[ScriptedServer, Any, aio.ServicerContext], Awaitable[Any]]:
    async def call(self: ScriptedServer, request: Any, context: aio.ServicerContext) -> Any:
        return await self._only(method, request, context)

    return call


def _stream(method: str) -> Callable[[ScriptedServer, Any, aio.ServicerContext], AsyncIterator[Any]]:
    async def call(self: ScriptedServer, request: Any, context: aio.ServicerContext) -> AsyncIterator[Any]:
        async for message in self._run(method, request, context):
            yield message

    return call


for _service in (
    generation.DESCRIPTOR.services_by_name["TextGenerationService"],
    tokenization.DESCRIPTOR.services_by_name["TokenizationService"],
    models.DESCRIPTOR.services_by_name["ModelService"],
    engine.DESCRIPTOR.services_by_name["EngineService"],
):
    for _method in _service.methods:
        _make = _stream if _method.server_streaming else _unary
        setattr(ScriptedServer, _method.name, _make(_method.name))
