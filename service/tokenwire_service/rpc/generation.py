"""Generate and GenerateStream: convert, run, convert. `Generations` is what Chat shares with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from google.protobuf.message import Message

from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire_service.engine.client import EngineClient
from tokenwire_service.rpc.call import Call
from tokenwire_service.rpc.convert.generate import generate_plan
from tokenwire_service.rpc.convert.plain_delta import PlainDelta, ReadyEvents
from tokenwire_service.rpc.convert.responses import GENERATED, ResponseWriter, finish, info, timing, usage
from tokenwire_service.rpc.endpoint import Method
from tokenwire_service.rpc.events import Done, GenerationEvent, Started
from tokenwire_service.rpc.gather import Gathered, GatheredCandidate
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.plan import GenerationPlan
from tokenwire_service.rpc.pump import Bursts, Pump
from tokenwire_service.rpc.serving import Serving
from tokenwire_service.rpc.session import Door, generation
from tokenwire_service.text.tokenizer import Tokenizer

EventEncoder = Callable[[ResponseWriter, GenerationEvent], Message | bytes]


class Generations:
    """Runs plans: to the end for unary calls, event by event for streams."""

    def __init__(self, serving: Serving, door: Door, version: str) -> None:
        self.serving = serving
        self._door = door
        self._version = version
        self._bursts = Bursts()
        self._ready: dict[tuple[Tokenizer, PlainDelta], ReadyEvents] = {}

    async def gather(self, call: Call, plan: GenerationPlan) -> tuple[Gathered, ResponseWriter]:
        """The whole generation, and the writer of its messages. Raises TokenwireError."""
        model, engine = self._begin(call, plan, streams=False)
        gathered = Gathered()
        async with generation(call, plan, model, engine, self._fingerprint(model, engine), self._door) as session:
            while events := await session.next():
                gathered.add(events)
        return gathered, ResponseWriter(plan.output, model.tokenizer)

    async def stream(self, call: Call, plan: GenerationPlan, message: EventEncoder, form: PlainDelta) -> None:
        """Write `message` of each event to the call; `form` is that of the plain ones. Raises TokenwireError."""
        model, engine = self._begin(call, plan, streams=True)
        writer = ResponseWriter(plan.output, model.tokenizer)

        def encode(event: GenerationEvent) -> bytes:
            made = message(writer, event)
            return made if isinstance(made, bytes) else made.SerializeToString()

        async with generation(call, plan, model, engine, self._fingerprint(model, engine), self._door) as session:
            # What comes before the first token goes its own way: it commits the call.
            while events := await session.next():
                for event in events:
                    await call.write(encode(event))
                if not session.timed:
                    break
            if not session.done:
                ready = self._ready_events(model, form) if writer.plain else None
                await Pump(session, call, encode, self._bursts, ready).run()

    def _ready_events(self, model: ServedModel, form: PlainDelta) -> ReadyEvents:
        key = (model.tokenizer, form)
        found = self._ready.get(key)
        if found is None:
            found = self._ready[key] = ReadyEvents(*key)
        return found

    def _begin(self, call: Call, plan: GenerationPlan, *, streams: bool) -> tuple[ServedModel, EngineClient]:
        model, engine = self.serving.require()
        call.record.user, call.record.labels = plan.user, plan.labels
        call.telemetry.attributes(**_attributes(plan, model, streams=streams))
        return model, engine

    def _fingerprint(self, model: ServedModel, engine: EngineClient) -> str:
        """Stable for one build, model, precision and set of kernels."""
        facts = engine.info
        parts = (
            self._version,
            model.name,
            model.source,
            model.revision,
            model.dtype,
            model.quantization,
            facts.device,
            facts.num_shards,
            facts.attention_backend,
        )
        return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class GenerateMethods:
    """Continues prompts."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations

    def methods(self) -> tuple[Method, ...]:
        return (
            Method("Generate", pb.GenerateRequest, pb.GenerateResponse, self.generate),
            Method("GenerateStream", pb.GenerateRequest, pb.GenerateStreamResponse, self.generate_stream, streams=True),
        )

    async def generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        plan = generate_plan(request, self._generations.serving.require()[0], streams=False)
        gathered, writer = await self._generations.gather(call, plan)
        started, done = whole(gathered)
        chunk = gathered.prompt_chunk()
        return pb.GenerateResponse(
            info=info(started.facts),
            candidates=[_candidate(found, plan, writer) for found in gathered.candidates(plan.candidate_count)],
            prompt=None if chunk is None else writer.prompt(chunk),
            usage=usage(done.usage),
            timing=timing(done),
        )

    async def generate_stream(self, request: pb.GenerateRequest, call: Call) -> None:
        plan = generate_plan(request, self._generations.serving.require()[0], streams=True)
        await self._generations.stream(call, plan, ResponseWriter.generate_event, GENERATED)


def whole(gathered: Gathered) -> tuple[Started, Done]:
    """The first and the last event, which every generation that ended well has."""
    assert gathered.started is not None
    assert gathered.done is not None
    return gathered.started, gathered.done


def _candidate(found: GatheredCandidate, plan: GenerationPlan, writer: ResponseWriter) -> pb.Candidate:
    output = plan.output
    return pb.Candidate(
        index=found.index,
        text=found.text if output.text else "",
        token_ids=found.token_ids if output.token_ids else (),
        logprobs=writer.logprobs(found.token_ids, found.logprobs) if output.logprobs else None,
        finish=None if found.ended is None else finish(found.ended),
        token_count=len(found.token_ids),
    )


def _attributes(
    plan: GenerationPlan, model: ServedModel, *, streams: bool
) -> Mapping[str, str | bool | int | float | None]:
    sampling = plan.sampling
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or None,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "choice_count": plan.candidate_count if plan.candidate_count > 1 else None,
        "stream": streams,
        "response_model": model.name,
        "user": plan.user or None,
        "session_id": plan.session_id or None,
        **{f"tokenwire.label.{key}": value for key, value in plan.labels.items()},
    }
