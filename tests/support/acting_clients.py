"""Clients whose engines act, see acting_engine, and what tests ask about processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.support import acting_engine
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.events import Completed, EngineEvent, Failed, FailureReason, TokensGenerated
from tokenwire_service.engine.client import RequestStream
from tokenwire_service.engine.process_client import LoadCallback, Overseer, ProcessEngineClient, RestartPolicy
from tokenwire_service.engine.replicas import ReplicatedEngineClient
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel

FAST_RESTARTS = RestartPolicy(first_delay_s=0.01)
LOGGER = logging.getLogger("test")


def acting_client(
    directory: Path, *, config: EngineConfig | None = None, rank: str = "", **options: Any
) -> ProcessEngineClient:
    """Not started. `directory` is the processes' own, `options` are the client's."""
    environ = {
        **os.environ,
        acting_engine.DIRECTORY: str(directory),
        acting_engine.RANK: rank,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    model = ResolvedModel("acting", "", ModelKind.LOCAL, {}, (), directory, GenerationDefaults())
    options = {"restarts": FAST_RESTARTS, **options}
    return ProcessEngineClient(
        model, "float32", config or EngineConfig(), environ=environ, module=acting_engine.__name__, **options
    )


@contextlib.asynccontextmanager
async def acting(directory: Path, **options: Any) -> AsyncIterator[ProcessEngineClient]:
    """One that is READY."""
    client = acting_client(directory, **options)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def acting_replicas(directory: Path, num_replicas: int, **options: Any) -> AsyncIterator[ReplicatedEngineClient]:
    """Several that are READY. Their processes share the directory, and its numbers."""

    def make(index: int, overseer: Overseer, on_load: LoadCallback) -> ProcessEngineClient:
        return acting_client(directory, overseer=overseer, on_load=on_load, **options)

    client = ReplicatedEngineClient(num_replicas, make, logger=LOGGER)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


async def read_all(stream: RequestStream) -> list[EngineEvent]:
    """Every event, to the last."""
    events: list[EngineEvent] = []
    while not events or not isinstance(events[-1], Completed | Failed):
        events.extend(await stream.take())
    return events


async def tokens_of(stream: RequestStream) -> list[int]:
    """Of a request that ends well."""
    events = await read_all(stream)
    assert isinstance(events[-1], Completed), events[-1]
    return [token for event in events if isinstance(event, TokensGenerated) for token in event.token_ids]


async def failure_of(stream: RequestStream) -> FailureReason:
    """Of a request that ends badly."""
    end = (await read_all(stream))[-1]
    assert isinstance(end, Failed), end
    return end.reason


async def wait_until(condition: Callable[[], bool]) -> None:
    """For what tells nobody."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def is_over(pid: int) -> bool:
    """It ended; whoever inherited it may not have asked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def num_processes(directory: Path) -> int:
    """How many engines there were so far."""
    return len(list(directory.glob("number-*")))
