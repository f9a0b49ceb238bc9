"""What the frontend knows of an engine: a protocol. The RPC layer sees this file and nothing else of `engine`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenwire_service.core.events import EngineEvent, EngineStats
from tokenwire_service.core.params import Request
from tokenwire_service.errors import EngineDownError, ModelLoadingError


class EngineState(enum.Enum):
    """LOADING until warmed up, READY while steps advance, DOWN from death or hang until ready again."""

    LOADING = "loading"
    READY = "ready"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts known once the engine is READY."""

    dtype: str
    device: str
    """`cpu`, or the accelerator's name."""
    num_shards: int
    num_blocks: int
    block_size: int
    max_total_tokens: int
    """Longest sequence the engine takes: the least of the model's context, the flag, and what the cache holds."""
    max_batch_size: int
    """Sequences running at once."""
    max_batch_prefill_tokens: int
    """Tokens computed in one step at most."""
    num_parameters: int
    quantization: str
    """Empty when weights are held in `dtype`."""
    attention_backend: str


class RequestStream(Protocol):
    """The events of one submitted request. A slow reader makes `take` return more at once; nothing queues per token."""

    async def take(self) -> Sequence[EngineEvent]:
        """Wait until at least one event is pending, then return all of them, in order.

        The last sequence ends with `Completed` or `Failed`. An engine that dies yields `Failed(ENGINE_DOWN)`; a request
        of which there was no event yet goes to the next engine instead.
        """
        ...

    def take_now(self) -> Sequence[EngineEvent]:
        """All pending events, in order, without waiting; none is an answer too."""
        ...

    def notify(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` whenever there are pending events again after a take; now, if there are some. None ends it.

        It must be cheap: it is called for each stream while a step's events are handed out. Meanwhile nobody may wait
        in `take`.
        """
        ...

    def finish_candidate(self, index: int) -> None:
        """End one candidate early (a stop string matched): its blocks are free within one step.

        The engine reports nothing more for it; when all candidates ended, `Completed` follows as usual.
        """
        ...

    def close(self) -> None:
        """End the request if it has not ended. Idempotent; never blocks; loses a race with completion cleanly."""
        ...


class EngineClient(Protocol):
    """One engine, or several as one, in other processes or in a test."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> EngineInfo:
        """Raises RuntimeError before the first READY."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot the engine sent."""
        ...

    async def wait_state_change(self, seen: EngineState) -> EngineState:
        """Return as soon as the state differs from `seen`."""
        ...

    def submit(self, request: Request) -> RequestStream:
        """Hand a request to the engine. Raises ModelLoadingError or EngineDownError when it is not READY."""
        ...

    def abort(self, request_ids: Sequence[str]) -> int:
        """Abort by an operator: those named (all, when empty) end ABORTED_BY_OPERATOR; returns how many were live."""
        ...

    def flush_cache(self) -> None:
        """Forget every cached prefix that no running sequence holds."""
        ...

    async def close(self) -> None:
        """Stop the engine and wait for its process."""
        ...


class OwnedEngine(EngineClient, Protocol):
    """An engine, or several as one, as who starts it and ends it sees it."""

    @property
    def replicas(self) -> Sequence[tuple[EngineStats, EngineState]]:
        """Latest snapshot and state of each engine by itself."""
        ...

    async def start(self) -> None:
        """Start it and wait until it is READY. Raises the StartupError loading ended with. Call once."""
        ...

    async def wait_stopped(self) -> None:
        """Return when it was closed; raise StartupError when it will not come back."""
        ...

    def kill(self) -> None:
        """End its processes at once."""
        ...


def require_ready(state: EngineState) -> None:
    """Raises ModelLoadingError or EngineDownError in any other state."""
    if state is EngineState.LOADING:
        raise ModelLoadingError("the model is being loaded; retry in a moment", retry_after_s=2.0)
    if state is EngineState.DOWN:
        raise EngineDownError("the engine is down and being restarted; retry in a moment", retry_after_s=5.0)
