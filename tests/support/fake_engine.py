"""An `EngineClient` without an engine: a script tells the tokens, the real frontend does the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tokenwire_service.core.events import (
    Admitted,
    Completed,
    EngineEvent,
    EngineStats,
    Failed,
    FailureReason,
    Finish,
    FinishReason,
    PromptScored,
    TokenLogprob,
    TokensGenerated,
)
from tokenwire_service.core.params import Request
from tokenwire_service.engine.client import EngineInfo, EngineState
from tokenwire_service.errors import EngineDownError, ModelLoadingError

Script = Callable[["FakeStream"], Awaitable[None]]


@dataclass
class FakeStream:
    """One submitted request, with the test on the engine's side."""

    request: Request
    finished_early: list[int] = field(default_factory=list)
    """Candidates the frontend ended, in order."""
    closed: bool = False
    num_takes: int = 0
    draft_tokens: int = 0
    """What `Completed` says of speculation."""
    accepted_draft_tokens: int = 0
    _pending: list[EngineEvent] = field(default_factory=list)
    _notify: Callable[[], None] | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _closed: asyncio.Event = field(default_factory=asyncio.Event)
    _running: set[int] = field(default_factory=set)
    _num_generated: int = 0
    _over: bool = False

    def __post_init__(self) -> None:
        self._running = set(range(self.request.num_candidates))

    # The engine's side.

    def admit(self, cached_prompt_tokens: int = 0, queue_time_s: float = 0.001) -> None:
        """The request got its place."""
        self._push(Admitted(self.request.request_id, cached_prompt_tokens, queue_time_s))

    def score(self, offset: int, logprobs: Sequence[TokenLogprob]) -> None:
        """Prompt positions from `offset` on."""
        self._push(PromptScored(self.request.request_id, offset, tuple(logprobs)))

    def tokens(
        self,
        token_ids: Sequence[int],
        *,
        index: int = 0,
        finish: FinishReason | None = None,
        stop_token_id: int | None = None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        """New tokens of a candidate; nothing once it ended. `Completed` follows the last end by itself."""
        if index not in self._running:
            return
        self._num_generated += len(token_ids)
        end = None if finish is None else Finish(finish, stop_token_id)
        self._push(TokensGenerated(self.request.request_id, index, tuple(token_ids), tuple(logprobs), end))
        if finish is not None:
            self._end(index)

    def fail(self, reason: FailureReason, message: str = "the engine's own words") -> None:
        """A bad end."""
        if not self._over:
            self._over = True
            self._push(Failed(self.request.request_id, reason, message, self._num_generated))

    @property
    def live(self) -> bool:
        """Whether the engine would still work on it."""
        return not self._over and not self.closed

    async def wait_closed(self) -> None:
        """Wait until the frontend let go of the request."""
        await self._closed.wait()

    def _push(self, event: EngineEvent) -> None:
        self._pending.append(event)
        self._wake.set()
        if self._notify is not None and len(self._pending) == 1:
            self._notify()

    def _end(self, index: int) -> None:
        self._running.discard(index)
        if self._running or self._over:
            return
        self._over = True
        self._push(
            Completed(
                self.request.request_id,
                prompt_tokens=len(self.request.prompt_token_ids),
                cached_prompt_tokens=0,
                completion_tokens=self._num_generated,
                queue_time_s=0.001,
                prefill_time_s=0.001,
                total_time_s=0.002,
                num_preemptions=0,
                draft_tokens=self.draft_tokens,
                accepted_draft_tokens=self.accepted_draft_tokens,
            )
        )

    # The frontend's side: `engine.client.RequestStream`.

    async def take(self) -> Sequence[EngineEvent]:
        await self._wake.wait()
        self._wake.clear()
        taken, self._pending = self._pending, []
        self.num_takes += 1
        return taken

    def take_now(self) -> Sequence[EngineEvent]:
        taken, self._pending = self._pending, []
        self._wake.clear()
        self.num_takes += bool(taken)
        return taken

    def notify(self, callback: Callable[[], None] | None) -> None:
        self._notify = callback
        if callback is not None and self._pending:
            callback()

    def finish_candidate(self, index: int) -> None:
        self.finished_early.append(index)
        if index in self._running:
            self._end(index)

    def close(self) -> None:
        self.closed = True
        self._closed.set()


async def end_at_once(stream: FakeStream) -> None:
    """Admit and end every candidate with one token."""
    stream.admit()
    for index in range(stream.request.num_candidates):
        stream.tokens([65], index=index, finish=FinishReason.MAX_TOKENS)


class FakeEngine:
    """READY from the start unless told otherwise; each submitted request is played by `script`."""

    def __init__(self, script: Script = end_at_once, state: EngineState = EngineState.READY) -> None:
        self.script = script
        self.streams: list[FakeStream] = []
        self.aborted: list[list[str]] = []
        self.num_flushes = 0
        self.stats = EngineStats(num_blocks=100, num_free_blocks=100, block_size=32)
        self._state = state
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> EngineState:
        return self._state

    def set_state(self, state: EngineState) -> None:
        self._state = state
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("float32", "cpu", 1, 100, 32, 256, 8, 64, 1_000, "", "reference")

    async def wait_state_change(self, seen: EngineState) -> EngineState:
        while self._state is seen:
            await self._changed.wait()
        return self._state

    def submit(self, request: Request) -> FakeStream:
        if self._state is EngineState.LOADING:
            raise ModelLoadingError("loading", retry_after_s=1.0)
        if self._state is EngineState.DOWN:
            raise EngineDownError("down", retry_after_s=1.0)
        stream = FakeStream(request)
        self.streams.append(stream)
        task = asyncio.ensure_future(self.script(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    def abort(self, request_ids: Sequence[str]) -> int:
        self.aborted.append(list(request_ids))
        named = [s for s in self.streams if s.live and (not request_ids or s.request.request_id in request_ids)]
        for stream in named:
            stream.fail(FailureReason.ABORTED_BY_OPERATOR)
        return len(named)

    def flush_cache(self) -> None:
        self.num_flushes += 1

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
