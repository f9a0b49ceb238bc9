"""The control connection between rank 0 and another rank: who is heard, who is lost, and why."""

import queue
import select
import socket
from collections.abc import Iterator

import pytest

from tokenwire.engine.v1alpha import ranks_pb2 as pb
from tokenwire_service.engine.framing import encode_frame
from tokenwire_service.engine.rank_link import LinkError, Pulse, RankLink

QUICK = Pulse(interval_s=0.02, silence_s=0.2)


class Followed:
    """Rank 0's end of a link that is followed, and the bare other end."""

    def __init__(self, pulse: Pulse = QUICK) -> None:
        ours, self.other = socket.socketpair()
        self.other.settimeout(20)
        self.link = RankLink(ours, pb.RankMessage, pulse)
        self.messages: queue.SimpleQueue[pb.RankMessage] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.link.follow(lambda: pb.RankZeroMessage(alive=True), self.messages.put, self.lost.put)

    def say(self, message: pb.RankMessage) -> None:
        self.other.sendall(encode_frame(message.SerializeToString()))


@pytest.fixture
def followed() -> Iterator[Followed]:
    followed = Followed()
    yield followed
    followed.link.close()
    followed.other.close()


def alive(num_steps: int) -> pb.RankMessage:
    return pb.RankMessage(alive=pb.RankAlive(num_steps=num_steps))


def test_signs_of_life_go_both_ways(followed: Followed) -> None:
    sign = encode_frame(pb.RankZeroMessage(alive=True).SerializeToString())
    for number in range(20):
        followed.say(alive(number))
        assert followed.other.recv(len(sign)) == sign
        assert followed.messages.get(timeout=20).alive.num_steps == number
    assert followed.lost.empty()


def test_silence_is_a_loss(followed: Followed) -> None:
    followed.say(alive(1))
    assert followed.lost.get(timeout=20).startswith("gave no sign of life for")
    assert followed.messages.get(timeout=20).alive.num_steps == 1


def test_death_is_a_loss_long_before_silence_would_be() -> None:
    followed = Followed(Pulse(interval_s=1.0, silence_s=3600.0))
    followed.say(alive(7))
    followed.other.close()
    assert followed.lost.get(timeout=20) == "closed its connection"
    assert followed.messages.get(timeout=20).alive.num_steps == 7


def test_a_death_with_our_words_unread_is_a_death_too() -> None:
    followed = Followed(Pulse(interval_s=0.05, silence_s=3600.0))
    assert select.select([followed.other], [], [], 20)[0], "a sign of life waits there"
    followed.other.close()
    assert followed.lost.get(timeout=20) == "closed its connection"


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"\xff\xff\xff\xff", "over the limit"),
        ((2 << 20).to_bytes(4, "little"), "over the limit"),
        (encode_frame(b"\x08"), "no message"),
        (b"GET / HTTP/1.1\r\n\r\n", "over the limit"),
    ],
)
def test_garbage_is_a_loss(followed: Followed, sent: bytes, why: str) -> None:
    followed.other.sendall(sent)
    assert why in followed.lost.get(timeout=20)


def test_a_link_closed_here_is_no_loss(followed: Followed) -> None:
    followed.link.close()
    assert followed.other.recv(1 << 16) is not None
    with pytest.raises(queue.Empty):
        followed.lost.get(timeout=0.1)


def test_what_came_with_the_first_message_is_not_forgotten() -> None:
    ours, other = socket.socketpair()
    link = RankLink(ours, pb.RankMessage, QUICK)
    hello = pb.RankMessage(hello=pb.RankHello(rank=3))
    other.sendall(b"".join(encode_frame(message.SerializeToString()) for message in (hello, alive(1), alive(2))))
    assert link.receive(20).hello.rank == 3
    messages: queue.SimpleQueue[pb.RankMessage] = queue.SimpleQueue()
    link.follow(lambda: pb.RankZeroMessage(alive=True), messages.put, lambda why: None)
    assert [messages.get(timeout=20).alive.num_steps for _ in range(2)] == [1, 2]
    link.close()
    other.close()


def test_who_says_nothing_at_first_is_not_waited_for() -> None:
    ours, other = socket.socketpair()
    with pytest.raises(LinkError, match=r"said nothing for 0\.05 s"):
        RankLink(ours, pb.RankMessage).receive(0.05)
    other.close()
    with pytest.raises(LinkError, match="closed"):
        RankLink(ours, pb.RankMessage).receive(20)
    ours.close()
