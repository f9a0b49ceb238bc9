"""The asyncio client."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from google.protobuf.message import Message as ProtoMessage
from grpc import aio

from tokenwire.v1.engine_pb2 import (
    GetLoadRequest,
    GetServerInfoRequest,
    GetServerInfoResponse,
    Load,
    WatchLoadResponse,
)
from tokenwire.v1.engine_pb2_grpc import EngineServiceStub
from tokenwire.v1.models_pb2 import GetModelRequest, ListModelsRequest, Model
from tokenwire.v1.models_pb2_grpc import ModelServiceStub
from tokenwire.v1.text_generation_pb2 import ChatRequest, ChatStreamResponse, GenerateRequest, GenerateStreamResponse
from tokenwire.v1.text_generation_pb2_grpc import TextGenerationServiceStub
from tokenwire.v1.tokenization_pb2 import DetokenizeRequest, TokenizeRequest, TokenizeResponse
from tokenwire.v1.tokenization_pb2_grpc import TokenizationServiceStub
from tokenwire_client import health, requests
from tokenwire_client.accumulate import ChatAccumulator, GenerateAccumulator
from tokenwire_client.async_stream import AsyncEventStream, AsyncResultStream, cancelled_from_outside
from tokenwire_client.calls import Call, CallDefaults, endless, pairs
from tokenwire_client.channel import ChannelConfig, ChannelOption, TlsConfig, tls_config
from tokenwire_client.errors import Cancelled, TokenwireError, from_rpc_error
from tokenwire_client.options import (
    CallOptions,
    ChatOptions,
    ChatStreamOptions,
    CountOptions,
    DetokenizeOptions,
    GenerateOptions,
    GenerateStreamOptions,
    MessageLike,
    Metadata,
    TokenizeOptions,
)
from tokenwire_client.results import ChatCompletion, Generation

AsyncGenerateStream = AsyncResultStream[GenerateStreamResponse, Generation]
AsyncChatStream = AsyncResultStream[ChatStreamResponse, ChatCompletion]
AsyncLoadStream = AsyncEventStream[WatchLoadResponse]

_R = TypeVar("_R")
_Rpc = TypeVar("_Rpc")


class _Stubs:
    """An open channel with its stubs, and the loop it belongs to."""

    def __init__(self, config: ChannelConfig) -> None:
        self.loop = asyncio.get_running_loop()
        options = config.merged_options()
        if config.tls is None:
            self.channel = aio.insecure_channel(config.target, options)
        else:
            self.channel = aio.secure_channel(config.target, config.tls.credentials(), options)
        self.generation = TextGenerationServiceStub(self.channel)
        self.tokenization = TokenizationServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)
        self.engine = EngineServiceStub(self.channel)
        self.health: Any = health.stub(self.channel)
        # grpc.aio finds calls to end at a close by the frames of tasks, and misses some.
        self._live: weakref.WeakSet[Any] = weakref.WeakSet()

    def begin(self, method: Callable[..., _Rpc], *args: Any, **options: Any) -> _Rpc:
        """Begins a call that `close` ends."""
        rpc = method(*args, **options)
        self._live.add(rpc)
        return rpc

    async def close(self) -> None:
        for rpc in list(self._live):
            rpc.cancel()
        await self.channel.close()


class AsyncClient:
    """Client of a tokenwire.v1 server, for asyncio. Methods and options are those of `Client`.

    The channel is opened by the first call, in the running loop, and belongs to that loop.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        tls: bool | TlsConfig = False,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 3,
        channel_options: Iterable[ChannelOption] = (),
    ) -> None:
        """See `Client`. `token` may also be a coroutine function."""
        self._config = ChannelConfig(target, tls_config(tls), max_retries, tuple(channel_options))
        self._defaults = CallDefaults(timeout, pairs(metadata), max_retries)
        self._token = token
        self._opened: _Stubs | None = None
        self._closed = False

    async def generate(
        self, prompt: str | Iterable[int] | GenerateRequest, /, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continues a text, token ids, or what a whole request says."""
        request, call = requests.generate_request(prompt, options, stream=False)
        return Generation(await self._unary(self._stubs().generation.Generate, request, call))

    def generate_stream(
        self, prompt: str | Iterable[int] | GenerateRequest, /, **options: Unpack[GenerateStreamOptions]
    ) -> AsyncGenerateStream:
        """Continues as `generate` does, event by event."""
        request, options_ = requests.generate_request(prompt, options, stream=True)
        call = self._defaults.begin(options_)
        start = partial(self._start, lambda stubs: stubs.generation.GenerateStream, request, call)
        return AsyncResultStream(start, call, GenerateAccumulator())

    async def chat(
        self, messages: Iterable[MessageLike] | ChatRequest, /, **options: Unpack[ChatOptions]
    ) -> ChatCompletion:
        """Answers a conversation."""
        request, call = requests.chat_request(messages, options, stream=False)
        return ChatCompletion(await self._unary(self._stubs().generation.Chat, request, call))

    def chat_stream(
        self, messages: Iterable[MessageLike] | ChatRequest, /, **options: Unpack[ChatStreamOptions]
    ) -> AsyncChatStream:
        """Answers as `chat` does, event by event."""
        request, options_ = requests.chat_request(messages, options, stream=True)
        call = self._defaults.begin(options_)
        start = partial(self._start, lambda stubs: stubs.generation.ChatStream, request, call)
        return AsyncResultStream(start, call, ChatAccumulator())

    async def tokenize(
        self, subject: str | Iterable[MessageLike] | TokenizeRequest, /, **options: Unpack[TokenizeOptions]
    ) -> TokenizeResponse:
        """Tokens of a text or a conversation."""
        request, call = requests.tokenize_request(subject, options)
        return await self._unary(self._stubs().tokenization.Tokenize, request, call)

    async def count_tokens(
        self, subject: str | Iterable[MessageLike] | TokenizeRequest, /, **options: Unpack[CountOptions]
    ) -> int:
        """Number of tokens of a text or a conversation."""
        request, call = requests.tokenize_request(subject, options, count_only=True)
        response = await self._unary(self._stubs().tokenization.Tokenize, request, call)
        return response.token_count

    async def detokenize(
        self, token_ids: Iterable[int] | DetokenizeRequest, /, **options: Unpack[DetokenizeOptions]
    ) -> str:
        """Text of tokens."""
        request, call = requests.detokenize_request(token_ids, options)
        response = await self._unary(self._stubs().tokenization.Detokenize, request, call)
        return response.text

    async def list_models(self, **options: Unpack[CallOptions]) -> list[Model]:
        """All models served, all pages."""
        models: list[Model] = []
        page_token = ""
        while True:
            request = ListModelsRequest(page_token=page_token)
            page = await self._unary(self._stubs().models.ListModels, request, options)
            models += page.models
            page_token = page.next_page_token
            if not page_token:
                return models

    async def get_model(self, model: str = "", **options: Unpack[CallOptions]) -> Model:
        """One model; the server's only or default one when no name is given."""
        response = await self._unary(self._stubs().models.GetModel, GetModelRequest(model=model), options)
        return response.model

    async def server_info(self, **options: Unpack[CallOptions]) -> GetServerInfoResponse:
        """The server: version, state, device, limits."""
        return await self._unary(self._stubs().engine.GetServerInfo, GetServerInfoRequest(), options)

    async def load(self, **options: Unpack[CallOptions]) -> Load:
        """The load now."""
        return (await self._unary(self._stubs().engine.GetLoad, GetLoadRequest(), options)).load

    def watch_load(self, interval: float | timedelta | None = None, **options: Unpack[CallOptions]) -> AsyncLoadStream:
        """The load every `interval` seconds (server's default: 1), without end unless a timeout is given."""
        request = requests.watch_load_request(interval)
        call = self._defaults.begin(endless(options))
        return AsyncEventStream(partial(self._start, lambda stubs: stubs.engine.WatchLoad, request, call), call)

    async def is_serving(self, service: str = health.GENERATION, **options: Unpack[CallOptions]) -> bool:
        """Whether the server answers that it is serving, now. A server that cannot be reached is not."""
        try:
            response = await self._unary(self._stubs().health.Check, health.check(service), options)
        except health.NOT_SERVING:
            return False
        return health.serving(response)

    async def wait_until_ready(self, timeout: float | None = 60.0, service: str = health.GENERATION) -> None:
        """Waits until the server serves. Raises DeadlineExceeded after `timeout` seconds; None waits without end."""
        waiting = health.Waiting(timeout)
        while True:
            call = self._defaults.begin(waiting.options())
            start = partial(
                self._start, lambda stubs: stubs.health.Watch, health.check(service), call, wait_for_ready=True
            )
            try:
                async with AsyncEventStream[Any](start, call) as answers:
                    async for answer in answers:
                        if waiting.saw(answer):
                            return
            except TokenwireError as error:
                waiting.failed(error, closed=self._closed)
            await asyncio.sleep(waiting.pause())

    async def close(self) -> None:
        """Closes the channel; calls in flight end Cancelled. The client cannot be used again."""
        self._closed = True
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: TracebackType | BaseException | type[BaseException] | None) -> None:
        await self.close()

    def _stubs(self) -> _Stubs:
        """The open channel; opens it the first time."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._opened is None:
            self._opened = _Stubs(self._config)
        elif self._opened.loop is not asyncio.get_running_loop():
            raise RuntimeError("the client was opened in another event loop; make one client per loop")
        return self._opened

    async def _bearer(self) -> str | None:
        token = self._token() if callable(self._token) else self._token
        return await token if inspect.isawaitable(token) else token

    async def _unary(self, method: Callable[..., Awaitable[_R]], request: ProtoMessage, options: CallOptions) -> _R:
        call = self._defaults.begin(options)
        while True:
            metadata = call.metadata(await self._bearer())
            try:
                return await self._stubs().begin(method, request, timeout=call.remaining(), metadata=metadata)
            except aio.AioRpcError as error:
                failure = from_rpc_error(error, call.request_id)
                delay = call.retry_delay(failure)
                if delay is None:
                    raise failure from error
            except asyncio.CancelledError:
                if cancelled_from_outside():
                    raise
                raise Cancelled("The client was closed during the call.", request_id=call.request_id) from None
            await asyncio.sleep(delay)

    async def _start(
        self,
        method: Callable[[_Stubs], Callable[..., Any]],
        request: ProtoMessage,
        call: Call,
        wait_for_ready: bool | None = None,
    ) -> Any:
        """Begins an attempt of a stream."""
        metadata = call.metadata(await self._bearer())
        stubs = self._stubs()
        options = {"timeout": call.remaining(), "metadata": metadata, "wait_for_ready": wait_for_ready}
        return stubs.begin(method(stubs), request, **options)
