"""A real gRPC server that says what a test wrote down, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import codecs
import math
import random
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tokenwire.v1 import engine_pb2 as engine
from tokenwire.v1 import engine_pb2_grpc, models_pb2_grpc, text_generation_pb2_grpc, tokenization_pb2_grpc
from tokenwire.v1 import models_pb2 as models
from tokenwire.v1 import text_generation_pb2 as text
from tokenwire.v1 import tokenization_pb2 as tokenization
from tokenwire.v1 import types_pb2 as types

MODEL = "org/scripted-1B"
CREATED = 1_700_000_000


@dataclass(frozen=True)
class Failure:
    """A status with google.rpc details, as the service sends them; reason None sends a bare status."""

    code: grpc.StatusCode
    reason: str | None
    message: str = "scripted"
    violations: tuple[tuple[str, str], ...] = ()
    retry_after_s: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def status(self) -> Any:
        rich = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.reason is not None:
            self._pack(
                rich, error_details_pb2.ErrorInfo(reason=self.reason, domain="tokenwire", metadata=self.metadata)
            )
        if self.violations and self.reason == "FEATURE_NOT_ENABLED":
            kind = error_details_pb2.PreconditionFailure
            found = [kind.Violation(type=self.reason, subject=f, description=d) for f, d in self.violations]
            self._pack(rich, kind(violations=found))
        elif self.violations:
            bad = error_details_pb2.BadRequest
            self._pack(
                rich, bad(field_violations=[bad.FieldViolation(field=f, description=d) for f, d in self.violations])
            )
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            self._pack(rich, error_details_pb2.RetryInfo(retry_delay=delay))
        return rpc_status.to_status(rich)

    @staticmethod
    def _pack(rich: status_pb2.Status, detail: Message) -> None:
        rich.details.add().Pack(detail)


def stopped(text_matched: str = "", token_id: int = 2) -> types.Finish:
    """The end by a stop string, or by the end token."""
    if text_matched:
        return types.Finish(reason=types.FINISH_REASON_STOP, stop=text_matched)
    return types.Finish(reason=types.FINISH_REASON_STOP, stop_token_id=token_id)


@dataclass
class Script:
    """What the next calls answer.

    tokens: bytes of each generated token; their joined text is the answer. groups: how many tokens each delta merges,
    in turn. special: numbers of tokens that are special and stand outside the text. fail_after: events sent before
    `failure`; None fails before the first. pause_s: wait before each delta. hang: after the last delta, wait until
    cancelled.
    """

    tokens: Sequence[bytes] = (b"Hello", b",", b" wor", b"ld")
    groups: Sequence[int] = (1,)
    special: frozenset[int] = frozenset()
    finish: types.Finish = field(default_factory=lambda: types.Finish(reason=types.FINISH_REASON_MAX_TOKENS))
    failure: Failure | None = None
    fail_after: int | None = None
    pause_s: float = 0.0
    start_pause_s: float = 0.0
    hang: bool = False
    incomplete: bool = False
    reasoning: str = ""
    tool_call: text.ToolCall | None = None

    def text(self) -> str:
        said = b"".join(token for number, token in enumerate(self.tokens) if number not in self.special)
        return said.decode("utf-8", "replace")


class ScriptedService(
    text_generation_pb2_grpc.TextGenerationServiceServicer,
    tokenization_pb2_grpc.TokenizationServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
    engine_pb2_grpc.EngineServiceServicer,
    health_pb2_grpc.HealthServicer,
):
    """The service. Set `script` before a call; read `requests` and `metadata` after it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.script = Script()
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.cancelled = threading.Event()
        self.begun = threading.Event()
        self.serving = True

    async def Generate(self, request: text.GenerateRequest, context: Any) -> text.GenerateResponse:
        await self._begin(request, context)
        answer = text.GenerateResponse(info=self._info(), usage=self._usage(request), timing=self._timing())
        for index in range(self._count(request)):
            answer.candidates.append(
                text.Candidate(
                    index=index, text=self.script.text(), finish=self.script.finish, token_count=len(self.script.tokens)
                )
            )
            if request.output.HasField("logprobs"):
                answer.candidates[-1].logprobs.CopyFrom(
                    self._logprobs(0, len(self.script.tokens), request, -0.5 + 0.1 * index)
                )
        if request.output.HasField("prompt_logprobs"):
            answer.prompt.CopyFrom(self._prompt())
        return answer

    async def Chat(self, request: text.ChatRequest, context: Any) -> text.ChatResponse:
        await self._begin(request, context)
        answer = text.ChatResponse(info=self._info(), usage=self._usage(request), timing=self._timing())
        for index in range(self._count(request)):
            message = text.Message(role=text.ROLE_ASSISTANT, content=[text.ContentPart(text=self.script.text())])
            if self.script.reasoning:
                message.reasoning = self.script.reasoning
            if self.script.tool_call is not None:
                message.tool_calls.append(self.script.tool_call)
            candidate = text.ChatCandidate(index=index, message=message, finish=self.script.finish)
            if request.output.HasField("logprobs"):
                candidate.logprobs.CopyFrom(self._logprobs(0, len(self.script.tokens), request, -0.5))
            answer.candidates.append(candidate)
        return answer

    async def GenerateStream(
        self, request: text.GenerateRequest, context: Any
    ) -> AsyncIterator[text.GenerateStreamResponse]:
        async for kind, event in self._events(request, context):
            yield text.GenerateStreamResponse(**{kind: event})

    async def ChatStream(self, request: text.ChatRequest, context: Any) -> AsyncIterator[text.ChatStreamResponse]:
        async for kind, event in self._events(request, context):
            if kind == "started" and self.script.reasoning:
                yield text.ChatStreamResponse(started=event)
                yield text.ChatStreamResponse(reasoning=text.TextDelta(index=0, text=self.script.reasoning))
            elif kind == "candidate_finished" and self.script.tool_call is not None:
                call = self.script.tool_call
                yield text.ChatStreamResponse(tool_call=text.ToolCallDelta(id=call.id, name=call.name))
                yield text.ChatStreamResponse(tool_call=text.ToolCallDelta(arguments=call.arguments))
                yield text.ChatStreamResponse(candidate_finished=event)
            elif kind != "prompt":
                yield text.ChatStreamResponse(**{"content" if kind == "delta" else kind: event})

    async def Tokenize(self, request: tokenization.TokenizeRequest, context: Any) -> tokenization.TokenizeResponse:
        await self._begin(request, context)
        said = request.text or "".join(f"<{m.content[0].text}>" for m in request.chat.messages)
        pieces = [character.encode() for character in said]
        ends = [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]
        return tokenization.TokenizeResponse(
            model=MODEL,
            token_count=len(pieces),
            token_ids=[ord(character) for character in said],
            token_bytes=pieces,
            text=said,
            starts=[end - len(piece) for end, piece in zip(ends, pieces, strict=True)],
            ends=ends,
        )

    async def Detokenize(
        self, request: tokenization.DetokenizeRequest, context: Any
    ) -> tokenization.DetokenizeResponse:
        await self._begin(request, context)
        return tokenization.DetokenizeResponse(model=MODEL, text="".join(map(chr, request.token_ids)))

    async def ListModels(self, request: models.ListModelsRequest, context: Any) -> models.ListModelsResponse:
        await self._begin(request, context)
        if not request.page_token:
            return models.ListModelsResponse(models=[self._model(MODEL)], next_page_token="2")
        return models.ListModelsResponse(models=[self._model("org/adapter")])

    async def GetModel(self, request: models.GetModelRequest, context: Any) -> models.GetModelResponse:
        await self._begin(request, context)
        if request.model not in ("", MODEL):
            await context.abort_with_status(
                Failure(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no such model").status()
            )
        return models.GetModelResponse(model=self._model(MODEL))

    async def GetServerInfo(self, request: engine.GetServerInfoRequest, context: Any) -> engine.GetServerInfoResponse:
        return engine.GetServerInfoResponse(
            version="9.9", device="cpu", max_concurrent_requests=128, max_batch_prefill_tokens=512
        )

    async def GetLoad(self, request: engine.GetLoadRequest, context: Any) -> engine.GetLoadResponse:
        return engine.GetLoadResponse(load=engine.Load(running=3, waiting=5, kv_blocks_total=100, kv_blocks_free=40))

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        status = health_pb2.HealthCheckResponse.ServingStatus
        if request.service != "tokenwire.v1.TextGenerationService":
            return health_pb2.HealthCheckResponse(status=status.SERVING)
        return health_pb2.HealthCheckResponse(status=status.SERVING if self.serving else status.NOT_SERVING)

    async def _begin(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append({key: value for key, value in context.invocation_metadata() if isinstance(value, str)})
        self.begun.set()
        # A call that ends late must not mark the next test's event.
        cancelled = self.cancelled
        try:
            if self.script.start_pause_s:
                await asyncio.sleep(self.script.start_pause_s)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        if self.script.failure is not None and self.script.fail_after is None:
            await context.abort_with_status(self.script.failure.status())

    async def _events(self, request: Any, context: Any) -> AsyncIterator[tuple[str, Message]]:
        await self._begin(request, context)
        sent, cancelled = 0, self.cancelled
        try:
            for kind, event in self._plan(request):
                if self.script.failure is not None and sent == self.script.fail_after:
                    await context.abort_with_status(self.script.failure.status())
                if kind == "delta" and self.script.pause_s:
                    await asyncio.sleep(self.script.pause_s)
                if kind == "candidate_finished" and self.script.hang:
                    await asyncio.sleep(3600)
                yield kind, event
                sent += 1
        except (asyncio.CancelledError, GeneratorExit):
            cancelled.set()
            raise

    def _plan(self, request: Any) -> Iterator[tuple[str, Message]]:
        yield "started", text.StreamStarted(info=self._info(), prompt_tokens=7, cached_prompt_tokens=2)
        if request.output.HasField("prompt_logprobs"):
            yield "prompt", self._prompt()
        for index in range(self._count(request)):
            yield from self._deltas(index, request)
        for index in range(self._count(request)):
            yield "candidate_finished", text.CandidateFinished(index=index, finish=self.script.finish)
        if not self.script.incomplete:
            yield "completed", text.StreamCompleted(usage=self._usage(request), timing=self._timing())

    def _deltas(self, index: int, request: Any) -> Iterator[tuple[str, Message]]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        at, turn, count = 0, 0, len(self.script.tokens)
        while at < count:
            end = min(count, at + self.script.groups[turn % len(self.script.groups)])
            said = b"".join(self.script.tokens[n] for n in range(at, end) if n not in self.script.special)
            delta = text.TextDelta(index=index, text=decoder.decode(said, final=end == count), token_count=end - at)
            if request.output.HasField("logprobs"):
                delta.logprobs.CopyFrom(self._logprobs(at, end, request, -0.5))
            yield "delta", delta
            at, turn = end, turn + 1

    def _logprobs(self, start: int, end: int, request: Any, logprob: float) -> types.TokenLogprobs:
        columns = types.TokenLogprobs()
        for number in range(start, end):
            columns.token_ids.append(100 + number)
            columns.logprobs.append(logprob)
            columns.token_bytes.append(self.script.tokens[number])
            columns.ranks.append(1)
            columns.special.append(number in self.script.special)
            if request.output.logprobs.top_n:
                top = range(request.output.logprobs.top_n)
                columns.alternatives.append(
                    types.Alternatives(
                        token_ids=[100 + number + i for i in top],
                        logprobs=[logprob if i == 0 else -math.inf for i in top],
                        token_bytes=[self.script.tokens[number] if i == 0 else b"alt%d" % i for i in top],
                        ranks=[i + 1 for i in top],
                    )
                )
        return columns

    @staticmethod
    def _prompt() -> text.PromptDetails:
        columns = types.TokenLogprobs(
            token_ids=[11, 12], logprobs=[math.nan, -1.5], token_bytes=[b"Once", b" upon"], ranks=[0, 3]
        )
        columns.special.extend([False, False])
        return text.PromptDetails(logprobs=columns)

    @staticmethod
    def _count(request: Any) -> int:
        return request.sampling.candidate_count if request.sampling.HasField("candidate_count") else 1

    @staticmethod
    def _info() -> types.ResponseInfo:
        return types.ResponseInfo(
            response_id="r-1",
            model=MODEL,
            fingerprint="fp",
            seed=-5,
            create_time=timestamp_pb2.Timestamp(seconds=CREATED),
        )

    def _usage(self, request: Any) -> types.Usage:
        made = len(self.script.tokens) * self._count(request)
        return types.Usage(
            prompt_tokens=7, cached_prompt_tokens=2, completion_tokens=made, draft_tokens=5, accepted_draft_tokens=3
        )

    @staticmethod
    def _timing() -> types.Timing:
        timing = types.Timing()
        timing.queue_time.FromMilliseconds(10)
        timing.time_to_first_token.FromMilliseconds(30)
        timing.total_time.FromMilliseconds(110)
        return timing

    @staticmethod
    def _model(name: str) -> models.Model:
        return models.Model(
            name=name,
            source="hub",
            revision="abc",
            dtype="float32",
            create_time=timestamp_pb2.Timestamp(seconds=CREATED),
            limits=models.ModelLimits(
                max_context_tokens=2048, max_prompt_tokens=2047, max_candidates=8, max_stop_sequences=16, max_top_n=20
            ),
        )


def random_script(seed: int) -> Script:
    """Tokens that cut text of many kinds at random bytes, merged into deltas of random sizes."""
    dice = random.Random(seed)
    alphabet = ["a", " ", "é", "e\u0301", "日", "🙂", "👩‍👩‍👧", "\n", "ش", "\u200d", '"', "\\", "\u2028"]
    data = "".join(dice.choice(alphabet) for _ in range(dice.randint(1, 60))).encode()
    cuts = sorted(dice.sample(range(1, len(data)), min(len(data) - 1, dice.randint(0, 40)))) if len(data) > 1 else []
    tokens = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return Script(tokens=tokens, groups=[dice.randint(1, 5) for _ in range(4)])


@contextmanager
def serve(service: ScriptedService, port: int = 0) -> Iterator[str]:
    """Run the service in a thread with an event loop of its own; yields host:port."""
    ready: threading.Event = threading.Event()
    state: dict[str, Any] = {}

    async def main() -> None:
        server = grpc.aio.server()
        text_generation_pb2_grpc.add_TextGenerationServiceServicer_to_server(service, server)
        tokenization_pb2_grpc.add_TokenizationServiceServicer_to_server(service, server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
        engine_pb2_grpc.add_EngineServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(service, server)
        state["port"] = server.add_insecure_port(f"127.0.0.1:{port}")
        state["stop"] = asyncio.Event()
        state["loop"] = asyncio.get_running_loop()
        await server.start()
        ready.set()
        await state["stop"].wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait(30)
    try:
        yield f"127.0.0.1:{state['port']}"
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(30)
