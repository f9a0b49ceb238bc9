"""The event loop for programs with many streams: gRPC's reader, the poller's place, and streams that all arrive."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tokenwire_client import event_loop
from tokenwire_client.event_loop import new_event_loop

STREAMS_PROGRAM = """
import asyncio, contextlib, os, sys, threading
import grpc
from tokenwire_client.event_loop import new_event_loop

def places():
    found = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        # gRPC ends threads it no longer needs.
        with contextlib.suppress(ProcessLookupError):
            found[thread] = os.sched_getscheduler(thread), os.sched_getaffinity(thread)
    return found

def may_place():
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.sched_setaffinity(0, os.sched_getaffinity(0))
    except OSError:
        return False
    return True

usual = (os.sched_getscheduler(0), os.sched_getaffinity(0)) if sys.platform == "linux" else None

async def count(request, context):
    for number in range(200):
        await context.write(number.to_bytes(2, "big"))

async def read(channel):
    call = channel.unary_stream("/test.Test/Count")(b"")
    return [int.from_bytes(message, "big") async for message in call]

async def main():
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(count)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Count": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answers = await asyncio.gather(*(read(channel) for _ in range(32)))
    assert answers == [list(range(200))] * 32
    if sys.platform == "linux":
        poller, = (thread for thread in threading.enumerate() if "poll" in thread.name)
        found = places()
        policy, cpus = found.pop(poller.native_id)
        assert len(found) > 3
        assert all(place == usual for place in found.values()), found
        placed = (policy, len(cpus)) == (os.SCHED_BATCH, 1)
        assert placed == await asyncio.to_thread(may_place), (policy, cpus)
    await server.stop(None)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
print("all arrived")
"""


@pytest.fixture(autouse=True)
def nothing_is_placed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests' channels have a poller in this process."""
    monkeypatch.setattr(event_loop, "_poller_id", lambda: None)


class Reader:
    """Takes one byte at each call, as gRPC's does."""

    def __init__(self, wake: socket.socket) -> None:
        self.wake = wake
        self.taken = 0
        self.called = asyncio.Event()
        self.all_taken = asyncio.Event()

    def handle(self, num: int, loop: Any) -> None:
        self.taken += len(self.wake.recv(1))
        self.called.set()
        if self.taken == num:
            self.all_taken.set()


class GrpcReader(Reader):
    """One that looks like gRPC's."""


GrpcReader.__module__ = "grpc._cython.cygrpc"


@contextmanager
def wakes() -> Iterator[tuple[socket.socket, socket.socket]]:
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    with reading, writing:
        yield reading, writing


async def taken_at_once(kind: type[Reader], num: int) -> int:
    """Bytes that the reader had taken when the loop came back to its first waiter."""
    loop = asyncio.get_running_loop()
    with wakes() as (reading, writing):
        reader = kind(reading)
        writing.send(bytes(num))
        loop.add_reader(reading, partial(reader.handle, num, loop))
        await reader.called.wait()
        taken = reader.taken
        await reader.all_taken.wait()
        loop.remove_reader(reading)
    return taken


def test_all_bytes_that_wait_are_taken_in_one_turn_for_grpc_alone() -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(taken_at_once(GrpcReader, 40)) == 40
        assert runner.run(taken_at_once(Reader, 40)) < 40


def test_a_socket_that_its_reader_closed_is_left_alone() -> None:
    with wakes() as (reading, writing):
        calls = []

        def close() -> None:
            calls.append(reading.recv(1))
            reading.close()

        writing.send(b"123")
        event_loop._Completions(reading, close, ())()
        assert calls == [b"1"]


def test_a_reader_that_takes_all_at_once_may_find_nothing() -> None:
    with wakes() as (reading, writing):
        taken = []

        def read() -> None:
            taken.append(reading.recv(1 if not taken else 100))

        writing.send(b"1234")
        event_loop._Completions(reading, read, ())()
        assert taken == [b"1", b"234"]


def test_an_end_of_the_socket_is_told_once() -> None:
    with wakes() as (reading, writing):
        calls = []
        writing.close()
        event_loop._Completions(reading, lambda: calls.append(reading.recv(1)), ())()
        assert calls == [b""]


class System:
    """Notes what is asked of it, and forbids what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.forbidden = ""
        self.cpu = 5
        monkeypatch.setattr(event_loop, "_poller_id", lambda: 77)
        monkeypatch.setattr(event_loop, "_cpu_reader", lambda: lambda: self.cpu)
        monkeypatch.setattr(os, "sched_getaffinity", self.home)
        for name in ("sched_setscheduler", "sched_setaffinity"):
            monkeypatch.setattr(os, name, partial(self.call, name))

    def home(self, thread: int) -> set[int]:
        if self.forbidden == "sched_getaffinity":
            raise PermissionError
        return {4, 5, 6}

    def call(self, name: str, thread: int, *arguments: Any) -> None:
        self.calls.append((name, thread, arguments[0]))
        if name == self.forbidden:
            raise PermissionError

    def taken(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


linux = pytest.mark.skipif(sys.platform != "linux", reason="the poller is placed on Linux alone")


@linux
def test_the_poller_is_moved_when_the_loop_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch)
    poller = event_loop._Poller()
    assert system.taken() == [("sched_setscheduler", 77, os.SCHED_BATCH)]
    poller.follow()
    poller.follow()
    system.cpu = 6
    poller.follow()
    assert system.taken() == [("sched_setaffinity", 77, (5,)), ("sched_setaffinity", 77, (6,))]


@linux
def test_a_poller_that_cannot_be_placed_is_put_back_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    as_it_was = [("sched_setaffinity", 77, {4, 5, 6}), ("sched_setscheduler", 77, os.SCHED_OTHER)]
    system = System(monkeypatch)
    poller = event_loop._Poller()
    poller.follow()
    system.taken()
    system.forbidden, system.cpu = "sched_setaffinity", 6
    poller.follow()
    assert system.taken() == [("sched_setaffinity", 77, (6,)), *as_it_was]
    system.cpu = 5
    poller.follow()
    system.forbidden = "sched_setscheduler"
    event_loop._Poller().follow()
    assert system.taken() == [("sched_setscheduler", 77, os.SCHED_BATCH), *as_it_was]
    system.forbidden = "sched_getaffinity"
    event_loop._Poller().follow()
    assert ("sched_setscheduler", 77, os.SCHED_BATCH) not in system.taken()


def test_streams_arrive_whole_and_only_the_poller_is_placed() -> None:
    done = subprocess.run([sys.executable, "-c", STREAMS_PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all arrived\n"


def test_without_uvloop_the_loop_is_asyncios() -> None:
    program = "import sys; sys.modules['uvloop'] = None\n" + STREAMS_PROGRAM
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all arrived\n"
