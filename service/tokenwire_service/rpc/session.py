"""One generation from admission to its end, as neutral events. Unary calls and streams share this path."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from tokenwire_service.core.events import Admitted, Completed, EngineEvent, Failed, PromptScored, TokensGenerated
from tokenwire_service.engine.client import EngineClient, RequestStream
from tokenwire_service.errors import EngineFailureError
from tokenwire_service.rpc.admission import Admission, Ticket
from tokenwire_service.rpc.call import Call
from tokenwire_service.rpc.candidate import Candidate
from tokenwire_service.rpc.cutter import DeltaCutter
from tokenwire_service.rpc.events import (
    CandidateDelta,
    Done,
    GenerationEvent,
    ResponseFacts,
    Started,
    UsageSoFar,
)
from tokenwire_service.rpc.failures import deadline_error, failure_error
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.plan import GenerationPlan, tokens_per_event
from tokenwire_service.rpc.prompt_details import PromptDetailer
from tokenwire_service.rpc.prompts import PromptReader
from tokenwire_service.rpc.request import engine_request, stopping_params


@dataclass(frozen=True, slots=True)
class Door:
    """What every generation needs of the server."""

    admission: Admission
    prompts: PromptReader
    max_time_limit_s: float


@asynccontextmanager
async def generation(
    call: Call, plan: GenerationPlan, model: ServedModel, engine: EngineClient, fingerprint: str, door: Door
) -> AsyncGenerator[Session]:
    """Admit and submit; what happens is the session's to tell. Leaving the context ends the request at the engine.

    Raises TokenwireError.
    """
    limits = model.limits
    with door.admission.enter(limits.queue_tokens) as ticket:
        prompt = await door.prompts.tokens(plan, model)
        stopping = stopping_params(plan.stopping, len(prompt), limits, plan.prompt.field)
        call.record.prompt_tokens = len(prompt)
        ticket.queue(len(prompt))
        deadline = min(call.deadline or math.inf, call.arrival_time + door.max_time_limit_s)
        if time.monotonic() >= deadline:
            raise deadline_error(0)
        facts = ResponseFacts(response_id(), model.name, fingerprint, call.create_time, plan.sampling.seed)
        call.record.response_id = facts.response_id
        call.telemetry.attributes(response_id=facts.response_id, max_tokens=stopping.max_tokens, seed=facts.seed)
        request = engine_request(plan, facts.response_id, prompt, stopping, call.arrival_time, deadline)
        stream = engine.submit(request)
        session = Session(call, plan, model, facts, prompt, stream, ticket, door.admission)
        try:
            yield session
        finally:
            session.close()


def response_id() -> str:
    """A new id, unique across servers."""
    return f"tw-{secrets.token_hex(12)}"


class Session:
    """Follows one submitted request."""

    def __init__(
        self,
        call: Call,
        plan: GenerationPlan,
        model: ServedModel,
        facts: ResponseFacts,
        prompt: tuple[int, ...],
        stream: RequestStream,
        ticket: Ticket,
        admission: Admission,
    ) -> None:
        self._call = call
        self._telemetry = call.telemetry
        self._plan = plan
        self._facts = facts
        self._prompt = prompt
        self._stream = stream
        self._ticket = ticket
        self._admission = admission
        self._candidates = [Candidate(index, plan, model.tokenizer, prompt) for index in range(plan.best_of)]
        self._details = PromptDetailer(prompt, plan.output)
        self._cutter = DeltaCutter(plan.events, tokens_per_event(plan.output.logprobs))
        self._pending: asyncio.Future[Sequence[EngineEvent]] | None = None
        self._cached_tokens = 0
        self._queue_time_s = 0.0
        self._first_token_time_s: float | None = None
        self._only = self._candidates[0] if plan.best_of == 1 and not plan.events.usage else None
        """The candidate whose tokens may take the short way."""
        self._grown: set[int] = set()
        self._num_told = 0
        self.done = False
        """Whether `Done` was told."""

    async def next(self) -> list[GenerationEvent]:
        """What happened since the last time, as the engine tells it; merged, when that was a while ago.

        Empty after `Done`. Raises TokenwireError.
        """
        events: list[GenerationEvent] = []
        while not events and not self.done:
            at_once = self._pending is None and self._cutter.due() is None
            events = self._digest(await (self._stream.take() if at_once else self._take_in_time()))
        return events

    @property
    def timed(self) -> bool:
        """Whether deltas are held back for a time, so that something may happen without news."""
        return self._cutter.holds_back

    def notify(self, callback: Callable[[], None] | None) -> None:
        """See RequestStream.notify; not for a session that is `timed`."""
        self._stream.notify(callback)

    def take_now(self, ready: Mapping[int, bytes | None] | None) -> list[GenerationEvent] | bytes:
        """What happened since the last time; not for a session that is `timed`. Raises TokenwireError.

        Almost always that is one token that has nothing to tell but its own text: then it is what `ready` has for the
        token's id, if anything. None as `ready` has nothing at all.
        """
        news, only = self._stream.take_now(), self._only
        if ready is not None and only is not None and only.plain and len(news) == 1:
            token = news[0]
            if isinstance(token, TokensGenerated) and token.finish is None and len(token.token_ids) == 1:
                event = ready[token.token_ids[0]]
                if event is not None:
                    only.num_tokens += 1
                    self._num_told += 1
                    self._telemetry.tokens(1)
                    return event
        return self._digest(news)

    def _digest(self, news: Sequence[EngineEvent]) -> list[GenerationEvent]:
        events: list[GenerationEvent] = []
        now = time.monotonic()
        for item in news:
            if isinstance(item, TokensGenerated):
                self._tokens(item, now, events)
            else:
                self._follow(item, events)
        if self._grown:
            self._tell_tokens()
        if self._cutter.holds:
            events += self._sent(self._cutter.ready(now))
        return events

    def close(self) -> None:
        """End the request at the engine, unless it has ended."""
        self._call.record.completion_tokens = self._num_tokens()
        if self._pending is not None:
            self._pending.cancel()
        self._stream.close()

    async def _take_in_time(self) -> Sequence[EngineEvent]:
        """What the engine has to tell, or nothing when a held delta became due."""
        due = self._cutter.due()
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._stream.take())
        timeout = None if due is None else max(due - time.monotonic(), 0.0)
        done, _ = await asyncio.wait({self._pending}, timeout=timeout)
        if not done:
            return ()
        taken, self._pending = self._pending, None
        return taken.result()

    def _follow(self, item: EngineEvent, events: list[GenerationEvent]) -> None:
        if isinstance(item, Completed | Failed):
            self._tell_tokens()
        match item:
            case Admitted():
                events.append(self._started(item))
                events += self._details.started()
            case PromptScored():
                events += self._details.scored(item)
            case Completed():
                events.append(self._finished(item))
            case Failed():
                events.append(self._failed(item))

    def _started(self, admitted: Admitted) -> Started:
        self._ticket.placed()
        self._cached_tokens = admitted.cached_prompt_tokens
        self._queue_time_s = self._call.record.queue_time_s = admitted.queue_time_s
        self._telemetry.admitted(admitted.queue_time_s, len(self._prompt), self._cached_tokens)
        return Started(self._facts, len(self._prompt), self._cached_tokens, admitted.queue_time_s)

    def _tokens(self, news: TokensGenerated, now: float, events: list[GenerationEvent]) -> None:
        if self._first_token_time_s is None:
            self._first_token_time_s = self._call.record.first_token_time_s = now - self._call.arrival_time
            events += self._details.finished()
        self._grown.add(news.index)
        candidate = self._candidates[news.index]
        if candidate.ended is not None:
            return
        delta, ended = candidate.push(news)
        if delta.text or delta.token_ids:
            self._cutter.push(delta, now)
        if ended is not None:
            if news.finish is None:
                self._stream.finish_candidate(news.index)
            events += self._sent(self._cutter.rest(news.index))
            events.append(ended)

    def _finished(self, completed: Completed | None) -> Done:
        """The end; `completed` is None when the engine failed after it had nothing left to generate."""
        ends = [candidate.ended for candidate in self._candidates]
        if None in ends:
            raise EngineFailureError(f"a fault of the engine; report it with response id {self._facts.response_id}")
        self.done = True
        preemptions = 0 if completed is None else completed.num_preemptions
        usage, total_s = self._usage(completed), time.monotonic() - self._call.arrival_time
        first_s = self._first_token_time_s or total_s
        self._telemetry.completed(
            finish_reasons=[end.reason.name.lower() for end in ends if end is not None],
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_prompt_tokens,
            completion_tokens=usage.completion_tokens,
            prefill_time_s=first_s - self._queue_time_s if completed is None else completed.prefill_time_s,
            total_time_s=total_s,
            preemptions=preemptions,
        )
        return Done(usage, self._queue_time_s, first_s, total_s, preemptions)

    def _failed(self, failed: Failed) -> Done:
        """A failure that lost the race with the end of the last candidate takes nothing away."""
        if all(candidate.ended is not None for candidate in self._candidates):
            return self._finished(None)
        raise failure_error(failed, self._admission.retry_after_s())

    def _sent(self, deltas: Sequence[CandidateDelta]) -> Sequence[CandidateDelta]:
        if not self._plan.events.usage:
            return deltas
        usage = self._usage()
        return [replace(delta, usage=usage) for delta in deltas]

    def _usage(self, completed: Completed | None = None) -> UsageSoFar:
        drafts = (0, 0) if completed is None else (completed.draft_tokens, completed.accepted_draft_tokens)
        return UsageSoFar(len(self._prompt), self._cached_tokens, self._num_tokens(), *drafts)

    def _num_tokens(self) -> int:
        candidates = self._candidates
        if len(candidates) == 1:
            return candidates[0].num_tokens
        return sum(candidate.num_tokens for candidate in candidates)

    def _tell_tokens(self) -> None:
        """Tell the log and telemetry what was generated since the last time."""
        total = self._num_tokens()
        num, num_candidates = total - self._num_told, len(self._grown)
        self._grown.clear()
        if num:
            self._num_told = total
            self._telemetry.tokens(num, num_candidates=num_candidates)
