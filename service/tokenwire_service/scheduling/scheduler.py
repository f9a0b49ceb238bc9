"""The policy: which tokens of which sequences are computed in each step.

There is one invariant and no phases: a sequence's `num_computed_tokens` chases its `num_tokens` under a token budget.
Decodes come first, then prefills that run, then waiting sequences by rank (see `make_request_state`).

Pipelining. `schedule` for step N+1 may be called before `update` for step N; steps must be executed, and updated, in
the order they were scheduled. A plan names positions, never generated tokens: a token being drawn is only a
`num_pending_tokens` placeholder, and the runner already holds it in its slot. What a sequence's last steps in flight
still deliver after it ended (a stop is seen one step late) or was preempted is dropped by its `epoch`. Its blocks
return to the pool at once, which is safe: the stale write comes from a step planned earlier, hence executed earlier
than any step of the block's next owner, and it only touches positions from `num_confirmed_tokens` on, which no
published block holds, because blocks are published by `update`, after they were computed.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from operator import attrgetter

from tokenwire_service.core.events import (
    EngineEvent,
    EngineStats,
    FailureReason,
    Finish,
    FinishReason,
    TokenLogprob,
)
from tokenwire_service.core.params import Request
from tokenwire_service.errors import InvalidParameterError
from tokenwire_service.scheduling.block_manager import BlockManager
from tokenwire_service.scheduling.limits import SchedulerLimits
from tokenwire_service.scheduling.long_prompts import LongPrompts
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, SlotResult, StepResult
from tokenwire_service.scheduling.plan import StepInFlight, StepPlan, join_of
from tokenwire_service.scheduling.request_book import RequestBook, Timer
from tokenwire_service.scheduling.sequence import RequestState, Sequence, SequenceStatus, make_request_state
from tokenwire_service.scheduling.speculation import Speculation
from tokenwire_service.scheduling.waiting_queue import WaitingQueue

_by_rank = attrgetter("rank")


class Scheduler:
    """Owns every Sequence and, through its BlockManager, every block. Not thread-safe: one thread owns it.

    Events gather in one ordered outbox, which `update` and `take_events` empty. Calls that carry no time act at the
    latest time any call carried.
    """

    def __init__(self, limits: SchedulerLimits, *, model_name: str = "", hash_key: bytes | None = None) -> None:
        self._limits = limits
        self._blocks = BlockManager(
            limits.num_blocks,
            limits.block_size,
            model_name=model_name,
            prefix_caching=limits.prefix_caching,
            hash_key=hash_key,
        )
        self._book = RequestBook()
        self._speculation = Speculation(limits, self._blocks, self._book)
        self._long_prompts = LongPrompts(limits)
        self._waiting = WaitingQueue(self._blocks, limits.block_size)
        self._running: list[Sequence] = []
        """Sorted by rank: the last one is preempted first."""
        self._free_slots = list(range(limits.num_slots))
        self._leaves: list[int] = []
        self._in_flight: deque[StepInFlight] = deque()
        self._num_added = 0
        self._num_scheduled = 0
        self._num_steps = 0
        self._num_preemptions = 0
        self._num_prompt_tokens = 0
        self._step_time_s = 0.0
        self._updated_time = 0.0

    def add(self, request: Request, now: float) -> None:
        """Queue a request. Raises InvalidParameterError for one that could never run, or whose id is in use."""
        self._book.now = now
        if self._book.get(request.request_id) is not None:
            raise InvalidParameterError.at("request_id", "is in use by a request that has not ended; choose another")
        self._limits.check(request)
        state = make_request_state(request, self._num_added, self._limits.ageing_interval_s)
        self._num_added += 1
        self._book.open(state)
        ready = state.sequences[:1] if self._shares_prompt(state) else state.sequences
        for sequence in ready:
            self._waiting.push(sequence)

    def abort(self, request_id: str, reason: FailureReason | None) -> bool:
        """End a request now: `Failed` with `reason`, or silently when None (its caller went away).
        Returns whether it was live."""
        state = self._book.get(request_id)
        if state is None:
            return False
        self._withdraw_all(state)
        if reason is None:
            self._book.forget(state)
        else:
            self._book.fail(state, reason)
        return True

    def finish_candidate(self, request_id: str, index: int) -> None:
        """End one candidate early and silently; `Completed` follows when it was the last. No-op when it has ended."""
        state = self._book.get(request_id)
        if state is None or not 0 <= index < len(state.sequences):
            return
        sequence = state.sequences[index]
        if sequence.status is not SequenceStatus.ENDED:
            self._end(sequence)

    def drop_expired(self, now: float) -> None:
        """End every request whose time has come; `schedule` does it too, an idle engine calls this."""
        self._book.now = now
        while (due := self._book.next_due()) is not None and due[0] <= now:
            _, state, timer = due
            if timer is Timer.TIME_LIMIT:
                for sequence in state.live_sequences():
                    self._book.finish_reported(sequence, Finish(FinishReason.TIME_LIMIT))
                    self._end(sequence)
                continue
            self._withdraw_all(state)
            is_queue = timer is Timer.QUEUE_DEADLINE
            self._book.fail(state, FailureReason.QUEUE_TIMEOUT if is_queue else FailureReason.DEADLINE_EXCEEDED)

    def schedule(self, now: float) -> SchedulerOutput:
        """Plan the next step and count its tokens as computed.

        An output without rows is no step in flight (`update` takes it, and only returns events), but its leaves must
        reach the runner all the same: their slots may be joined in the next output.
        """
        self.drop_expired(now)
        plan = StepPlan(self._limits.max_batch_prefill_tokens, self._limits.max_batch_prefill_tokens)
        prefills = self._plan_decodes(plan)
        head = self._waiting.head()
        self._long_prompts.bound(plan, prefills if head is None else [*prefills, head])
        for sequence in prefills:
            self._prefill(plan, sequence)
        self._plan_joins(plan)
        return self._commit(plan)

    def update(self, output: SchedulerOutput, result: StepResult, now: float) -> list[EngineEvent]:
        """Take in what executing `output` gave, and return all events since they were last taken.

        Raises ValueError when `output` is not the oldest one in flight, `result` is another step's, or a row that
        samples has not exactly one token.
        """
        self._book.now = now
        if output.scheduled:
            self._finish_step(output, result, now)
        return self._book.take_events()

    def take_events(self) -> list[EngineEvent]:
        """Events of calls other than `update`, for an engine that has no step to update."""
        return self._book.take_events()

    def request_ids(self) -> list[str]:
        """Live requests, oldest first."""
        return [state.request.request_id for state in self._book.states()]

    def has_work(self) -> bool:
        """True while a request is live or a step in flight: the engine must go on stepping."""
        return bool(len(self._book) or self._in_flight)

    def wants_confirmed_tokens(self) -> bool:
        """True when the next step would do better if every step in flight were updated first: guesses go on from a text
        that is known. An engine that runs ahead waits then; one that does not loses speed and nothing else."""
        return self._speculation.active(len(self._running)) and any(
            self._speculation.awaits_tokens(sequence) for sequence in self._running
        )

    def next_deadline(self) -> float | None:
        """When `drop_expired` next has something to do, if nothing else happens."""
        due = self._book.next_due()
        return None if due is None else due[0]

    def flush_cache(self) -> None:
        """Forget every cached prefix that no running sequence holds."""
        self._blocks.flush()

    def stats(self) -> EngineStats:
        """`num_running` and `num_waiting` count sequences; a candidate that waits for its leader is waiting."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=self._book.num_live_candidates - len(self._running),
            waiting_tokens=self._waiting.num_tokens,
            num_blocks=self._blocks.num_blocks,
            num_free_blocks=self._blocks.num_free_blocks,
            num_cached_blocks=self._blocks.num_cached_blocks,
            block_size=self._blocks.block_size,
            num_steps=self._num_steps,
            prefix_query_tokens=self._blocks.num_query_tokens,
            prefix_hit_tokens=self._blocks.num_hit_tokens,
            prompt_tokens=self._num_prompt_tokens,
            generated_tokens=self._book.num_generated_tokens,
            preemptions=self._num_preemptions,
            step_time_s=self._step_time_s,
            draft_tokens=self._book.num_draft_tokens,
            accepted_draft_tokens=self._book.num_accepted_draft_tokens,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when any two records disagree. O(blocks + sequences)."""
        self._blocks.check_integrity(self._running)
        used = [sequence.slot for sequence in self._running]
        assert sorted(used + self._free_slots) == list(range(self._limits.num_slots)), "slots lost or used twice"
        assert self._running == sorted(self._running, key=_by_rank), "running sequences out of order"
        live = [sequence for state in self._book.states() for sequence in state.live_sequences()]
        by_status = {status: [s for s in live if s.status is status] for status in SequenceStatus}
        assert set(by_status[SequenceStatus.RUNNING]) == set(self._running), "running sequences lost"
        self._waiting.check_integrity(by_status[SequenceStatus.WAITING])
        assert self._book.num_live_candidates == len(live), "live candidates miscounted"
        for state in self._book.states():
            assert state.num_live == len(state.live_sequences()) > 0, "a request without live candidates"
        for sequence in live:
            sequence.check_integrity()

    def _shares_prompt(self, state: RequestState) -> bool:
        """True when candidates after the first gain by waiting for the first one's prompt blocks."""
        request = state.request
        has_full_block = len(request.prompt_token_ids) > self._limits.block_size
        return self._limits.prefix_caching and not request.cache.bypass and has_full_block

    def _release_held(self, leader: Sequence) -> None:
        """Let the candidates that waited for `leader`'s prompt go on, with its digests."""
        num_shared = leader.num_prompt_tokens // self._limits.block_size
        for sequence in leader.state.sequences:
            if sequence.status is SequenceStatus.HELD:
                sequence.block_hashes = leader.block_hashes[:num_shared]
                self._waiting.push(sequence)

    def _plan_decodes(self, plan: StepPlan) -> list[Sequence]:
        """Add a row for every running sequence with one token to go; return those with more, the prefills."""
        prefills: list[Sequence] = []
        num_running = len(self._running)
        drafts = self._speculation.active(num_running)
        # Preempting shortens the list, but only beyond the sequence at hand.
        for sequence in self._running:
            num_tokens = sequence.num_tokens
            if num_tokens <= sequence.num_prompt_tokens or num_tokens - sequence.num_computed_tokens > 1:
                prefills.append(sequence)
            elif num_tokens < sequence.max_num_tokens and not sequence.num_draft_tokens:
                new_block_ids = () if num_tokens <= sequence.capacity else self._make_room(sequence, num_tokens)
                if new_block_ids is None:
                    continue
                if drafts:
                    guesses, more_block_ids = self._speculation.draft(sequence, plan.budget, num_running)
                    plan.decode(sequence, new_block_ids + more_block_ids, guesses)
                else:
                    plan.decode(sequence, new_block_ids)
        return prefills

    def _make_room(self, sequence: Sequence, num_tokens: int) -> tuple[int, ...] | None:
        """Blocks for `num_tokens`, taken from those that rank behind if need be. None when none rank behind: the
        sequence keeps what it has and sits this step out. The first in rank always finds room, so work goes on."""
        while (new_block_ids := self._blocks.extend_table(sequence, num_tokens)) is None:
            victim = self._running[-1]
            if victim is sequence:
                return None
            self._preempt(victim)
        return new_block_ids

    def _preempt(self, sequence: Sequence) -> None:
        self._num_preemptions += 1
        sequence.state.num_preemptions += 1
        self._vacate(sequence, SequenceStatus.WAITING)
        self._waiting.push(sequence)

    def _plan_joins(self, plan: StepPlan) -> None:
        while plan.budget and self._free_slots and (sequence := self._waiting.head()) is not None:
            # One block to spare for each that runs, so that joining does not soon preempt.
            if not self._blocks.open_table(sequence, num_spare=len(self._running)):
                return
            self._waiting.pop()
            sequence.status = SequenceStatus.RUNNING
            sequence.slot = heapq.heappop(self._free_slots)
            insort(self._running, sequence, key=_by_rank)
            if sequence.state.admitted_time is None:
                self._num_prompt_tokens += sequence.num_prompt_tokens
                self._book.admit(sequence.state, sequence.num_computed_tokens)
            plan.joins.append(join_of(sequence))
            self._prefill(plan, sequence)

    def _prefill(self, plan: StepPlan, sequence: Sequence) -> None:
        """Compute what the step has room for of its tokens."""
        if self._long_prompts.owns(sequence):
            self._long_prompts.prefill(plan, sequence)
        elif num_tokens := min(plan.budget, sequence.num_tokens - sequence.num_computed_tokens):
            plan.num_other_tokens += num_tokens
            plan.compute(sequence, num_tokens)

    def _commit(self, plan: StepPlan) -> SchedulerOutput:
        step_id = self._num_scheduled
        self._num_scheduled += 1
        if plan.rows:
            self._num_steps += 1
            self._in_flight.append(StepInFlight(step_id, self._book.now, plan.load, plan.owners))
        leaves, self._leaves = tuple(self._leaves), []
        return SchedulerOutput(step_id, leaves, tuple(plan.joins), tuple(plan.rows))

    def _finish_step(self, output: SchedulerOutput, result: StepResult, now: float) -> None:
        if not self._in_flight or not self._in_flight[0].step_id == output.step_id == result.step_id:
            raise ValueError(f"step {output.step_id} with results of {result.step_id}: not the oldest step in flight")
        step = self._in_flight.popleft()
        self._step_time_s = now - step.start_time
        self._long_prompts.learn(step.load, now - max(step.start_time, self._updated_time))
        self._updated_time = now
        results = {slot_result.slot: slot_result for slot_result in result.slots}
        for row, (sequence, epoch) in zip(output.scheduled, step.owners, strict=True):
            if sequence.epoch == epoch:
                self._confirm(row, sequence, results.get(row.slot))

    def _confirm(self, row: ScheduledSlot, sequence: Sequence, result: SlotResult | None) -> None:
        """A row of a sequence still in the slot it was planned for was computed."""
        if result is not None and result.failure:
            self._withdraw_all(sequence.state)
            self._book.fail(sequence.state, FailureReason.ENGINE_FAILURE, result.failure)
            return
        if row.layers is not None and not row.layers.completes:
            return
        if row.draft_token_ids:
            drawn = () if result is None else result.token_ids
            num_taken, finish = self._speculation.confirm(row, sequence, drawn)
            self._tell(sequence, drawn[:num_taken], (), finish)
            return
        sequence.num_confirmed_tokens = end = row.start + row.num_tokens
        if end - sequence.num_published_tokens >= self._limits.block_size:
            self._blocks.publish(sequence)
        if row.start < sequence.num_prompt_tokens:
            if row.score_prompt and result is not None:
                self._book.prompt_scored(sequence, result.prompt_offset, result.prompt_logprobs)
            if end >= sequence.num_prompt_tokens:
                self._release_held(sequence)
        if row.samples:
            if result is None or len(result.token_ids) != 1:
                raise ValueError(f"slot {row.slot}: a row that samples without a draft brings exactly one token")
            finish = sequence.append_token(result.token_ids[0])
            self._tell(sequence, result.token_ids, result.logprobs, finish)

    def _tell(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        finish: Finish | None,
    ) -> None:
        self._book.tokens_generated(sequence, token_ids, logprobs, finish)
        if finish is not None:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        """One candidate ends well."""
        self._withdraw(sequence)
        state = sequence.state
        self._book.end_candidate(state)
        if state.live and all(s.status is SequenceStatus.HELD for s in state.live_sequences()):
            self._waiting.push(state.live_sequences()[0])

    def _withdraw_all(self, state: RequestState) -> None:
        for sequence in state.live_sequences():
            self._withdraw(sequence)

    def _withdraw(self, sequence: Sequence) -> None:
        """Take a live sequence out of batch and queue; its blocks are free on return."""
        if sequence.status is SequenceStatus.RUNNING:
            self._vacate(sequence, SequenceStatus.ENDED)
            return
        if sequence.status is SequenceStatus.WAITING:
            self._waiting.end(sequence)
        sequence.status = SequenceStatus.ENDED

    def _vacate(self, sequence: Sequence, status: SequenceStatus) -> None:
        self._running.remove(sequence)
        self._blocks.close_table(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        self._leaves.append(sequence.slot)
        sequence.leave_slot(status)
