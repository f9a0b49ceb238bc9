"""Waiting for a server that comes up, loads, or goes away."""

from __future__ import annotations

import asyncio
import time

import pytest
from grpc_health.v1 import health_pb2

import tokenwire_client as tw
from tests.support.scripted_server import ScriptedServer
from tokenwire_client.health import GENERATION

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_is_serving_tells_the_state(server, connect) -> None:
    client = connect(server.target)
    assert not await client("is_serving")
    await server.health.set(GENERATION, NOT_SERVING)
    assert not await client("is_serving")
    await server.health.set(GENERATION, SERVING)
    assert await client("is_serving")
    assert not await client("is_serving", "another.Service")


async def test_a_server_that_cannot_be_reached_is_not_serving(connect) -> None:
    assert not await connect("127.0.0.1:1", max_retries=0)("is_serving")


async def test_waiting_ends_when_the_server_serves(server, connect) -> None:
    await server.health.set(GENERATION, NOT_SERVING)
    waiting = asyncio.create_task(connect(server.target)("wait_until_ready", 30.0))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await server.health.set(GENERATION, SERVING)
    await waiting


async def test_waiting_tells_what_it_saw_last(server, connect) -> None:
    await server.health.set(GENERATION, NOT_SERVING)
    with pytest.raises(tw.DeadlineExceeded, match=r"within 0\.3 s; last seen: NOT_SERVING"):
        await connect(server.target)("wait_until_ready", 0.3)


async def test_waiting_begins_before_the_server(connect, tmp_path) -> None:
    target = f"unix:{tmp_path}/late"
    waiting = asyncio.create_task(connect(target)("wait_until_ready", 60.0))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    server = ScriptedServer()
    await server.health.set(GENERATION, SERVING)
    await server.start(target)
    await waiting
    await server.stop()


async def test_waiting_for_nobody_ends_in_time(connect) -> None:
    begun = time.monotonic()
    with pytest.raises(tw.DeadlineExceeded, match="not ready"):
        await connect("127.0.0.1:1")("wait_until_ready", 0.5)
    assert time.monotonic() - begun >= 0.5


async def test_waiting_outlives_a_restart(connect, tmp_path) -> None:
    target = f"unix:{tmp_path}/restarted"
    first = ScriptedServer()
    await first.health.set(GENERATION, NOT_SERVING)
    await first.start(target)
    waiting = asyncio.create_task(connect(target)("wait_until_ready", 60.0))
    await asyncio.sleep(0.3)
    await first.stop()
    second = ScriptedServer()
    await second.health.set(GENERATION, SERVING)
    await second.start(target)
    await waiting
    await second.stop()
