"""Neutral events become the contract's messages: one event of a stream each, or one unary answer of them all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import types_pb2
from tokenwire_service.core.events import TokenLogprob
from tokenwire_service.rpc.convert.plain_delta import PlainDelta
from tokenwire_service.rpc.events import (
    CandidateDelta,
    CandidateEnded,
    Done,
    GenerationEvent,
    PromptChunk,
    ResponseFacts,
    Started,
    UsageSoFar,
)
from tokenwire_service.rpc.plan import OutputPlan
from tokenwire_service.text.tokenizer import Tokenizer

GENERATED = PlainDelta(pb.GenerateStreamResponse, "delta")
SAID = PlainDelta(pb.ChatStreamResponse, "content")


def duration(seconds: float) -> Duration:
    """Seconds as a Duration, never negative."""
    message = Duration()
    message.FromNanoseconds(max(round(seconds * 1e9), 0))
    return message


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a Timestamp."""
    message = Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


class ResponseWriter:
    """Knows what one request asked to see."""

    def __init__(self, output: OutputPlan, tokenizer: Tokenizer) -> None:
        self._output = output
        self._tokenizer = tokenizer
        self.plain = output.text and not output.token_ids and output.logprobs is None
        """Whether a delta tells nothing but text."""

    def generate_event(self, event: GenerationEvent) -> pb.GenerateStreamResponse | bytes:
        """The event of a GenerateStream, or its bytes."""
        if self.plain and isinstance(event, CandidateDelta) and not event.index and event.usage is None:
            raw = GENERATED.encode(event.text, len(event.token_ids))
            if raw is not None:
                return raw
        message = pb.GenerateStreamResponse()
        match event:
            case CandidateDelta():
                self._fill(message.delta, event)
            case Started():
                message.started.CopyFrom(self.started(event))
            case PromptChunk():
                message.prompt.CopyFrom(self.prompt(event))
            case CandidateEnded():
                message.candidate_finished.CopyFrom(self.candidate_finished(event))
            case Done():
                message.completed.CopyFrom(self.completed(event))
        return message

    def chat_event(self, event: GenerationEvent) -> pb.ChatStreamResponse | bytes:
        """The event of a ChatStream, or its bytes."""
        if self.plain and isinstance(event, CandidateDelta) and not event.index and event.usage is None:
            raw = SAID.encode(event.text, len(event.token_ids))
            if raw is not None:
                return raw
        message = pb.ChatStreamResponse()
        match event:
            case CandidateDelta():
                self._fill(message.content, event)
            case Started():
                message.started.CopyFrom(self.started(event))
            case PromptChunk():
                message.prompt.CopyFrom(self.prompt(event))
            case CandidateEnded():
                message.candidate_finished.CopyFrom(self.candidate_finished(event))
            case Done():
                message.completed.CopyFrom(self.completed(event))
        return message

    def started(self, event: Started) -> pb.StreamStarted:
        return pb.StreamStarted(
            info=info(event.facts),
            prompt_tokens=event.prompt_tokens,
            cached_prompt_tokens=event.cached_prompt_tokens,
            queue_time=duration(event.queue_time_s),
        )

    def prompt(self, chunk: PromptChunk) -> pb.PromptDetails:
        return pb.PromptDetails(
            offset=chunk.offset,
            token_ids=chunk.token_ids if self._output.prompt_token_ids else (),
            logprobs=self.logprobs(chunk.token_ids, chunk.logprobs) if self._output.prompt_logprobs else None,
        )

    def _fill(self, message: pb.TextDelta, event: CandidateDelta) -> None:
        message.token_count = len(event.token_ids)
        if event.index:
            message.index = event.index
        if self._output.text:
            message.text = event.text
        if self._output.token_ids:
            message.token_ids.extend(event.token_ids)
        if self._output.logprobs:
            message.logprobs.CopyFrom(self.logprobs(event.token_ids, event.logprobs))
        if event.usage is not None:
            message.usage.CopyFrom(usage(event.usage))

    def candidate_finished(self, event: CandidateEnded) -> pb.CandidateFinished:
        return pb.CandidateFinished(index=event.index, finish=finish(event))

    def completed(self, event: Done) -> pb.StreamCompleted:
        return pb.StreamCompleted(usage=usage(event.usage), timing=timing(event))

    def logprobs(self, token_ids: Sequence[int], rows: Sequence[TokenLogprob | None]) -> types_pb2.TokenLogprobs:
        """The columns of `rows`, one for each token; None is a position that has no log-probability."""
        message = types_pb2.TokenLogprobs(
            token_ids=token_ids,
            logprobs=[math.nan if row is None else row.logprob for row in rows],
            token_bytes=self._bytes(token_ids),
            ranks=[0 if row is None else row.rank for row in rows],
            special=[token_id in self._tokenizer.special_token_ids for token_id in token_ids],
        )
        if any(row is not None and row.top_token_ids for row in rows):
            message.alternatives.extend(self._alternatives(row) for row in rows)
        return message

    def _alternatives(self, row: TokenLogprob | None) -> types_pb2.Alternatives:
        if row is None:
            return types_pb2.Alternatives()
        return types_pb2.Alternatives(
            token_ids=row.top_token_ids,
            logprobs=row.top_logprobs,
            token_bytes=self._bytes(row.top_token_ids),
            ranks=row.top_ranks,
        )

    def _bytes(self, token_ids: Iterable[int]) -> list[bytes]:
        return [self._tokenizer.token_bytes(token_id) for token_id in token_ids]


def info(facts: ResponseFacts) -> types_pb2.ResponseInfo:
    return types_pb2.ResponseInfo(
        response_id=facts.response_id,
        model=facts.model,
        fingerprint=facts.fingerprint,
        create_time=timestamp(facts.create_time),
        seed=facts.seed,
    )


def finish(event: CandidateEnded) -> types_pb2.Finish:
    reason = types_pb2.FinishReason.ValueType(int(event.reason))
    if event.stop is not None:
        return types_pb2.Finish(reason=reason, stop=event.stop)
    if event.stop_token_id is not None:
        return types_pb2.Finish(reason=reason, stop_token_id=event.stop_token_id)
    return types_pb2.Finish(reason=reason)


def usage(counts: UsageSoFar) -> types_pb2.Usage:
    return types_pb2.Usage(
        prompt_tokens=counts.prompt_tokens,
        cached_prompt_tokens=counts.cached_prompt_tokens,
        completion_tokens=counts.completion_tokens,
        draft_tokens=counts.draft_tokens,
        accepted_draft_tokens=counts.accepted_draft_tokens,
    )


def timing(done: Done) -> types_pb2.Timing:
    return types_pb2.Timing(
        queue_time=duration(done.queue_time_s),
        time_to_first_token=duration(done.first_token_time_s),
        total_time=duration(done.total_time_s),
        preemptions=done.preemptions,
    )
