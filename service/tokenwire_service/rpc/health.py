"""grpc.health.v1 told from the server's state: never through the generation queue, with a Watch that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenwire_service.rpc.serving import ServerState, Serving

PROCESS = ""
_Status = health_pb2.HealthCheckResponse
ServingStatus = Any
"""An enum value of HealthCheckResponse; the stubs have no name for it."""


class HealthServicer(health_pb2_grpc.HealthServicer):
    """`""` is the process; each service name is SERVING while its requests would be answered."""

    def __init__(self, serving: Serving, services: Sequence[str]) -> None:
        self._serving = serving
        self._services = tuple(services)

    def status(self, service: str) -> ServingStatus:
        """A ServingStatus; SERVICE_UNKNOWN for a name not served here."""
        if service == PROCESS:
            return _Status.SERVING
        if service not in self._services:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._serving.state is ServerState.SERVING else _Status.NOT_SERVING

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        status = self.status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service; List names them")
        return _Status(status=status)

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        names = (PROCESS, *self._services)
        return health_pb2.HealthListResponse(statuses={name: _Status(status=self.status(name)) for name in names})

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        sent: ServingStatus | None = None
        while True:
            change = self._serving.next_change()
            status = self.status(request.service)
            if status != sent:
                await context.write(_Status(status=status))
                sent = status
            await change.wait()
