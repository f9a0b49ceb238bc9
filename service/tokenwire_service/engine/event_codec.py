"""Events of one step ↔ the columns of StepOutput. Kinds are grouped; within a request their order is the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.core.events import (
    Admitted,
    Completed,
    EngineEvent,
    Failed,
    FailureReason,
    Finish,
    FinishReason,
    PromptScored,
    TokenLogprob,
    TokensGenerated,
)

KeyedEvent = tuple[int, EngineEvent]


def events_to_pb(events: Iterable[EngineEvent]) -> pb.StepOutput:
    """Request ids are keys in decimal."""
    output = pb.StepOutput()
    for event in events:
        key = int(event.request_id)
        match event:
            case TokensGenerated():
                _add_tokens(output.tokens, key, event)
            case Admitted():
                output.admissions.add(
                    key=key, cached_prompt_tokens=event.cached_prompt_tokens, queue_time_s=event.queue_time_s
                )
            case PromptScored():
                _add_logprobs(output.prompt_scores.add(key=key, offset=event.offset).logprobs, event.logprobs)
            case Completed():
                _add_completion(output, key, event)
            case Failed():
                output.failures.add(
                    key=key,
                    reason=pb.FailureReason.Name(event.reason),  # type: ignore[arg-type]
                    message=event.message,
                    generated_tokens=event.generated_tokens,
                )
    return output


def events_from_pb(output: pb.StepOutput, request_ids: dict[int, str]) -> Iterator[KeyedEvent]:
    """Events with their keys, under the callers' own request ids. Those of keys not in `request_ids` are left out."""
    for admission in output.admissions:
        if (request_id := request_ids.get(admission.key)) is not None:
            yield admission.key, Admitted(request_id, admission.cached_prompt_tokens, admission.queue_time_s)
    for scores in output.prompt_scores:
        if (request_id := request_ids.get(scores.key)) is not None:
            yield scores.key, PromptScored(request_id, scores.offset, tuple(_logprobs(scores.logprobs)))
    columns = output.tokens
    if columns.finishes or columns.logprob_rows or not _all_one(columns):
        yield from _tokens(columns, request_ids)
    else:
        for key, index, token_id in zip(columns.keys, columns.indexes, columns.token_ids, strict=True):
            if (request_id := request_ids.get(key)) is not None:
                yield key, TokensGenerated(request_id, index, (token_id,))
    for completion in output.completions:
        if (request_id := request_ids.get(completion.key)) is not None:
            yield completion.key, _completion(completion, request_id)
    for failure in output.failures:
        if (request_id := request_ids.get(failure.key)) is not None:
            reason = FailureReason(failure.reason)
            yield failure.key, Failed(request_id, reason, failure.message, failure.generated_tokens)


def _add_tokens(columns: pb.TokenColumns, key: int, event: TokensGenerated) -> None:
    row = len(columns.keys)
    columns.keys.append(key)
    columns.indexes.append(event.index)
    columns.token_counts.append(len(event.token_ids))
    columns.token_ids.extend(event.token_ids)
    if event.logprobs:
        columns.logprob_rows.append(row)
        _add_logprobs(columns.logprobs, event.logprobs)
    if event.finish is not None:
        finish = columns.finishes.add(row=row, reason=pb.FinishReason.Name(event.finish.reason))  # type: ignore[arg-type]
        if event.finish.stop_token_id is not None:
            finish.stop_token_id = event.finish.stop_token_id


def _add_logprobs(columns: pb.LogprobColumns, logprobs: tuple[TokenLogprob, ...]) -> None:
    for token in logprobs:
        columns.logprobs.append(token.logprob)
        columns.ranks.append(token.rank)
        columns.top_counts.append(len(token.top_token_ids))
        columns.top_token_ids.extend(token.top_token_ids)
        columns.top_logprobs.extend(token.top_logprobs)
        columns.top_ranks.extend(token.top_ranks)


def _add_completion(output: pb.StepOutput, key: int, event: Completed) -> None:
    output.completions.add(
        key=key,
        prompt_tokens=event.prompt_tokens,
        cached_prompt_tokens=event.cached_prompt_tokens,
        completion_tokens=event.completion_tokens,
        queue_time_s=event.queue_time_s,
        prefill_time_s=event.prefill_time_s,
        total_time_s=event.total_time_s,
        num_preemptions=event.num_preemptions,
        draft_tokens=event.draft_tokens,
        accepted_draft_tokens=event.accepted_draft_tokens,
    )


def _completion(message: pb.Completion, request_id: str) -> Completed:
    return Completed(
        request_id=request_id,
        prompt_tokens=message.prompt_tokens,
        cached_prompt_tokens=message.cached_prompt_tokens,
        completion_tokens=message.completion_tokens,
        queue_time_s=message.queue_time_s,
        prefill_time_s=message.prefill_time_s,
        total_time_s=message.total_time_s,
        num_preemptions=message.num_preemptions,
        draft_tokens=message.draft_tokens,
        accepted_draft_tokens=message.accepted_draft_tokens,
    )


def _tokens(columns: pb.TokenColumns, request_ids: dict[int, str]) -> Iterator[KeyedEvent]:
    finishes = {finish.row: finish for finish in columns.finishes}
    with_logprobs = frozenset(columns.logprob_rows)
    logprobs = _logprobs(columns.logprobs)
    token_ids = iter(columns.token_ids)
    for row, (key, index, count) in enumerate(zip(columns.keys, columns.indexes, columns.token_counts, strict=True)):
        row_tokens = tuple(islice(token_ids, count))
        row_logprobs = tuple(islice(logprobs, count)) if row in with_logprobs else ()
        request_id = request_ids.get(key)
        if request_id is not None:
            yield key, TokensGenerated(request_id, index, row_tokens, row_logprobs, _finish(finishes.get(row)))


def _all_one(columns: pb.TokenColumns) -> bool:
    """Whether every row has one token: what a step of decoding is."""
    counts = list(columns.token_counts)
    return counts.count(1) == len(counts)


def _finish(message: pb.CandidateFinish | None) -> Finish | None:
    if message is None:
        return None
    stop_token_id = message.stop_token_id if message.HasField("stop_token_id") else None
    return Finish(FinishReason(message.reason), stop_token_id)


def _logprobs(columns: pb.LogprobColumns) -> Iterator[TokenLogprob]:
    start = 0
    for logprob, rank, count in zip(columns.logprobs, columns.ranks, columns.top_counts, strict=True):
        end = start + count
        yield TokenLogprob(
            logprob=logprob,
            rank=rank,
            top_token_ids=tuple(columns.top_token_ids[start:end]),
            top_logprobs=tuple(columns.top_logprobs[start:end]),
            top_ranks=tuple(columns.top_ranks[start:end]),
        )
        start = end
