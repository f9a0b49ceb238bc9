"""The service behind the gateway: one channel, the stubs of tokenwire.v1, calls that fail as GatewayError."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenwire.v1 import engine_pb2, engine_pb2_grpc, models_pb2, models_pb2_grpc
from tokenwire.v1 import text_generation_pb2 as text_pb2
from tokenwire.v1.text_generation_pb2_grpc import TextGenerationServiceStub
from tokenwire.v1.tokenization_pb2_grpc import TokenizationServiceStub
from tokenwire_client.channel import ChannelConfig, TlsConfig
from tokenwire_gateway.config import GatewayConfig
from tokenwire_gateway.errors import GatewayError, Problem, bad_field, from_rpc
from tokenwire_gateway.facts import RequestFacts
from tokenwire_gateway.plain import EventReader

if TYPE_CHECKING:
    from tokenwire.v1.text_generation_pb2_grpc import TextGenerationServiceAsyncStub
    from tokenwire.v1.tokenization_pb2_grpc import TokenizationServiceAsyncStub

GENERATION_SERVICE = "tokenwire.v1.TextGenerationService"
"""Its health is readiness; that of the empty name only says that the process is up."""
PROBE_TIMEOUT_S = 2.0
# While the device is not known, it is asked for this often at most.
DEVICE_INTERVAL_S = 10.0
_T = TypeVar("_T")
_R = TypeVar("_R")
Metadata = tuple[tuple[str, str], ...]


class UnaryRpc(Protocol[_T]):
    """A unary method of a stub."""

    def __call__(
        self, request: Any, /, *, timeout: float | None, metadata: Any
    ) -> grpc.aio.UnaryUnaryCall[Any, _T]: ...


class StreamRpc(Protocol[_T]):
    """A server-streaming method of a stub."""

    def __call__(
        self, request: Any, /, *, timeout: float | None, metadata: Any
    ) -> grpc.aio.UnaryStreamCall[Any, _T]: ...


class Backend:
    """Calls to the service. Made inside the running event loop; `close` ends the channel."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._channel = _open(config)
        self.text: TextGenerationServiceAsyncStub = _typed(TextGenerationServiceStub(self._channel))
        self.tokens: TokenizationServiceAsyncStub = _typed(TokenizationServiceStub(self._channel))
        self.models: models_pb2_grpc.ModelServiceAsyncStub = _typed(models_pb2_grpc.ModelServiceStub(self._channel))
        self.engine: engine_pb2_grpc.EngineServiceAsyncStub = _typed(engine_pb2_grpc.EngineServiceStub(self._channel))
        self.generated: StreamRpc[text_pb2.GenerateStreamResponse | str] = self._reader(
            "GenerateStream", EventReader(text_pb2.GenerateStreamResponse, "delta")
        )
        """GenerateStream, with plain deltas as their text; see EventReader."""
        self.said: StreamRpc[text_pb2.ChatStreamResponse | str] = self._reader(
            "ChatStream", EventReader(text_pb2.ChatStreamResponse, "content")
        )
        """ChatStream, likewise."""
        self._health: Any = _typed(health_pb2_grpc.HealthStub(self._channel))  # type: ignore[no-untyped-call]
        self._device = ""
        self._device_asked_s = -DEVICE_INTERVAL_S

    async def close(self) -> None:
        """End the channel and every call on it."""
        await self._channel.close()

    async def unary(self, rpc: UnaryRpc[_T], request: Any, facts: RequestFacts | None) -> _T:
        """The answer to one call; cancelling the caller cancels it. Raises GatewayError."""
        timeout = PROBE_TIMEOUT_S if facts is None else self._timeout()
        call: grpc.aio.UnaryUnaryCall[Any, _T] = _begin(
            lambda: rpc(request, timeout=timeout, metadata=self._metadata(facts))
        )
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        finally:
            call.cancel()

    async def stream(self, rpc: StreamRpc[_R], request: Any, facts: RequestFacts) -> AsyncGenerator[_R]:
        """The events of one call, which must end with `completed`; closing the iterator cancels it.

        Raises GatewayError.
        """
        call = _begin(lambda: rpc(request, timeout=self._timeout(), metadata=self._metadata(facts)))
        last: Any = None
        try:
            while (event := await call.read()) is not grpc.aio.EOF:
                last = event
                yield event
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        finally:
            call.cancel()
        if last is None or isinstance(last, str) or not last.HasField("completed"):
            message = "The generation service ended the stream before its end; try again."
            raise GatewayError(Problem(500, "INCOMPLETE", message))

    async def is_serving(self) -> bool:
        """Whether the service answers requests now."""
        request = health_pb2.HealthCheckRequest(service=GENERATION_SERVICE)
        try:
            answer = await self._health.Check(request, timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def get_model(self, name: str, facts: RequestFacts | None) -> models_pb2.Model:
        """A model by its served name, the default one by the empty name. Raises GatewayError."""
        return (await self.unary(self.models.GetModel, models_pb2.GetModelRequest(model=name), facts)).model

    async def list_models(self, facts: RequestFacts) -> Sequence[models_pb2.Model]:
        """Every model served. Raises GatewayError."""
        models: list[models_pb2.Model] = []
        token = ""
        while True:
            page = await self.unary(self.models.ListModels, models_pb2.ListModelsRequest(page_token=token), facts)
            models += page.models
            token = page.next_page_token
            if not token or not page.models:
                return models

    async def server_info(self, facts: RequestFacts | None) -> engine_pb2.GetServerInfoResponse:
        """The server's description. Raises GatewayError."""
        info = await self.unary(self.engine.GetServerInfo, engine_pb2.GetServerInfoRequest(), facts)
        self._device = info.device
        return info

    async def load(self) -> engine_pb2.Load:
        """The load now. Raises GatewayError."""
        return (await self.unary(self.engine.GetLoad, engine_pb2.GetLoadRequest(), None)).load

    async def device(self, facts: RequestFacts) -> str:
        """What the engine computes on; empty while that is not known."""
        if not self._device and time.monotonic() - self._device_asked_s >= DEVICE_INTERVAL_S:
            self._device_asked_s = time.monotonic()
            with suppress(GatewayError, TimeoutError):
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self.server_info(facts)
        return self._device

    def _reader(self, method: str, reader: EventReader[Any]) -> Any:
        return self._channel.unary_stream(
            f"/{GENERATION_SERVICE}/{method}", request_serializer=_serialize, response_deserializer=reader
        )

    def _timeout(self) -> float | None:
        return self._config.request_timeout_s or None

    def _metadata(self, facts: RequestFacts | None) -> Metadata:
        authorization = facts.authorization if facts is not None else ""
        if not authorization and self._config.api_key:
            authorization = f"Bearer {self._config.api_key}"
        if not (authorization.isascii() and authorization.isprintable()):
            raise GatewayError(Problem(401, "CREDENTIALS_INVALID", "authorization: not printable ASCII"))
        pairs = [("authorization", authorization)]
        if facts is not None:
            pairs += [("x-request-id", facts.request_id), ("traceparent", facts.traceparent)]
            pairs += [("tracestate", facts.tracestate)] if facts.traceparent else []
        return tuple((key, value) for key, value in pairs if value)


async def merged(streams: Sequence[AsyncGenerator[_R]]) -> AsyncGenerator[tuple[int, _R]]:
    """Events of several streams as they come, each with the number of its stream. The first failure ends them all."""
    queue: asyncio.Queue[tuple[int, _R] | Exception | None] = asyncio.Queue(maxsize=4 * len(streams))

    async def pump(number: int, stream: AsyncGenerator[_R]) -> None:
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    await queue.put((number, event))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.ensure_future(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_of(calls: Sequence[Coroutine[Any, Any, _R]]) -> list[_R]:
    """Results of calls run at once, in their order. The first failure cancels the others and is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _begin(call: Any) -> Any:
    try:
        return call()
    except (ValueError, UnicodeError) as error:
        raise bad_field("", f"the request cannot be sent: {error}") from error


def _serialize(request: Message) -> bytes:
    return request.SerializeToString()


def _typed(stub: Any) -> Any:
    return stub


def _open(config: GatewayConfig) -> grpc.aio.Channel:
    tls = TlsConfig(ca=config.tls_ca_path or None) if config.tls else None
    # Retries are the caller's: it sees the status and Retry-After.
    channel = ChannelConfig(config.target, tls, max_retries=0)
    if tls is None:
        return grpc.aio.insecure_channel(channel.target, options=channel.merged_options())
    return grpc.aio.secure_channel(channel.target, tls.credentials(), options=channel.merged_options())
