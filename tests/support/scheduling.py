"""A model without a network, for policy tests: what it answers depends on every KV entry it reads.

An entry's content is a chain over all tokens before it, and a drawn token a function of all entries of its context, so
a wrong block table, a wrong prefix hit, a stale or missing write each lead to other tokens than `generate_alone`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenwire_service.core.events import (
    Admitted,
    Completed,
    EngineEvent,
    Failed,
    Finish,
    FinishReason,
    PromptScored,
    TokenLogprob,
    TokensGenerated,
)
from tokenwire_service.core.params import CacheParams, LogprobsParams, Request, SamplingParams, StoppingParams
from tokenwire_service.scheduling.limits import SchedulerLimits
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, SlotJoin, SlotResult, StepResult

VOCAB_SIZE = 50
HASH_KEY = b"a key for tests, of no value"


def make_limits(
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_sequences: int = 4,
    max_batch_prefill_tokens: int = 16,
    max_total_tokens: int = 64,
    prefix_caching: bool = True,
    ageing_interval_s: float = 5.0,
    num_draft_tokens: int = 0,
    draft_max_batch: int = 4,
    max_decode_slowdown: float = 0.0,
    num_layers: int = 0,
) -> SchedulerLimits:
    return SchedulerLimits(
        num_blocks,
        block_size,
        max_num_sequences,
        max_batch_prefill_tokens,
        max_total_tokens,
        prefix_caching,
        ageing_interval_s,
        num_draft_tokens=num_draft_tokens,
        draft_max_batch=draft_max_batch,
        max_decode_slowdown=max_decode_slowdown,
        num_layers=num_layers,
    )


def rows(output: SchedulerOutput) -> list[tuple[int, int, int, bool]]:
    """(slot, start, number of tokens, whether it samples) of each row of a plan."""
    return [(row.slot, row.start, row.num_tokens, row.samples) for row in output.scheduled]


def make_request(
    request_id: str,
    prompt: tuple[int, ...] = (1, 2, 3),
    max_tokens: int = 4,
    *,
    stop_token_ids: frozenset[int] = frozenset(),
    context_limited: bool = False,
    time_limit_s: float | None = None,
    seed: int = 0,
    num_candidates: int = 1,
    prompt_logprobs: bool = False,
    priority: int = 0,
    arrival_time: float = 0.0,
    deadline: float | None = None,
    queue_deadline: float | None = None,
    salt: str = "",
    bypass: bool = False,
    top_k: int = 0,
    min_tokens: int = 0,
    frequency_penalty: float = 0.0,
    logprobs: bool = False,
) -> Request:
    """The salt also goes into the fake model (through logit_bias), so that a hit across salts changes the tokens.
    A small `top_k` makes texts that repeat themselves: tokens are drawn from 0..top_k-1 then."""
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling=SamplingParams(
            top_k=top_k,
            frequency_penalty=frequency_penalty,
            seed=seed,
            logit_bias=tuple((ord(letter), 0.0) for letter in salt),
        ),
        stopping=StoppingParams(
            max_tokens,
            min_tokens=min_tokens,
            stop_token_ids=stop_token_ids,
            context_limited=context_limited,
            time_limit_s=time_limit_s,
        ),
        num_candidates=num_candidates,
        logprobs=LogprobsParams() if logprobs else None,
        prompt_logprobs=LogprobsParams() if prompt_logprobs else None,
        priority=priority,
        arrival_time=arrival_time,
        deadline=deadline,
        queue_deadline=queue_deadline,
        cache=CacheParams(salt, bypass),
    )


def _entry(previous: int, token_id: int, position: int, sampling: SamplingParams) -> int:
    """KV content; never 0, which means never written."""
    return hash((previous, token_id, position, sampling.logit_bias)) | 1


def _draw(entries: tuple[int, ...], sampling: SamplingParams, candidate_index: int) -> int:
    return hash((entries, sampling.seed, candidate_index)) % (sampling.top_k or VOCAB_SIZE)


def _score(entry: int, token_id: int) -> TokenLogprob:
    return TokenLogprob(-float(hash((entry, token_id)) % 1000), 1)


def generate_alone(request: Request, index: int) -> tuple[tuple[int, ...], FinishReason]:
    """Tokens of one candidate with the machine to itself, and why it ended."""
    entries: list[int] = []
    tokens = list(request.prompt_token_ids)
    while True:
        for position in range(len(entries), len(tokens)):
            entries.append(_entry(entries[-1] if entries else 0, tokens[position], position, request.sampling))
        tokens.append(_draw(tuple(entries), request.sampling, index))
        generated = tuple(tokens[len(request.prompt_token_ids) :])
        if tokens[-1] in request.stopping.stop_token_ids:
            return generated, FinishReason.STOP
        if len(generated) == request.stopping.max_tokens:
            limited = request.stopping.context_limited
            return generated, FinishReason.CONTEXT_LENGTH if limited else FinishReason.MAX_TOKENS


def score_alone(request: Request) -> tuple[TokenLogprob, ...]:
    """Scores of prompt positions 1 on."""
    scores: list[TokenLogprob] = []
    entry = 0
    prompt = request.prompt_token_ids
    for position, token_id in enumerate(prompt[:-1]):
        entry = _entry(entry, token_id, position, request.sampling)
        scores.append(_score(entry, prompt[position + 1]))
    return tuple(scores)


@dataclass
class _Slot:
    join: SlotJoin
    token_ids: list[int]
    block_ids: list[int]


class FakeRunner:
    """Executes plans as a device would: slot state fed by deltas, one KV store, generated tokens its own knowledge.

    All rows of a step read the store as it was before the step (and their own writes), the strictest case; two rows
    that write one address are an error. Guesses are written like any token, those that fail too. A chunk that takes
    several steps is written in the last.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self._block_size = limits.block_size
        self._limits = limits
        self._slots: dict[int, _Slot] = {}
        self._kv: dict[int, int] = {}
        self._passing: dict[int, tuple[int, int, int]] = {}
        """By slot: where its chunk starts, how long it is, how many layers it has seen."""

    def execute(self, output: SchedulerOutput) -> StepResult:
        for slot in output.leaves:
            del self._slots[slot]
            self._passing.pop(slot, None)
        for join in output.joins:
            assert join.slot not in self._slots, "a join into an occupied slot"
            assert 0 <= join.slot < self._limits.num_slots
            self._slots[join.slot] = _Slot(join, list(join.token_ids), list(join.block_ids))
        slots = [row.slot for row in output.scheduled]
        assert len(slots) == len(set(slots)), "a slot is scheduled twice"
        num_tokens = sum(row.num_tokens for row in output.scheduled if row.layers is None)
        assert num_tokens <= self._limits.max_batch_prefill_tokens, "over the token budget"
        writes: dict[int, int] = {}
        results = [self._compute(row, writes) for row in output.scheduled if self._goes_through(row)]
        self._kv.update(writes)
        return StepResult(output.step_id, tuple(results))

    def _goes_through(self, row: ScheduledSlot) -> bool:
        """Whether the row's tokens have seen all layers now."""
        before = self._passing.pop(row.slot, (row.start, row.num_tokens, 0))
        span = row.layers
        if span is None:
            assert before == (row.start, row.num_tokens, 0), "a chunk is left on its way"
            return True
        assert before == (row.start, row.num_tokens, span.first), "a chunk goes on elsewhere than it was left"
        assert span.first < span.end <= self._limits.num_layers
        assert span.completes == (span.end == self._limits.num_layers)
        assert not row.samples
        assert not row.score_prompt
        if not span.completes:
            self._passing[row.slot] = (row.start, row.num_tokens, span.end)
        return span.completes

    def _compute(self, row: ScheduledSlot, all_writes: dict[int, int]) -> SlotResult:
        slot = self._slots[row.slot]
        slot.block_ids.extend(row.new_block_ids)
        end = row.start + row.num_tokens
        assert row.num_tokens > 0
        guesses = row.draft_token_ids
        assert end <= len(slot.token_ids) + len(guesses), "a token is computed before it is drawn"
        assert row.samples == (end == len(slot.token_ids) + len(guesses))
        assert not guesses or row.num_tokens == 1 + len(guesses)
        token_ids = [*slot.token_ids, *guesses]
        writes: dict[int, int] = {}
        entries = [self._kv.get(self._address(slot, position), 0) for position in range(row.start)]
        for position in range(row.start, end):
            previous = entries[-1] if entries else 0
            entries.append(_entry(previous, token_ids[position], position, slot.join.sampling))
            writes[self._address(slot, position)] = entries[-1]
        assert not writes.keys() & all_writes.keys(), "two rows write one address"
        all_writes.update(writes)
        scores = self._scores(slot, row, entries) if row.score_prompt else ()
        if not row.samples:
            return SlotResult(row.slot, prompt_offset=row.start + 1, prompt_logprobs=scores)
        drawn = self._verify(slot, entries, guesses)
        slot.token_ids.extend(drawn)
        return SlotResult(row.slot, drawn, prompt_offset=row.start + 1, prompt_logprobs=scores)

    def _verify(self, slot: _Slot, entries: list[int], guesses: tuple[int, ...]) -> tuple[int, ...]:
        """The guesses that equal what is drawn in their place, and the token drawn after them."""
        drawn: list[int] = []
        for num_known in range(len(entries) - len(guesses), len(entries) + 1):
            drawn.append(_draw(tuple(entries[:num_known]), slot.join.sampling, slot.join.candidate_index))
            if guesses[len(drawn) - 1 : len(drawn)] != (drawn[-1],):
                break
        return tuple(drawn)

    def _scores(self, slot: _Slot, row: ScheduledSlot, entries: list[int]) -> tuple[TokenLogprob, ...]:
        last = min(row.start + row.num_tokens, slot.join.num_prompt_tokens - 1)
        return tuple(_score(entries[p - 1], slot.token_ids[p]) for p in range(row.start + 1, last + 1))

    def _address(self, slot: _Slot, position: int) -> int:
        return slot.block_ids[position // self._block_size] * self._block_size + position % self._block_size


@dataclass
class Transcript:
    """What was told about one request; `take` asserts the order events may come in."""

    admitted: Admitted | None = None
    scores: list[TokenLogprob] = field(default_factory=list)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finishes: dict[int, Finish] = field(default_factory=dict)
    ending: Completed | Failed | None = None

    def take(self, event: EngineEvent) -> None:
        assert self.ending is None, "an event after the end"
        match event:
            case Admitted():
                assert self.admitted is None
                self.admitted = event
            case PromptScored(offset=offset, logprobs=logprobs):
                assert self.admitted is not None
                assert offset == len(self.scores) + 1
                self.scores.extend(logprobs)
            case TokensGenerated(index=index, token_ids=token_ids, finish=finish):
                assert self.admitted is not None
                assert index not in self.finishes, "a token after the candidate's end"
                self.tokens.setdefault(index, []).extend(token_ids)
                if finish is not None:
                    self.finishes[index] = finish
            case Completed():
                assert self.admitted is not None
                self.ending = event
            case Failed():
                self.ending = event
