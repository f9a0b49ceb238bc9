"""The door: a grpc.aio server that is bound first and serves as soon as `Serving` is filled in."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tokenwire_service.config import FrontendConfig
from tokenwire_service.observability.telemetry import Telemetry
from tokenwire_service.rpc.channel import bind, channel_options, server_credentials
from tokenwire_service.rpc.health import HealthServicer
from tokenwire_service.rpc.serving import Serving

SERVICES = (
    "tokenwire.v1.TextGenerationService",
    "tokenwire.v1.TokenizationService",
    "tokenwire.v1.ModelService",
    "tokenwire.v1.EngineService",
)


class RpcServer:
    """Owns the public listener and, when configured, the operators' one. Lives on one event loop."""

    def __init__(self, config: FrontendConfig, serving: Serving, telemetry: Telemetry, version: str) -> None:
        self._config = config
        self._serving = serving
        self._telemetry = telemetry
        self._version = version
        self._server: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0
        """The bound port, once started."""
        self.admin_port = 0
        """The operators' bound port, once started; 0 when off."""

    async def start(self) -> None:
        """Bind and serve; health is NOT_SERVING until the model is there. Raises StartupError."""
        credentials = server_credentials(self._config)
        server = grpc.aio.server(options=channel_options(self._config))
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self._serving, SERVICES), server)
        if self._config.reflection:
            reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        self.port = bind(server, self._config.hostname, self._config.port, credentials, "--port")
        await server.start()
        self._server = server
        self._tasks.append(asyncio.create_task(self._serving.follow_engine()))

    async def drain(self, grace_s: float | None = None) -> None:
        """Graceful shutdown: NOT_SERVING, lame duck, refuse, let calls end within the grace, end the rest, stop.

        `grace_s` None takes --graceful-termination-timeout-s. Returns when every call ended and the ports are closed.
        """
        self._serving.leave()
        await asyncio.sleep(self._config.lame_duck_s)
        self._serving.close()
        await self.stop()

    async def stop(self) -> None:
        """Immediate shutdown: calls in flight end UNAVAILABLE."""
        self._serving.close()
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.stop(None)
