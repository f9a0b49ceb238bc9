"""Rank 0's door: who is let in, and what those who are not are told."""

import dataclasses
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from tests.support.local_engine import TINY_LIMITS
from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire.engine.v1alpha import ranks_pb2 as ranks_pb
from tokenwire_service.engine.rank_hello import find_mismatch, make_hello
from tokenwire_service.engine.rank_link import RankLink
from tokenwire_service.engine.rank_meeting import Link, Meeting
from tokenwire_service.errors import ConfigError, StartupError
from tokenwire_service.parallel.identity import RankIdentity

SIZE = 3


def configuration(rank: int) -> pb.Configure:
    return pb.Configure(
        model=pb.Model(config_json='{"layers": 2}', dtype="auto"),
        limits=pb.EngineLimits(**dataclasses.asdict(TINY_LIMITS)),
        place=pb.RankPlace(rank=rank, size=SIZE, token="secret"),
    )


def hello(rank: int, *, plans: bool = False, version: str = "1") -> ranks_pb.RankHello:
    return make_hello(configuration(rank), version, plans=plans)


class Door:
    """A meeting that waits in a thread."""

    def __init__(self) -> None:
        self.meeting = Meeting(RankIdentity(0, SIZE, 0, SIZE, token="secret"), logging.getLogger("test"))
        self.came: list[int] = []
        self.ended: Future[None] = Future()
        threading.Thread(target=self._wait, daemon=True).start()

    def come(self, said: ranks_pb.RankHello) -> RankLink[ranks_pb.RankZeroMessage]:
        connection = socket.create_connection(("127.0.0.1", self.meeting.port), timeout=20)
        link = RankLink(connection, ranks_pb.RankZeroMessage)
        link.send(ranks_pb.RankMessage(hello=said))
        return link

    def close(self) -> None:
        for link in self.meeting.links.values():
            link.close()
        for connection in self.meeting.plans.values():
            connection.close()

    def _wait(self) -> None:
        try:
            self.meeting.wait(hello(0), (), self._take)
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _take(self, rank: int, link: Link) -> None:
        self.came.append(rank)


def test_it_is_complete_when_all_have_come_with_both_connections() -> None:
    door = Door()
    links = [door.come(hello(rank, plans=plans)) for plans in (True, False) for rank in (2, 1)]
    door.ended.result(20)
    assert sorted(door.meeting.links) == sorted(door.meeting.plans) == [1, 2]
    assert sorted(door.came) == [1, 2]
    door.close()
    for link in links:
        link.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda said: setattr(said, "token", "guess"), "token"),
        (lambda said: setattr(said, "token", ""), "token"),
        (lambda said: setattr(said, "rank", 0), "no rank 0"),
        (lambda said: setattr(said, "rank", 3), "no rank 3 of 3"),
    ],
)
def test_strangers_are_turned_away_and_do_not_disturb(change: Callable[[ranks_pb.RankHello], None], why: str) -> None:
    door, said = Door(), hello(1)
    change(said)
    stranger = door.come(said)
    assert why in stranger.receive(20).refused
    links = [door.come(hello(rank, plans=plans)) for plans in (False, True) for rank in (1, 2)]
    door.ended.result(20)
    door.close()
    for link in (stranger, *links):
        link.close()


def test_noise_at_the_door_does_not_disturb() -> None:
    door = Door()
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x02\x00\x00\x00\x08"):
        with socket.create_connection(("127.0.0.1", door.meeting.port), timeout=20) as connection:
            connection.sendall(noise)
    links = [door.come(hello(rank, plans=plans)) for plans in (False, True) for rank in (1, 2)]
    door.ended.result(20)
    door.close()
    for link in links:
        link.close()


def test_a_rank_that_does_not_fit_is_told_and_ends_the_start() -> None:
    door, said = Door(), hello(2)
    said.limits.block_size = 64
    link = door.come(said)
    refusal = link.receive(20).refused
    assert refusal == "rank 2 was started with --block-size 64, rank 0 with 16; give every rank the same flags"
    with pytest.raises(ConfigError, match="rank 2 was started with --block-size 64"):
        door.ended.result(20)
    link.close()


def test_everything_that_must_be_equal_is_compared() -> None:
    ours = hello(0)
    assert find_mismatch(hello(1), ours) is None
    for field in ours.limits.DESCRIPTOR.fields:
        theirs = hello(1)
        current = getattr(theirs.limits, field.name)
        changed = "other" if isinstance(current, str) else not current if isinstance(current, bool) else current + 1
        setattr(theirs.limits, field.name, changed)
        mismatch = find_mismatch(theirs, ours)
        if field.name == "num_threads":
            assert mismatch is None
        else:
            assert f"--{field.name.replace('_', '-')} " in (mismatch or "")
    for name, told in (("version", "version other"), ("dtype", "--dtype other"), ("model_digest", "config.json")):
        theirs = hello(1)
        setattr(theirs, name, "other")
        assert told in (find_mismatch(theirs, ours) or "")


def test_an_address_that_is_not_this_machines_is_an_error() -> None:
    with pytest.raises(StartupError, match=r"cannot listen at 192\.0\.2\.1:29501.*MASTER_ADDR"):
        Meeting(RankIdentity(0, 2, 0, 1, "192.0.2.1", 29501), logging.getLogger("test"))
