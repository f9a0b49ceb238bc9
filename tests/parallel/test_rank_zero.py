"""The engine's process as rank 0, with a rank beside it that a test acts: what it makes of a rank that goes wrong."""

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

import pytest

from tests.support.local_engine import TINY_LIMITS, write_tiny_model
from tests.support.stack import free_port
from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire.engine.v1alpha import ranks_pb2 as ranks_pb
from tokenwire_service.engine.codec import configure_to_pb
from tokenwire_service.engine.process_client import ProcessEngineClient
from tokenwire_service.engine.rank_hello import make_hello
from tokenwire_service.engine.rank_link import RankLink
from tokenwire_service.errors import ConfigError, StartupError
from tokenwire_service.parallel.identity import RankIdentity
from tokenwire_service.weights.resolved import ResolvedModel

CONFIG = dataclasses.replace(TINY_LIMITS, num_shard=2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


class ActedRank:
    """Comes to rank 0's door, with what `change` makes of its hello."""

    def __init__(
        self, model: ResolvedModel, identity: RankIdentity, change: Callable[[ranks_pb.RankHello], None]
    ) -> None:
        self._configuration = configure_to_pb(model, "float32", CONFIG, dataclasses.replace(identity, rank=1))
        self._address = (identity.address, identity.port)
        self._change = change
        self.links: list[RankLink[ranks_pb.RankZeroMessage]] = []

    async def come(self, *, plans_too: bool = True) -> RankLink[ranks_pb.RankZeroMessage]:
        """Return the control link once there is one."""
        for plans in (False, True) if plans_too else (False,):
            connection = await self._connect()
            link = RankLink(connection, ranks_pb.RankZeroMessage)
            self.links.append(link)
            hello = make_hello(self._configuration, version("tokenwire-service"), plans=plans)
            self._change(hello)
            link.send(ranks_pb.RankMessage(hello=hello))
        return self.links[0]

    async def _connect(self) -> socket.socket:
        while True:
            try:
                return await asyncio.to_thread(socket.create_connection, self._address, 20)
            except OSError:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def rank_zero(
    model: ResolvedModel, change: Callable[[ranks_pb.RankHello], None] = lambda hello: None
) -> AsyncIterator[tuple[ProcessEngineClient, ActedRank]]:
    """An engine's process that waits for its other rank."""
    identity = RankIdentity(0, 2, 0, 1, "127.0.0.1", free_port(), "secret")
    client = ProcessEngineClient(model, "float32", CONFIG, identity=identity, logger=logging.getLogger("test"))
    rank = ActedRank(model, identity, change)
    try:
        yield client, rank
    finally:
        await client.close()
        for link in rank.links:
            link.close()


async def test_a_rank_that_cannot_load_is_named(tiny_model: ResolvedModel) -> None:
    async with rank_zero(tiny_model) as (client, rank):
        starting = asyncio.create_task(client.start())
        link = await rank.come()
        failure = pb.StartupFailure(kind="ConfigError", message="its disk is full")
        link.send(ranks_pb.RankMessage(startup_failure=failure))
        with pytest.raises(ConfigError, match=r"^rank 1 of 2: its disk is full$"):
            await starting


async def test_a_rank_with_other_flags_is_named_with_the_flag(tiny_model: ResolvedModel) -> None:
    def change(hello: ranks_pb.RankHello) -> None:
        hello.limits.max_batch_size = 3

    async with rank_zero(tiny_model, change) as (client, rank):
        starting = asyncio.create_task(client.start())
        link = await rank.come(plans_too=False)
        with pytest.raises(ConfigError, match="rank 1 was started with --max-batch-size 3, rank 0 with 16"):
            await starting
        refused = await asyncio.to_thread(link.receive, 20)
        while refused.alive:
            refused = await asyncio.to_thread(link.receive, 20)
        assert "--max-batch-size 3" in refused.refused


async def test_a_rank_lost_while_loading_ends_the_start(
    tiny_model: ResolvedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    async with rank_zero(tiny_model) as (client, rank):
        starting = asyncio.create_task(client.start())
        link = await rank.come()
        message = await asyncio.to_thread(link.receive, 20)
        while not message.HasField("setup"):
            message = await asyncio.to_thread(link.receive, 20)
        for each in rank.links:
            each.close()
        with pytest.raises(StartupError, match="ended with status 1"):
            await starting
        assert "rank 1 closed its connection; ending all 2 ranks" in capfd.readouterr().err


async def test_a_port_that_is_taken_is_named(tiny_model: ResolvedModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        identity = RankIdentity(0, 2, 0, 1, "127.0.0.1", port, "secret")
        client = ProcessEngineClient(tiny_model, "float32", CONFIG, identity=identity)
        try:
            with pytest.raises(StartupError, match=rf"rank 0 cannot listen at 127\.0\.0\.1:{port}.*MASTER_PORT"):
                await client.start()
        finally:
            await client.close()
