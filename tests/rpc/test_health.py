"""grpc.health.v1: readiness follows the engine, and Watch goes on."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.fake_engine import FakeEngine
from tests.support.rpc import Door, load, open_door
from tokenwire_service.engine.client import EngineState
from tokenwire_service.rpc.server import GENERATION, SERVICES

Status = health_pb2.HealthCheckResponse


def stub(door: Door) -> Any:
    return health_pb2_grpc.HealthStub(door.channel)


async def check(door: Door, service: str) -> int:
    answer = await stub(door).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


@pytest.mark.parametrize("service", SERVICES)
async def test_services_are_serving_while_the_engine_is_ready(service: str) -> None:
    async with open_door(FakeEngine(state=EngineState.LOADING), loaded=False) as door:
        assert await check(door, "") == Status.SERVING
        assert await check(door, service) == Status.NOT_SERVING
        load(door.serving, door.engine, door.model)
        assert await check(door, service) == Status.NOT_SERVING
        door.engine.set_state(EngineState.READY)
        assert await check(door, service) == Status.SERVING
        door.engine.set_state(EngineState.DOWN)
        assert await check(door, service) == Status.NOT_SERVING
        assert await check(door, "") == Status.SERVING


async def test_watch_tells_every_change_until_cancelled() -> None:
    async with open_door(FakeEngine(state=EngineState.LOADING), loaded=False) as door:
        watch = stub(door).Watch(health_pb2.HealthCheckRequest(service=GENERATION))
        assert (await watch.read()).status == Status.NOT_SERVING
        load(door.serving, door.engine, door.model)
        door.engine.set_state(EngineState.READY)
        assert (await watch.read()).status == Status.SERVING
        door.engine.set_state(EngineState.DOWN)
        assert (await watch.read()).status == Status.NOT_SERVING
        door.engine.set_state(EngineState.READY)
        assert (await watch.read()).status == Status.SERVING
        drained = asyncio.ensure_future(door.server.drain(0.0))
        assert (await watch.read()).status == Status.NOT_SERVING
        await drained


async def test_watch_of_an_unknown_service_stays_open() -> None:
    async with open_door() as door:
        watch = stub(door).Watch(health_pb2.HealthCheckRequest(service="nope"))
        assert (await watch.read()).status == Status.SERVICE_UNKNOWN
        assert not watch.done()
        watch.cancel()


async def test_list_names_everything_and_check_of_an_unknown_name_is_not_found() -> None:
    async with open_door() as door:
        listed = await stub(door).List(health_pb2.HealthListRequest())
        assert set(listed.statuses) == {"", *SERVICES}
        assert {status.status for status in listed.statuses.values()} == {Status.SERVING}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(door, "nope")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
