"""The synchronous client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message as ProtoMessage

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
from tokenwire_client.calls import Call, CallDefaults, endless, pairs
from tokenwire_client.channel import ChannelConfig, ChannelOption, TlsConfig, tls_config
from tokenwire_client.errors import TokenwireError, from_rpc_error
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
from tokenwire_client.stream import EventStream, ResultStream

GenerateStream = ResultStream[GenerateStreamResponse, Generation]
ChatStream = ResultStream[ChatStreamResponse, ChatCompletion]
LoadStream = EventStream[WatchLoadResponse]

_R = TypeVar("_R")


class _Stubs:
    """An open channel with its stubs, and the process it belongs to."""

    def __init__(self, config: ChannelConfig) -> None:
        self.pid = os.getpid()
        options = config.merged_options()
        if config.tls is None:
            self.channel = grpc.insecure_channel(config.target, options)
        else:
            self.channel = grpc.secure_channel(config.target, config.tls.credentials(), options)
        self.generation = TextGenerationServiceStub(self.channel)
        self.tokenization = TokenizationServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)
        self.engine = EngineServiceStub(self.channel)
        self.health: Any = health.stub(self.channel)


class Client:
    """Client of a tokenwire.v1 server. May be shared by threads; the channel is opened by the first call.

    Every call raises a TokenwireError when it fails. Options of calls are listed in `tokenwire_client.options`.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        tls: bool | TlsConfig = False,
        token: str | Callable[[], str] | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 3,
        channel_options: Iterable[ChannelOption] = (),
    ) -> None:
        """target: host:port, dns:///host:port (balanced over all addresses) or unix:path.

        tls: True for TLS with gRPC's own roots, or a TlsConfig. Plaintext otherwise.
        token: bearer token, or a function that returns the one to use; asked before every attempt.
        metadata: sent with every call.
        timeout: seconds a call may take where the call does not say, retries included; None waits without end.
        max_retries: how often a call is tried again before its response begins; 0 turns retries off.
        channel_options: gRPC channel arguments that override this client's.
        """
        self._config = ChannelConfig(target, tls_config(tls), max_retries, tuple(channel_options))
        self._defaults = CallDefaults(timeout, pairs(metadata), max_retries)
        self._token = token
        self._opened: _Stubs | None = None
        self._closed = False
        self._lock = threading.Lock()

    def generate(
        self, prompt: str | Iterable[int] | GenerateRequest, /, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continues a text, token ids, or what a whole request says."""
        request, call = requests.generate_request(prompt, options, stream=False)
        return Generation(self._unary(self._stubs().generation.Generate, request, call))

    def generate_stream(
        self, prompt: str | Iterable[int] | GenerateRequest, /, **options: Unpack[GenerateStreamOptions]
    ) -> GenerateStream:
        """Continues as `generate` does, event by event."""
        request, options_ = requests.generate_request(prompt, options, stream=True)
        call = self._defaults.begin(options_)
        start = partial(self._start, lambda stubs: stubs.generation.GenerateStream, request, call)
        return ResultStream(start, call, GenerateAccumulator())

    def chat(self, messages: Iterable[MessageLike] | ChatRequest, /, **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Answers a conversation."""
        request, call = requests.chat_request(messages, options, stream=False)
        return ChatCompletion(self._unary(self._stubs().generation.Chat, request, call))

    def chat_stream(
        self, messages: Iterable[MessageLike] | ChatRequest, /, **options: Unpack[ChatStreamOptions]
    ) -> ChatStream:
        """Answers as `chat` does, event by event."""
        request, options_ = requests.chat_request(messages, options, stream=True)
        call = self._defaults.begin(options_)
        start = partial(self._start, lambda stubs: stubs.generation.ChatStream, request, call)
        return ResultStream(start, call, ChatAccumulator())

    def tokenize(
        self, subject: str | Iterable[MessageLike] | TokenizeRequest, /, **options: Unpack[TokenizeOptions]
    ) -> TokenizeResponse:
        """Tokens of a text or a conversation."""
        request, call = requests.tokenize_request(subject, options)
        return self._unary(self._stubs().tokenization.Tokenize, request, call)

    def count_tokens(
        self, subject: str | Iterable[MessageLike] | TokenizeRequest, /, **options: Unpack[CountOptions]
    ) -> int:
        """Number of tokens of a text or a conversation."""
        request, call = requests.tokenize_request(subject, options, count_only=True)
        response = self._unary(self._stubs().tokenization.Tokenize, request, call)
        return response.token_count

    def detokenize(self, token_ids: Iterable[int] | DetokenizeRequest, /, **options: Unpack[DetokenizeOptions]) -> str:
        """Text of tokens."""
        request, call = requests.detokenize_request(token_ids, options)
        response = self._unary(self._stubs().tokenization.Detokenize, request, call)
        return response.text

    def list_models(self, **options: Unpack[CallOptions]) -> list[Model]:
        """All models served, all pages."""
        models: list[Model] = []
        page_token = ""
        while True:
            request = ListModelsRequest(page_token=page_token)
            page = self._unary(self._stubs().models.ListModels, request, options)
            models += page.models
            page_token = page.next_page_token
            if not page_token:
                return models

    def get_model(self, model: str = "", **options: Unpack[CallOptions]) -> Model:
        """One model; the server's only or default one when no name is given."""
        response = self._unary(self._stubs().models.GetModel, GetModelRequest(model=model), options)
        return response.model

    def server_info(self, **options: Unpack[CallOptions]) -> GetServerInfoResponse:
        """The server: version, state, device, limits."""
        return self._unary(self._stubs().engine.GetServerInfo, GetServerInfoRequest(), options)

    def load(self, **options: Unpack[CallOptions]) -> Load:
        """The load now."""
        return self._unary(self._stubs().engine.GetLoad, GetLoadRequest(), options).load

    def watch_load(self, interval: float | timedelta | None = None, **options: Unpack[CallOptions]) -> LoadStream:
        """The load every `interval` seconds (server's default: 1), without end unless a timeout is given."""
        request = requests.watch_load_request(interval)
        call = self._defaults.begin(endless(options))
        return EventStream(partial(self._start, lambda stubs: stubs.engine.WatchLoad, request, call), call)

    def is_serving(self, service: str = health.GENERATION, **options: Unpack[CallOptions]) -> bool:
        """Whether the server answers that it is serving, now. A server that cannot be reached is not."""
        try:
            response = self._unary(self._stubs().health.Check, health.check(service), options)
        except health.NOT_SERVING:
            return False
        return health.serving(response)

    def wait_until_ready(self, timeout: float | None = 60.0, service: str = health.GENERATION) -> None:
        """Waits until the server serves. Raises DeadlineExceeded after `timeout` seconds; None waits without end."""
        waiting = health.Waiting(timeout)
        while True:
            call = self._defaults.begin(waiting.options())
            start = partial(
                self._start, lambda stubs: stubs.health.Watch, health.check(service), call, wait_for_ready=True
            )
            try:
                with EventStream[Any](start, call) as answers:
                    for answer in answers:
                        if waiting.saw(answer):
                            return
            except TokenwireError as error:
                waiting.failed(error, closed=self._closed)
            time.sleep(waiting.pause())

    def close(self) -> None:
        """Closes the channel; calls in flight end Cancelled. The client cannot be used again."""
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: TracebackType | BaseException | type[BaseException] | None) -> None:
        self.close()

    def _stubs(self) -> _Stubs:
        """The open channel; opens it the first time."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._opened is None:
                self._opened = _Stubs(self._config)
            elif self._opened.pid != os.getpid():
                raise RuntimeError("the client was opened before a fork; make a new one in the child process")
            return self._opened

    def _bearer(self) -> str | None:
        return self._token() if callable(self._token) else self._token

    def _unary(self, method: Callable[..., _R], request: ProtoMessage, options: CallOptions) -> _R:
        call = self._defaults.begin(options)
        while True:
            metadata = call.metadata(self._bearer())
            self._stubs()
            try:
                return method(request, timeout=call.remaining(), metadata=metadata)
            except grpc.RpcError as error:
                failure = from_rpc_error(error, call.request_id)
                delay = call.retry_delay(failure)
                if delay is None:
                    raise failure from error
            time.sleep(delay)

    def _start(
        self,
        method: Callable[[_Stubs], Callable[..., Any]],
        request: ProtoMessage,
        call: Call,
        wait_for_ready: bool | None = None,
    ) -> Any:
        """Begins an attempt of a stream."""
        metadata = call.metadata(self._bearer())
        start = method(self._stubs())
        return start(request, timeout=call.remaining(), metadata=metadata, wait_for_ready=wait_for_ready)
