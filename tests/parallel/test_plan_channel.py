"""Plans on their way from rank 0 to the others."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenwire_service.parallel.plan_channel import PlanReceiver, PlanSender

Plan = NDArray[np.int32]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with connected() as pair:
        yield pair


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    with sender, receiver:
        yield sender, receiver


def plan(num_words: int, seed: int = 0) -> Plan:
    words = np.random.default_rng(seed).integers(-(2**31), 2**31, num_words, dtype=np.int32)
    words[0] = num_words
    return words


def test_plans_of_all_lengths_arrive_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    lengths = [8, 1, 1023, 1024, 1025, 300_000, 9, 2048, 1, 70_001, 12]
    plans = [plan(length, seed) for seed, length in enumerate(lengths)]
    sender, receiver = PlanSender([ends[0]]), PlanReceiver(ends[1])

    def send() -> None:
        for words in plans:
            sender.send(words)
        sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    received = []
    while (words := receiver.receive()) is not None:
        received.append(words)
    thread.join()
    assert [len(words) for words in received] == lengths
    for got, sent in zip(received, plans, strict=True):
        np.testing.assert_array_equal(got, sent)


def test_a_plan_may_come_byte_by_byte(ends: tuple[socket.socket, socket.socket]) -> None:
    receiver, words = PlanReceiver(ends[1]), plan(5)
    thread = threading.Thread(target=lambda: [ends[0].sendall(bytes([byte])) for byte in words.tobytes()])
    thread.start()
    np.testing.assert_array_equal(receiver.receive(), words)
    thread.join()


def test_every_rank_gets_every_plan() -> None:
    with connected() as first, connected() as second, connected() as third:
        pairs = (first, second, third)
        sender = PlanSender([ours for ours, _ in pairs])
        receivers = [PlanReceiver(theirs) for _, theirs in pairs]
        for length in (40, 3):
            sender.send(plan(length))
            for receiver in receivers:
                np.testing.assert_array_equal(receiver.receive(), plan(length))


@pytest.mark.parametrize("num_words", [0, -5, 2**31 - 1])
def test_an_impossible_length_is_refused(ends: tuple[socket.socket, socket.socket], num_words: int) -> None:
    ends[0].sendall(struct.pack("<i", num_words))
    with pytest.raises(ValueError, match="words"):
        PlanReceiver(ends[1]).receive()


def test_an_end_in_the_middle_of_a_plan_is_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(plan(100).tobytes()[:200])
    ends[0].close()
    assert PlanReceiver(ends[1]).receive() is None


def test_close_wakes_who_waits(ends: tuple[socket.socket, socket.socket]) -> None:
    receiver = PlanReceiver(ends[1])
    received: list[Plan | None] = []
    thread = threading.Thread(target=lambda: received.append(receiver.receive()))
    thread.start()
    receiver.close()
    thread.join(10)
    assert received == [None]


def send_many(sender: PlanSender) -> None:
    """More than fits on the way."""
    for _ in range(10_000):
        sender.send(plan(1000))


def test_a_receiver_that_is_gone_is_an_error(ends: tuple[socket.socket, socket.socket]) -> None:
    sender = PlanSender([ends[0]])
    ends[1].close()
    with pytest.raises(OSError, match=r"reset|pipe"):
        send_many(sender)
