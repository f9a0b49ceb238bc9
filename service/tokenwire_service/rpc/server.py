"""The door: a grpc.aio server that is bound first and serves as soon as `Serving` is filled in."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2_grpc

from tokenwire_service.config import FrontendConfig
from tokenwire_service.engine.client import EngineState
from tokenwire_service.errors import DrainingError
from tokenwire_service.observability.telemetry import Telemetry
from tokenwire_service.rpc import engine_service, models, tokenization
from tokenwire_service.rpc.admission import Admission
from tokenwire_service.rpc.channel import bind, channel_options, server_credentials
from tokenwire_service.rpc.chat import ChatMethods
from tokenwire_service.rpc.endpoint import LiveCalls, Service, generic_handler
from tokenwire_service.rpc.engine_service import EngineMethods, ServerFacts
from tokenwire_service.rpc.generation import GenerateMethods, Generations
from tokenwire_service.rpc.health import HealthServicer
from tokenwire_service.rpc.interceptors import BearerAuth
from tokenwire_service.rpc.load import SAMPLE_INTERVAL_S, LoadReporter
from tokenwire_service.rpc.prompts import PromptReader
from tokenwire_service.rpc.reflection import serve_reflection
from tokenwire_service.rpc.serving import RETRY_AFTER_DRAINING_S, Serving
from tokenwire_service.rpc.session import Door

GENERATION = "tokenwire.v1.TextGenerationService"
SERVICES = (GENERATION, tokenization.NAME, models.NAME, engine_service.NAME)
ADMIN_HOST = "127.0.0.1"
_LAST_WRITES_S = 1.0
"""How long statuses of calls that just ended may take to leave before the connections close."""


class RpcServer:
    """Owns the public listener and, when configured, the operators' one. Lives on one event loop."""

    def __init__(self, config: FrontendConfig, serving: Serving, telemetry: Telemetry, version: str) -> None:
        self._config = config
        self._serving = serving
        self._telemetry = telemetry
        instance_id = secrets.token_hex(8)
        self._facts = ServerFacts(version, instance_id, time.time(), config.max_concurrent_requests)
        self._admission = Admission(config.max_concurrent_requests)
        self._reporter = LoadReporter(serving, self._admission)
        self._calls = LiveCalls(telemetry, instance_id, config.write_stall_timeout_s)
        self._pool = ThreadPoolExecutor(config.validation_workers, thread_name_prefix="tokenize")
        self._door = Door(self._admission, PromptReader(self._pool), config.max_time_limit_s)
        self._servers: list[grpc.aio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0
        """The bound port, once started."""
        self.admin_port = 0
        """The operators' bound port, once started; 0 when off."""

    @property
    def requests_in_flight(self) -> int:
        """Generations at the door: being read, waiting, or running."""
        return self._admission.in_flight

    async def start(self, port_flag: str = "--port") -> None:
        """Bind and serve; health is NOT_SERVING until the model is there. Raises StartupError.

        `port_flag` is what the command at hand calls the flag for the port.
        """
        config = self._config
        credentials = server_credentials(config)
        public = self._listener(operator=False)
        self.port = bind(public, config.hostname, config.port, credentials, port_flag)
        if config.admin_port:
            operators = self._listener(operator=True)
            self.admin_port = bind(operators, ADMIN_HOST, config.admin_port, None, "--admin-port")
        for server in self._servers:
            await server.start()
        self._tasks = [
            asyncio.create_task(self._serving.follow_engine()),
            asyncio.create_task(self._report_changes()),
            asyncio.create_task(self._sample_load()),
        ]

    async def drain(self, grace_s: float | None = None) -> None:
        """Graceful shutdown: NOT_SERVING, lame duck, refuse, let calls end within the grace, end the rest, stop.

        `grace_s` None takes --graceful-termination-timeout. Returns when every call ended and the ports are closed.
        """
        self._serving.leave()
        await asyncio.sleep(self._config.lame_duck_s)
        self._serving.close()
        grace_s = self._config.graceful_termination_timeout_s if grace_s is None else grace_s
        try:
            async with asyncio.timeout(grace_s):
                await self._calls.finished()
        except TimeoutError:
            pass
        await self.stop()

    async def stop(self) -> None:
        """Immediate shutdown: calls in flight end UNAVAILABLE. Idempotent."""
        self._serving.close()
        self._calls.end_all(
            DrainingError(
                "the server is shutting down; send the request to another one", retry_after_s=RETRY_AFTER_DRAINING_S
            )
        )
        servers, self._servers = self._servers, []
        await asyncio.gather(*(server.stop(_LAST_WRITES_S) for server in servers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _listener(self, *, operator: bool) -> grpc.aio.Server:
        services = self._services(operator=operator)
        names = [f"{service.name}/{method.name}" for service in services for method in service.methods]
        auth = [BearerAuth(self._config.api_key, self._calls, names)] if self._config.api_key else []
        server = grpc.aio.server(options=channel_options(self._config), interceptors=auth)
        server.add_generic_rpc_handlers([generic_handler(service, self._calls) for service in services])
        health_pb2_grpc.add_HealthServicer_to_server(  # type: ignore[no-untyped-call]
            HealthServicer(self._serving, SERVICES), server
        )
        shown = [*SERVICES, health.SERVICE_NAME]
        if operator:
            channelz.add_channelz_servicer(server)  # type: ignore[no-untyped-call]
            shown.append("grpc.channelz.v1.Channelz")
        if self._config.reflection:
            serve_reflection(shown, server)
        self._servers.append(server)
        return server

    def _services(self, *, operator: bool) -> Sequence[Service]:
        generations = Generations(self._serving, self._door, self._facts.version)
        methods = (*GenerateMethods(generations).methods(), *ChatMethods(generations).methods())
        return (
            Service(GENERATION, methods),
            tokenization.TokenizationMethods(
                self._serving, self._door.prompts, self._config.max_concurrent_requests
            ).service(),
            models.ModelMethods(self._serving).service(),
            EngineMethods(self._facts, self._serving, self._reporter, operator=operator).service(),
        )

    async def _report_changes(self) -> None:
        """Tell telemetry each change of the engine's state."""
        while True:
            change = self._serving.next_change()
            self._observe()
            await change.wait()

    async def _sample_load(self) -> None:
        while True:
            self._reporter.rate.sample(time.monotonic(), self._reporter.stats.generated_tokens)
            self._observe()
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    def _observe(self) -> None:
        engine = self._serving.engine
        state = EngineState.LOADING if engine is None else engine.state
        self._telemetry.observe_engine(self._reporter.stats, state)
