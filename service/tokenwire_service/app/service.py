"""The service's life: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tokenwire_service.app.banner import banner
from tokenwire_service.app.engines import make_engine
from tokenwire_service.app.environment import package_version
from tokenwire_service.app.progress import PhaseProgress, choose_progress
from tokenwire_service.app.served_model import load_text_parts, served_model
from tokenwire_service.app.signals import StopSignals
from tokenwire_service.app.threads import in_daemon_thread
from tokenwire_service.config import Config, FrontendConfig
from tokenwire_service.engine.client import EngineInfo, OwnedEngine
from tokenwire_service.errors import StartupError
from tokenwire_service.observability.metrics_server import MetricsServer
from tokenwire_service.observability.recorder import Recorder
from tokenwire_service.observability.trace import Tracer, trace_settings
from tokenwire_service.parallel.identity import RankIdentity
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.server import RpcServer
from tokenwire_service.rpc.serving import BatchLimits, Serving
from tokenwire_service.weights.resolve import resolve_model

log = logging.getLogger(__name__)


class Companion(Protocol):
    """A process beside the service that needs it: the REST gateway of `tokenwire launch`."""

    @property
    def port(self) -> int: ...

    async def start(self, grpc_port: int) -> None:
        """Start it. Raises StartupError."""
        ...

    async def listening(self) -> None:
        """Return once it takes connections."""
        ...

    async def ended(self) -> int:
        """Return its exit code once it ended."""
        ...

    async def stop(self) -> None:
        """Let it finish its work, and wait."""
        ...

    async def kill(self) -> None:
        """End it at once."""
        ...


class CompanionEndedError(StartupError):
    """The process beside the service ended by itself."""


class Service:
    """One life: `run`, once, on a fresh event loop."""

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        companion: Companion | None,
        started_at: float,
        identity: RankIdentity | None = None,
    ) -> None:
        """`started_at` is the monotonic time from which start-up is counted; `identity` says that a launcher started
        the engine's other ranks. Raises StartupError."""
        self._config = config
        self._companion = companion
        self._started_at = started_at
        self._version = package_version("tokenwire-service")
        self._environ = environ
        self._identity = identity
        self._cache_root = cache_root(environ)
        self._progress = choose_progress(config.frontend, log)
        self._recorder = Recorder(_tracer(config.frontend, environ, self._version))
        self._metrics_page: MetricsServer | None = None
        self._serving = Serving()
        self._server = RpcServer(config.frontend, self._serving, self._recorder, self._version)
        self._engine: OwnedEngine | None = None

    async def run(self) -> int:
        """Serve until told to stop; returns the exit code. Raises StartupError."""
        signals = StopSignals(asyncio.get_running_loop())
        try:
            await self._open_doors()
            return await self._live(signals)
        finally:
            signals.close()
            await self._close()

    async def _open_doors(self) -> None:
        frontend = self._config.frontend
        if frontend.prometheus_port:
            registry = self._recorder.metrics.registry
            self._metrics_page = MetricsServer(registry, frontend.prometheus_hostname, frontend.prometheus_port)
        await self._server.start("--port" if self._companion is None else "--grpc-port")
        self._mark("listening")
        if self._companion is not None:
            await self._companion.start(self._server.port)

    async def _live(self, signals: StopSignals) -> int:
        stop = asyncio.create_task(signals.first())
        drain = asyncio.create_task(self._serving.drain_requested())
        watched: list[asyncio.Task[Any]] = [stop, drain, asyncio.create_task(self._companion_ended())]
        load = asyncio.create_task(self._load())
        try:
            await asyncio.wait([load, *watched], return_when=asyncio.FIRST_COMPLETED)
            if load.done():
                watched.append(asyncio.create_task(load.result().wait_stopped()))
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in watched:
                if task.done():
                    task.result()
            return await self._leave(signals, drain.result() if drain.done() else None)
        finally:
            for task in (load, *watched):
                task.cancel()
            await asyncio.gather(load, *watched, return_exceptions=True)

    async def _load(self) -> OwnedEngine:
        """From a model's name to SERVING. Raises StartupError."""
        config = self._config
        resolved = await in_daemon_thread(partial(resolve_model, config.model, self._progress, self._cache_root))
        self._mark("model found")
        phases = PhaseProgress(self._progress, self._serving.set_progress)
        engine = self._engine = make_engine(config, resolved, self._environ, log, phases.report, self._identity)
        text, _ = await asyncio.gather(in_daemon_thread(partial(load_text_parts, resolved)), engine.start())
        phases.close()
        self._mark("engine ready")
        model = served_model(config, resolved, text, engine.info, time.time())
        self._recorder.default_model = model.name
        self._recorder.attach_engine(lambda: (engine.stats, engine.state))
        self._recorder.attach_replicas(lambda: engine.replicas)
        self._serving.set_engine(engine, batch_limits(engine.info))
        self._serving.set_model(model)
        if self._companion is not None:
            await self._companion.listening()
        # What is there by now stays: no collection need look at it again.
        gc.collect()
        gc.freeze()
        self._announce(model, engine.info)
        return engine

    def _announce(self, model: ServedModel, info: EngineInfo) -> None:
        ready_s = time.monotonic() - self._started_at
        if self._config.frontend.json_output:
            log.info("ready", extra={"model": model.name, "port": self._server.port, "ready_s": round(ready_s, 3)})
            return
        rest_port = None if self._companion is None else self._companion.port
        text = banner(self._config.frontend, model, info, self._version, self._server.port, rest_port, ready_s)
        sys.stdout.write(f"\n{text}\n")
        sys.stdout.flush()

    async def _companion_ended(self) -> None:
        if self._companion is None:
            await asyncio.get_running_loop().create_future()
            return
        code = await self._companion.ended()
        raise CompanionEndedError(f"the REST gateway ended with exit code {code}; its own message is above")

    async def _leave(self, signals: StopSignals, grace_s: float | None) -> int:
        """Drain; a second signal ends it at once. Returns the exit code."""
        drain = asyncio.create_task(self._drain(grace_s))
        second = asyncio.create_task(signals.second())
        try:
            await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
            if not drain.done():
                log.warning("second signal: ending at once")
                if self._engine is not None:
                    self._engine.kill()
                return 128 + second.result()
            drain.result()
            return 0
        finally:
            for task in (drain, second):
                task.cancel()
            await asyncio.gather(drain, second, return_exceptions=True)

    async def _drain(self, grace_s: float | None) -> None:
        grace_s = self._config.frontend.graceful_termination_timeout_s if grace_s is None else grace_s
        log.info("draining: requests in flight may take %g s", grace_s)
        deadline = time.monotonic() + grace_s
        self._serving.leave()
        if self._companion is not None:
            await self._companion.stop()
        await self._server.drain(max(0.0, deadline - time.monotonic()))

    async def _close(self) -> None:
        """End what is left, whatever state it is in."""
        if self._companion is not None:
            await self._companion.kill()
        await self._server.stop()
        if self._engine is not None:
            await self._engine.close()
        if self._metrics_page is not None:
            await asyncio.to_thread(self._metrics_page.close)
        await asyncio.to_thread(self._recorder.close)

    def _mark(self, event: str) -> None:
        log.info("%s after %.2f s", event, time.monotonic() - self._started_at)


def batch_limits(info: EngineInfo) -> BatchLimits:
    """The sizes the engine chose."""
    return BatchLimits(max_batch_size=info.max_batch_size, max_batch_prefill_tokens=info.max_batch_prefill_tokens)


def cache_root(environ: Mapping[str, str]) -> Path | None:
    """Where what is derived from models is kept; None for the default."""
    base = environ.get("XDG_CACHE_HOME")
    return Path(base) / "tokenwire" if base else None


def _tracer(frontend: FrontendConfig, environ: Mapping[str, str], version: str) -> Tracer | None:
    settings = trace_settings(frontend.otlp_endpoint, frontend.otlp_service_name, environ)
    if settings is None:
        return None
    from tokenwire_service.observability.tracing import OpenTelemetryTracer

    return OpenTelemetryTracer(settings, version)
