"""EngineClient over a process of its own: starts it, follows it, starts it again when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service import errors
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.events import EngineStats, FailureReason
from tokenwire_service.core.params import Request
from tokenwire_service.engine.client import EngineInfo, EngineState, RequestStream
from tokenwire_service.engine.codec import configure_to_pb, info_from_pb, stats_from_pb
from tokenwire_service.engine.correspondence import Correspondence
from tokenwire_service.engine.engine_process import ENGINE_MODULE, EngineProcess
from tokenwire_service.weights.resolved import ResolvedModel

_WATCH_INTERVAL_S = 0.25
_REAP_TIMEOUT_S = 10.0
_HEARTBEATS_MISSED_S = 10.0
"""An idle engine may be silent for this much longer than one with work may go without a step."""
_STARTUP_ERRORS: tuple[type[errors.StartupError], ...] = (
    errors.ConfigError,
    errors.ModelResolutionError,
    errors.WeightsError,
    errors.UnsupportedModelError,
)

LoadCallback = Callable[[str, float], None]
"""Takes what is being loaded and the share of it that is done, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How an engine that died is started again."""

    max_restarts: int = 5
    """In a row; an engine that stayed up for `healthy_s` starts the count anew."""
    first_delay_s: float = 0.5
    """Doubles with each restart in a row."""
    max_delay_s: float = 30.0
    healthy_s: float = 60.0


class ProcessEngineClient:
    """See EngineClient. All calls belong to one event loop."""

    def __init__(
        self,
        resolved: ResolvedModel,
        dtype: str,
        config: EngineConfig,
        *,
        logger: logging.Logger | None = None,
        on_load: LoadCallback | None = None,
        restarts: RestartPolicy | None = None,
        log_level: str = "info",
        json_output: bool = False,
        module: str = ENGINE_MODULE,
    ) -> None:
        """`log_level` and `json_output` are the process's own logging; see core.logging. `module` is what it runs."""
        self._configure = configure_to_pb(resolved, dtype, config)
        self._step_timeout_s = config.step_timeout_s
        self._logger = logger or logging.getLogger("tokenwire.engine.client")
        self._on_load = on_load
        self._restarts = restarts or RestartPolicy()
        self._spawn = partial(
            EngineProcess.spawn, self._receive, log_level=log_level, json_output=json_output, module=module
        )
        self._correspondence = Correspondence(self._send)
        self._state = EngineState.LOADING
        self._changed = asyncio.Event()
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._process: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._startup_error: errors.StartupError | None = None
        self._ready_since = 0.0
        self._last_step = 0.0
        self._last_heard = 0.0
        self._closing = asyncio.Event()

    async def start(self) -> None:
        """Spawn the engine and wait until it is READY. Raises the StartupError loading ended with. Call once."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")
        while self._state is not EngineState.READY:
            if self._supervisor.done():
                self._supervisor.result()
                raise errors.StartupError("the engine was closed before it was ready")
            waiter = asyncio.create_task(self.wait_state_change(self._state))
            try:
                await asyncio.wait((waiter, self._supervisor), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiter.cancel()

    async def wait_stopped(self) -> None:
        """Return when the engine was closed; raise StartupError when it will not come back."""
        if self._supervisor is None:
            await self._closing.wait()
        else:
            await asyncio.shield(self._supervisor)

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> EngineInfo:
        """Raises RuntimeError before the first READY."""
        if self._info is None:
            raise RuntimeError("the engine has not been ready yet")
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot the engine sent."""
        return self._stats

    @property
    def pid(self) -> int | None:
        """Of the engine process; None while there is none."""
        return None if self._process is None else self._process.pid

    async def wait_state_change(self, seen: EngineState) -> EngineState:
        """Return as soon as the state differs from `seen`."""
        while self._state is seen:
            changed = self._changed
            await changed.wait()
        return self._state

    def submit(self, request: Request) -> RequestStream:
        """Hand a request to the engine. Raises ModelLoadingError or EngineDownError when it is not READY."""
        if self._state is EngineState.LOADING:
            raise errors.ModelLoadingError("the model is being loaded; retry in a moment", retry_after_s=2.0)
        if self._state is EngineState.DOWN:
            raise errors.EngineDownError("the engine is down and being restarted; retry in a moment", retry_after_s=5.0)
        if not self._correspondence.has_live:
            # An idle engine makes no steps: its silence until now says nothing.
            self._last_step = time.monotonic()
        return self._correspondence.open(request)

    def abort(self, request_ids: Sequence[str]) -> int:
        """See EngineClient.abort."""
        return self._correspondence.abort(request_ids)

    def flush_cache(self) -> None:
        """See EngineClient.flush_cache."""
        self._correspondence.flush_cache()

    async def close(self) -> None:
        """Stop the engine, wait for its process, kill it if it takes too long. Idempotent."""
        self._closing.set()
        if self._process is not None:
            self._process.send(pb.FrontendMessage(stop=True))
        if self._supervisor is not None:
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._become(EngineState.DOWN)
        self._correspondence.fail_all(FailureReason.DRAINING, "the server is shutting down; retry elsewhere")

    async def _supervise(self) -> None:
        """One process after the other until `close`, a failed load, or too many deaths in a row."""
        in_a_row = 0
        while not self._closing.is_set():
            self._ready_since = 0.0
            status = await self._run_process()
            if self._closing.is_set():
                return
            if self._startup_error is not None:
                raise self._startup_error
            if self._ready_since and time.monotonic() - self._ready_since >= self._restarts.healthy_s:
                in_a_row = 0
            if self._info is None or in_a_row >= self._restarts.max_restarts:
                raise errors.StartupError(f"the engine process {_told(status)}")
            delay_s = min(self._restarts.first_delay_s * 2**in_a_row, self._restarts.max_delay_s)
            in_a_row += 1
            self._logger.error("the engine process %s; starting it again in %.1f s", _told(status), delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay_s)

    async def _run_process(self) -> int:
        """Start a process, follow it until its end or `close`, clean up after it; its exit status."""
        process = self._process = await self._spawn()
        closing = asyncio.create_task(self._closing.wait())
        watcher = asyncio.create_task(self._watch(process))
        process.send(pb.FrontendMessage(configure=self._configure))
        await asyncio.wait((process.ended, closing), return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()
        watcher.cancel()
        self._process = None
        if not self._closing.is_set():
            if self._info is not None:
                self._become(EngineState.DOWN)
            self._correspondence.fail_all(FailureReason.ENGINE_DOWN, "the engine went down; retry in a moment")
        return await process.reap(_REAP_TIMEOUT_S)

    async def _watch(self, process: EngineProcess) -> None:
        """Kill an engine that has work but makes no step, or has none and gives no sign of life."""
        while True:
            await asyncio.sleep(min(_WATCH_INTERVAL_S, self._step_timeout_s / 4))
            if self._state is not EngineState.READY:
                continue
            now = time.monotonic()
            without_step_s, silent_s = now - self._last_step, now - self._last_heard
            if self._correspondence.has_live and without_step_s > self._step_timeout_s:
                self._logger.error(
                    "the engine has work but made no step for %.0f s; ending it (if steps take that long here, lower "
                    "--max-batch-prefill-tokens or raise --step-timeout-s)",
                    without_step_s,
                )
                process.kill()
                return
            if silent_s > self._step_timeout_s + _HEARTBEATS_MISSED_S:
                self._logger.error("the engine gave no sign of life for %.0f s; ending it", silent_s)
                process.kill()
                return

    def _send(self, message: pb.FrontendMessage) -> None:
        if self._process is not None:
            self._process.send(message)

    def _receive(self, message: pb.EngineMessage) -> None:
        self._last_heard = time.monotonic()
        match message.WhichOneof("part"):
            case "step":
                self._last_step = self._last_heard
                self._stats = stats_from_pb(message.step.stats)
                self._correspondence.deliver(message.step)
            case "heartbeat":
                self._stats = stats_from_pb(message.heartbeat.stats)
            case "ready":
                self._info = info_from_pb(message.ready)
                self._ready_since = self._last_step = self._last_heard
                self._become(EngineState.READY)
            case "load_progress":
                if self._on_load is not None:
                    self._on_load(message.load_progress.phase, message.load_progress.fraction)
            case "startup_failure":
                self._startup_error = _startup_error(message.startup_failure)

    def _become(self, state: EngineState) -> None:
        if state is not self._state:
            self._state = state
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()


def _told(status: int) -> str:
    """An exit status, for the operator."""
    if status >= 0:
        return f"ended with status {status}; its log says why"
    told = f"was ended by signal {-status} ({signal.strsignal(-status)})"
    if -status != signal.SIGKILL:
        return told
    return f"{told}; unless a line above says why, memory ran out: give it more, or lower --kv-cache-memory-fraction"


def _startup_error(failure: pb.StartupFailure) -> errors.StartupError:
    kinds = {kind.__name__: kind for kind in _STARTUP_ERRORS}
    return kinds.get(failure.kind, errors.StartupError)(failure.message)
