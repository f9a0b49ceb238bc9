"""A real `RpcServer` on a loopback port over a fake engine, and what a client sees of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tests.support.byte_tokenizer import byte_tokenizer, chat_template
from tests.support.fake_engine import FakeEngine
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc
from tokenwire_service.config import FrontendConfig
from tokenwire_service.observability.telemetry import NullTelemetry, Telemetry
from tokenwire_service.rpc.model import ModelLimits, ServedModel
from tokenwire_service.rpc.server import RpcServer
from tokenwire_service.rpc.serving import BatchLimits, Serving

LIMITS = ModelLimits(
    max_context_tokens=256,
    max_prompt_tokens=200,
    max_candidates=4,
    max_stop_sequences=4,
    max_stop_bytes=32,
    max_top_n=5,
)
CONFIG = FrontendConfig(hostname="127.0.0.1", port=0, max_message_bytes=4 * 1024 * 1024)


def served_model(**changes: Any) -> ServedModel:
    """A model over the byte tokenizer."""
    tokenizer = byte_tokenizer()
    model = ServedModel(
        name="bytes",
        source="tests/bytes",
        revision="abc",
        architecture="FakeForCausalLM",
        dtype="float32",
        quantization="",
        parameter_count=1_000,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=(tokenizer.eos_token_id or 0,),
        tokenizer=tokenizer,
        chat_template=chat_template(tokenizer),
        limits=LIMITS,
        create_time=1_700_000_000.0,
    )
    return replace(model, **changes)


@dataclass
class Door:
    """A started server and a channel to it."""

    server: RpcServer
    serving: Serving
    engine: FakeEngine
    model: ServedModel
    channel: grpc.aio.Channel

    @property
    def generation(self) -> pb_grpc.TextGenerationServiceStub:
        return pb_grpc.TextGenerationServiceStub(self.channel)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@asynccontextmanager
async def open_door(
    engine: FakeEngine | None = None,
    model: ServedModel | None = None,
    *,
    loaded: bool = True,
    telemetry: Telemetry | None = None,
    options: list[tuple[str, Any]] | None = None,
    **config: Any,
) -> AsyncIterator[Door]:
    """Start a server; `loaded` False leaves model and engine out. `config` are FrontendConfig's fields."""
    engine, model, serving = engine or FakeEngine(), model or served_model(), Serving()
    server = RpcServer(replace(CONFIG, **config), serving, telemetry or NullTelemetry(), "1.2.3")
    await server.start()
    if loaded:
        load(serving, engine, model)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
            yield Door(server, serving, engine, model, channel)
    finally:
        await server.stop()
        await engine.close()


def load(serving: Serving, engine: FakeEngine, model: ServedModel) -> None:
    """What `app.py` does when the model is there."""
    serving.set_engine(engine, BatchLimits(max_batch_size=8, max_batch_prefill_tokens=64))
    serving.set_model(model)


@dataclass(frozen=True)
class Refusal:
    """A status that is not OK, taken apart."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]
    """Violated field → remedy."""
    details: dict[str, Message]
    trailers: dict[str, str | bytes]


_KINDS: tuple[type[Message], ...] = (
    error_details_pb2.BadRequest,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
    error_details_pb2.QuotaFailure,
    error_details_pb2.RequestInfo,
)


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Take an error apart; reason and domain must be there, and each detail at most once."""
    trailers = dict(error.trailing_metadata() or ())
    raw = trailers["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    status, info = status_pb2.Status.FromString(raw), error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "tokenwire"
    details: dict[str, Message] = {}
    for packed in status.details[1:]:
        detail = next(kind() for kind in _KINDS if packed.Is(kind.DESCRIPTOR))
        packed.Unpack(detail)
        assert type(detail).__name__ not in details
        details[type(detail).__name__] = detail
    bad = details.get("BadRequest", error_details_pb2.BadRequest())
    assert isinstance(bad, error_details_pb2.BadRequest)
    fields = {violation.field: violation.description for violation in bad.field_violations}
    return Refusal(error.code(), error.details() or "", info.reason, dict(info.metadata), fields, details, trailers)


@dataclass
class Streamed:
    """A GenerateStream or ChatStream, read to its end."""

    events: list[Any]

    def of(self, kind: str) -> list[Any]:
        return [getattr(event, kind) for event in self.events if event.WhichOneof("event") == kind]

    def text(self, index: int = 0, kind: str = "delta") -> str:
        return "".join(delta.text for delta in self.of(kind) if delta.index == index)

    def token_ids(self, index: int = 0, kind: str = "delta") -> list[int]:
        return [token_id for delta in self.of(kind) if delta.index == index for token_id in delta.token_ids]


async def read(call: Any) -> Streamed:
    """What is left of a stream. Raises AioRpcError at an end that is not OK."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return Streamed(events)


def prompt(**fields: Any) -> pb.GenerateRequest:
    """A good request with `fields` on top."""
    return pb.GenerateRequest(**({"text": "hello"} | fields))
