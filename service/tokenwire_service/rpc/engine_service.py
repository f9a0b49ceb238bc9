"""EngineService: everybody may look, operators may steer on their own listener."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tokenwire.v1 import engine_pb2 as pb
from tokenwire_service.engine.client import EngineClient, EngineState
from tokenwire_service.errors import ModelLoadingError, PermissionDeniedError
from tokenwire_service.rpc.call import Call
from tokenwire_service.rpc.convert.checks import Checks
from tokenwire_service.rpc.convert.responses import timestamp
from tokenwire_service.rpc.endpoint import Method, Service
from tokenwire_service.rpc.load import LoadReporter
from tokenwire_service.rpc.serving import RETRY_AFTER_LOADING_S, Serving

NAME = "tokenwire.v1.EngineService"
CONTRACT = "tokenwire.v1"
DEFAULT_INTERVAL_S, MIN_INTERVAL_S, MAX_INTERVAL_S = 1.0, 0.1, 60.0
MAX_ABORTED_IDS = 10_000


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What stays the same from start to stop."""

    version: str
    instance_id: str
    start_time: float
    """Seconds since the epoch."""
    max_concurrent_requests: int


class EngineMethods:
    """One listener's view of the service; `operator` listeners may steer."""

    def __init__(self, facts: ServerFacts, serving: Serving, reporter: LoadReporter, *, operator: bool) -> None:
        self._facts = facts
        self._serving = serving
        self._reporter = reporter
        self._operator = operator

    def service(self) -> Service:
        return Service(
            NAME,
            (
                Method("GetServerInfo", pb.GetServerInfoRequest, pb.GetServerInfoResponse, self.get_server_info),
                Method("GetLoad", pb.GetLoadRequest, pb.GetLoadResponse, self.get_load),
                Method(
                    "WatchLoad", pb.WatchLoadRequest, pb.WatchLoadResponse, self.watch_load, streams=True, endless=True
                ),
                Method("Drain", pb.DrainRequest, pb.DrainResponse, self.drain),
                Method("AbortRequests", pb.AbortRequestsRequest, pb.AbortRequestsResponse, self.abort_requests),
                Method("FlushCache", pb.FlushCacheRequest, pb.FlushCacheResponse, self.flush_cache),
            ),
        )

    async def get_server_info(self, request: pb.GetServerInfoRequest, call: Call) -> pb.GetServerInfoResponse:
        serving, batch = self._serving, self._serving.batch
        message = pb.GetServerInfoResponse(
            version=self._facts.version,
            contract=CONTRACT,
            instance_id=self._facts.instance_id,
            state=pb.ServerState.ValueType(int(serving.state)),
            start_time=timestamp(self._facts.start_time),
            models=[] if serving.model is None else [serving.model.name],
            max_concurrent_requests=self._facts.max_concurrent_requests,
            load_progress=serving.load_progress,
            max_batch_prefill_tokens=0 if batch is None else batch.max_batch_prefill_tokens,
            max_batch_size=0 if batch is None else batch.max_batch_size,
        )
        engine = serving.engine
        if engine is not None and engine.state is EngineState.READY:
            known = engine.info
            message.device, message.num_shards = known.device, known.num_shards
            message.attention_backend, message.block_size = known.attention_backend, known.block_size
            message.kv_cache_tokens = known.num_blocks * known.block_size
        return message

    async def get_load(self, request: pb.GetLoadRequest, call: Call) -> pb.GetLoadResponse:
        return pb.GetLoadResponse(load=self._reporter.load())

    async def watch_load(self, request: pb.WatchLoadRequest, call: Call) -> None:
        checks = Checks()
        interval_s = checks.seconds(request, "interval", "", least=MIN_INTERVAL_S, most=MAX_INTERVAL_S)
        checks.raise_if_any()
        while True:
            await call.write(pb.WatchLoadResponse(load=self._reporter.load()).SerializeToString())
            await asyncio.sleep(interval_s or DEFAULT_INTERVAL_S)

    async def drain(self, request: pb.DrainRequest, call: Call) -> pb.DrainResponse:
        self._only_operators()
        checks = Checks()
        grace_s = checks.seconds(request, "grace", "", least=0.0)
        checks.raise_if_any()
        self._serving.request_drain(grace_s)
        return pb.DrainResponse(requests_in_flight=self._reporter.load().requests_in_flight)

    async def abort_requests(self, request: pb.AbortRequestsRequest, call: Call) -> pb.AbortRequestsResponse:
        self._only_operators()
        checks, ids = Checks(), request.response_ids
        checks.count(ids, "response_ids", MAX_ABORTED_IDS)
        checks.require(
            not (request.all and ids), "response_ids", "must be empty when all is set; leave out one of them"
        )
        checks.require(request.all or len(ids) > 0, "response_ids", "is empty; name requests, or set all")
        checks.raise_if_any()
        return pb.AbortRequestsResponse(aborted=self._engine().abort([] if request.all else list(ids)))

    async def flush_cache(self, request: pb.FlushCacheRequest, call: Call) -> pb.FlushCacheResponse:
        self._only_operators()
        self._engine().flush_cache()
        return pb.FlushCacheResponse()

    def _only_operators(self) -> None:
        if not self._operator:
            raise PermissionDeniedError(
                "only on the operators' listener: start the server with --admin-port and call there"
            )

    def _engine(self) -> EngineClient:
        if self._serving.engine is None:
            raise ModelLoadingError("the engine is still starting", retry_after_s=RETRY_AFTER_LOADING_S)
        return self._serving.engine
