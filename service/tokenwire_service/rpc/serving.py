"""What the server can do right now: filled in by `app.py` while it starts, read by every call."""

from __future__ import annotations

import asyncio
import enum
import math
from dataclasses import dataclass

from tokenwire_service.engine.client import EngineClient, EngineState
from tokenwire_service.errors import DrainingError, EngineDownError, ModelLoadingError
from tokenwire_service.rpc.model import ServedModel

RETRY_AFTER_LOADING_S = 5.0
RETRY_AFTER_DRAINING_S = 1.0


class ServerState(enum.IntEnum):
    """Values equal tokenwire.v1.ServerState."""

    LOADING = 1
    SERVING = 2
    DRAINING = 3
    ENGINE_DOWN = 4


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Sizes of the engine's batch, resolved (never 0)."""

    max_batch_size: int
    max_batch_prefill_tokens: int


class Serving:
    """The model and the engine, absent until loaded; whether the server is leaving. One event loop owns it."""

    def __init__(self) -> None:
        self.model: ServedModel | None = None
        self.engine: EngineClient | None = None
        self.batch: BatchLimits | None = None
        self.load_progress = 0.0
        self._leaving = False
        self._closed = False
        self._changed = asyncio.Event()
        self._drain_request: asyncio.Future[float | None] | None = None

    def set_engine(self, engine: EngineClient, batch: BatchLimits) -> None:
        """The engine exists; it may still be loading."""
        self.engine, self.batch = engine, batch
        self.notify()

    def set_model(self, model: ServedModel) -> None:
        """The model can be served as soon as the engine is READY."""
        self.model, self.load_progress = model, 1.0
        self.notify()

    def set_progress(self, fraction: float) -> None:
        """How much of the loading is done, 0 to 1."""
        self.load_progress = min(max(fraction, 0.0), 1.0)

    @property
    def state(self) -> ServerState:
        if self._leaving:
            return ServerState.DRAINING
        if self.model is None or self.engine is None or self.engine.state is EngineState.LOADING:
            return ServerState.LOADING
        return ServerState.SERVING if self.engine.state is EngineState.READY else ServerState.ENGINE_DOWN

    def require(self) -> tuple[ServedModel, EngineClient]:
        """What a call needs to generate. Raises DrainingError, ModelLoadingError or EngineDownError."""
        if self._closed:
            raise DrainingError(
                "the server is shutting down; send the request to another one", retry_after_s=RETRY_AFTER_DRAINING_S
            )
        model = self.require_model()
        engine = self.engine
        if engine is None or engine.state is EngineState.LOADING:
            raise self._loading()
        if engine.state is EngineState.DOWN:
            raise EngineDownError(
                "the engine is being restarted; retry in a few seconds", retry_after_s=RETRY_AFTER_LOADING_S
            )
        return model, engine

    def require_model(self) -> ServedModel:
        """What a call needs that does not generate. Raises ModelLoadingError."""
        if self.model is None:
            raise self._loading()
        return self.model

    def _loading(self) -> ModelLoadingError:
        percent = math.floor(self.load_progress * 100)
        return ModelLoadingError(
            f"the model is still loading ({percent} %); retry in a few seconds", retry_after_s=RETRY_AFTER_LOADING_S
        )

    def leave(self) -> None:
        """The server goes away: health turns NOT_SERVING; new calls are still taken."""
        self._leaving = True
        self.notify()

    def close(self) -> None:
        """New calls are refused from now on."""
        self._leaving = self._closed = True
        self.notify()

    def notify(self) -> None:
        """Wake everybody who waits for a change of `state`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """An event that is set at the next change; take it before reading what may change."""
        return self._changed

    async def follow_engine(self) -> None:
        """Notify at each change of the engine's state, for ever."""
        while self.engine is None:
            await self.next_change().wait()
        while True:
            seen = self.engine.state
            self.notify()
            await self.engine.wait_state_change(seen)

    def request_drain(self, grace_s: float | None) -> None:
        """An operator asks for a graceful shutdown; `drain_requested` returns."""
        request = self._drain_future()
        if not request.done():
            request.set_result(grace_s)

    async def drain_requested(self) -> float | None:
        """Wait until an operator asks for a shutdown; returns the grace asked for, None for the server's own."""
        return await asyncio.shield(self._drain_future())

    def _drain_future(self) -> asyncio.Future[float | None]:
        if self._drain_request is None:
            self._drain_request = asyncio.get_running_loop().create_future()
        return self._drain_request
