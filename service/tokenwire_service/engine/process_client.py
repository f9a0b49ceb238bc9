"""EngineClient over a process of its own: starts it, follows it, starts it again when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service import errors
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.events import EngineStats, FailureReason
from tokenwire_service.core.params import Request
from tokenwire_service.engine.client import EngineInfo, EngineState, RequestStream, require_ready
from tokenwire_service.engine.codec import configure_to_pb, info_from_pb, stats_from_pb
from tokenwire_service.engine.correspondence import Correspondence
from tokenwire_service.engine.delivery import Delivery
from tokenwire_service.engine.engine_process import ENGINE_MODULE, EngineProcess
from tokenwire_service.engine.startup_failure import failure_from_pb
from tokenwire_service.engine.vigil import Vigil, step_timeout_s
from tokenwire_service.engine.waiting_room import WaitingRoom
from tokenwire_service.parallel.identity import RankIdentity
from tokenwire_service.weights.resolved import ResolvedModel

_LOOK_INTERVAL_S = 0.25
_REAP_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 8.0

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


class Overseer(Protocol):
    """Whom a client tells of its engine when it is one of several."""

    def state_changed(self) -> None:
        """The client's `state` is another one now."""
        ...

    def take_over(self, deliveries: Sequence[Delivery], stats: EngineStats) -> None:
        """The engine went down; `stats` was its last snapshot. Of what it had, `deliveries` may go to another one."""
        ...


class ProcessEngineClient:
    """See EngineClient. All calls belong to one event loop.

    When the engine goes down, requests that it had not begun stay and go to the next one, with their times still
    counted from the first submission; the others end with ENGINE_DOWN.
    """

    def __init__(
        self,
        resolved: ResolvedModel,
        dtype: str,
        config: EngineConfig,
        *,
        logger: logging.Logger | None = None,
        on_load: LoadCallback | None = None,
        restarts: RestartPolicy | None = None,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
        overseer: Overseer | None = None,
        environ: Mapping[str, str] | None = None,
        identity: RankIdentity | None = None,
        log_level: str = "info",
        json_output: bool = False,
        module: str = ENGINE_MODULE,
    ) -> None:
        """A process that once said that it lives and then says nothing for `silence_timeout_s` is ended. `log_level`
        and `json_output` are the process's own logging, see core.logging; `environ` is its environment, that of this
        process when None; `module` is what it runs. `identity` is rank 0's where a launcher starts the other ranks."""
        self._configure = configure_to_pb(resolved, dtype, config, identity)
        self._step_timeout_s = config.step_timeout_s
        self._silence_timeout_s = silence_timeout_s
        self._logger = logger or logging.getLogger("tokenwire.engine.client")
        self._on_load = on_load
        self._restarts = restarts or RestartPolicy()
        self._overseer = overseer
        self._spawn = partial(
            EngineProcess.spawn,
            self._receive,
            log_level=log_level,
            json_output=json_output,
            module=module,
            environ=environ,
        )
        self._correspondence = Correspondence(self._send)
        self._room = WaitingRoom()
        self._state = EngineState.LOADING
        self._changed = asyncio.Event()
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._process: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._startup_error: errors.StartupError | None = None
        self._ready_since = 0.0
        self._vigil = Vigil(silence_timeout_s, time.monotonic())
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
        """The latest snapshot the engine sent; zeros while there is none."""
        return self._stats

    @property
    def replicas(self) -> Sequence[tuple[EngineStats, EngineState]]:
        """See OwnedEngine.replicas: this one."""
        return ((self._stats, self._state),)

    @property
    def weight(self) -> int:
        """Of all deliveries the engine has."""
        return self._correspondence.weight

    @property
    def num_live(self) -> int:
        """Requests the engine has."""
        return len(self._correspondence)

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
        require_ready(self._state)
        delivery = Delivery(request)
        self.take_in(delivery)
        return delivery.mailbox

    def take_in(self, delivery: Delivery) -> None:
        """Hand a delivery to the engine, which must be READY."""
        self._correspondence.take_in(delivery)

    def abort(self, request_ids: Sequence[str]) -> int:
        """See EngineClient.abort."""
        return self._correspondence.abort(request_ids) + self._room.abort(request_ids)

    def flush_cache(self) -> None:
        """See EngineClient.flush_cache."""
        self._correspondence.flush_cache()

    async def close(self) -> None:
        """Stop the engine, wait for its process, kill it if it takes too long. Idempotent."""
        self._closing.set()
        if self._process is not None:
            self._process.send(pb.FrontendMessage(stop=True))
            if self._state is not EngineState.READY:
                # While it loads it reads no messages, and there is nothing to finish.
                self._process.kill()
        if self._supervisor is not None:
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._become(EngineState.DOWN)
        self._fail_all(FailureReason.DRAINING, "the server is shutting down; retry elsewhere")

    def kill(self) -> None:
        """End the engine's process at once."""
        if self._process is not None:
            self._process.kill()

    async def _supervise(self) -> None:
        """Keep an engine until `close`. Raises StartupError when it will not come back; nobody waits for it then."""
        try:
            await self._keep_running()
        except errors.StartupError:
            self._fail_all(FailureReason.ENGINE_DOWN, "the engine went down for good")
            raise

    async def _keep_running(self) -> None:
        """One process after the other until `close`, a failed first load, or too many deaths in a row."""
        in_a_row = 0
        while not self._closing.is_set():
            self._ready_since, self._startup_error = 0.0, None
            reason = await self._run_process()
            if self._closing.is_set():
                return
            if self._ready_since and time.monotonic() - self._ready_since >= self._restarts.healthy_s:
                in_a_row = 0
            if self._info is None or in_a_row >= self._restarts.max_restarts:
                raise self._startup_error or errors.StartupError(reason)
            delay_s = min(self._restarts.first_delay_s * 2**in_a_row, self._restarts.max_delay_s)
            in_a_row += 1
            self._logger.error("%s; starting it again in %.1f s", self._startup_error or reason, delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay_s)

    async def _run_process(self) -> str:
        """Start a process, follow it until its end or `close`, clean up after it; how it ended, for the operator."""
        self._vigil = Vigil(self._silence_timeout_s, time.monotonic())
        try:
            process = self._process = await self._spawn()
        except OSError as error:
            return f"the engine process cannot be started: {error.strerror}"
        closing = asyncio.create_task(self._closing.wait())
        watcher = asyncio.create_task(self._watch(process))
        process.send(pb.FrontendMessage(configure=self._configure))
        await asyncio.wait((process.ended, closing), return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()
        watcher.cancel()
        self._process = None
        if not self._closing.is_set():
            self._lose_engine()
        return f"the engine process {_told(await process.reap(_REAP_TIMEOUT_S))}"

    def _lose_engine(self) -> None:
        """The process ended, or is taken for ended."""
        stats, self._stats = self._stats, EngineStats()
        if self._info is not None:
            self._become(EngineState.DOWN)
        deliveries = self._correspondence.lose_engine("the engine went down; retry in a moment")
        if self._overseer is not None:
            self._overseer.take_over(deliveries, stats)
        else:
            self._room.take_in(deliveries)

    async def _watch(self, process: EngineProcess) -> None:
        """Kill an engine that hangs, or that left its socket to something it started."""
        exited = False
        while True:
            await asyncio.sleep(min(_LOOK_INTERVAL_S, self._silence_timeout_s / 4, self._vigil.step_timeout_s / 4))
            working = self._state is EngineState.READY and len(self._correspondence) > 0
            wrong = self._vigil.look(time.monotonic(), working=working)
            if wrong is not None:
                self._logger.error("%s; ending it", wrong)
            if wrong is not None or exited:
                process.kill()
                return
            # Its last words may still be on their way.
            exited = process.exited

    def _fail_all(self, reason: FailureReason, message: str) -> None:
        self._correspondence.fail_all(reason, message)
        self._room.fail_all(reason, message)

    def _send(self, message: pb.FrontendMessage) -> None:
        if self._process is not None:
            self._process.send(message)

    def _receive(self, message: pb.EngineMessage) -> None:
        self._vigil.heard()
        match message.WhichOneof("part"):
            case "step":
                self._vigil.stepped()
                self._stats = stats_from_pb(message.step.stats)
                self._correspondence.deliver(message.step)
            case "heartbeat":
                self._stats = stats_from_pb(message.heartbeat.stats)
            case "alive":
                self._vigil.alive(message.alive.work_done)
            case "ready":
                self._ready(info_from_pb(message.ready))
            case "load_progress":
                if self._on_load is not None:
                    self._on_load(message.load_progress.phase, message.load_progress.fraction)
            case "startup_failure":
                self._startup_error = failure_from_pb(message.startup_failure)

    def _ready(self, info: EngineInfo) -> None:
        self._info = info
        self._ready_since = time.monotonic()
        self._vigil.step_timeout_s = step_timeout_s(self._step_timeout_s, info)
        # First, so that nobody who hears of the change is served before them.
        for delivery in self._room.release():
            self.take_in(delivery)
        self._become(EngineState.READY)

    def _become(self, state: EngineState) -> None:
        if state is not self._state:
            self._state = state
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
            if self._overseer is not None:
                self._overseer.state_changed()


def _told(status: int) -> str:
    """An exit status, for the operator."""
    if status >= 0:
        return f"ended with status {status}; its log says why"
    told = f"was ended by signal {-status} ({signal.strsignal(-status)})"
    if -status != signal.SIGKILL:
        return told
    return f"{told}; unless a line above says why, memory ran out: give it more, or lower --kv-cache-memory-fraction"
