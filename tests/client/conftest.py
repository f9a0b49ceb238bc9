"""A scripted server on a real port, and clients for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.scripted_server import ScriptedServer
from tokenwire_client import AsyncClient, Client


class Either:
    """Calls a client of either kind by one form: the sync one runs in threads."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        call = getattr(self.client, method)
        if isinstance(self.client, AsyncClient):
            return await call(*args, **options)
        return await asyncio.to_thread(call, *args, **options)

    async def events(self, method: str, *args: Any, **options: Any) -> list[Any]:
        """All events of a stream."""
        stream = getattr(self.client, method)(*args, **options)
        if isinstance(self.client, AsyncClient):
            return [event async for event in stream]
        return await asyncio.to_thread(list, stream)

    async def result(self, method: str, *args: Any, **options: Any) -> Any:
        """What a stream adds up to."""
        stream = getattr(self.client, method)(*args, **options)
        return await stream.result() if isinstance(self.client, AsyncClient) else await asyncio.to_thread(stream.result)

    async def close(self) -> None:
        if isinstance(self.client, AsyncClient):
            await self.client.close()
        else:
            await asyncio.to_thread(self.client.close)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Either]]:
    """Makes clients of both kinds in turn, and closes them."""
    made: list[Either] = []

    def make(target: str, **options: Any) -> Either:
        made.append(Either(request.param(target, **{"timeout": 20.0, **options})))
        return made[-1]

    yield make
    for client in made:
        await client.close()
