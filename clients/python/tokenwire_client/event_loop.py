"""An event loop for programs with many streams over grpc.aio, which spends less on what gRPC has completed.

gRPC completes each read and write on a thread of its own, the poller, which wakes the loop by a byte through a socket.
Two things are done about that. The loop takes all bytes that wait at once, instead of coming back for each. And the
poller works beside the loop: on the processor the loop ran on last, and after it instead of in its place, so that what
completes meanwhile waits for one wake-up of both. What it works on is for the loop anyway, which it cannot delay.
Streaming 64 answers costs a server a sixth less CPU time (docs/performance.md of the project).

Loops are uvloop's where that is installed. On macOS the poller is left alone, and so it is where the system forbids to
place it. Not for Windows.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Base = asyncio.SelectorEventLoop
else:
    try:
        from uvloop import Loop as _Base
    except ImportError:
        _Base = asyncio.SelectorEventLoop

_GRPC = "grpc."
_POLLERS = ("_poll_wrapper", "grpc-aio-poller")
"""What the poller's thread is named after, in one version and another."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for `asyncio.Runner(loop_factory=new_event_loop)`; grpc.aio is to be used on it alone."""
    return GrpcEventLoop()


class GrpcEventLoop(_Base):
    """Knows gRPC's reader among those it is given; all others are as on any loop."""

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        """See asyncio.loop.add_reader."""
        if isinstance(fd, socket.socket) and _is_grpc(callback):
            super().add_reader(fd, _Completions(fd, callback, args))
        else:
            super().add_reader(fd, callback, *args)


class _Completions:
    """gRPC's reader, which takes a byte at each call: called until the bytes that wait are taken."""

    def __init__(self, wake: socket.socket, read: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._wake = wake
        self._read = read
        self._args = args
        self._poller = _Poller()

    def __call__(self) -> None:
        self._poller.follow()
        self._read(*self._args)
        # One that takes more at a call finds nothing at the next.
        with suppress(BlockingIOError):
            for _ in range(self._num_waiting()):
                self._read(*self._args)

    def _num_waiting(self) -> int:
        if self._wake.fileno() < 0:
            return 0
        return int.from_bytes(fcntl.ioctl(self._wake, termios.FIONREAD, bytes(4)), sys.byteorder)


class _Poller:
    """gRPC's thread that completes operations, as far as the system lets it be placed."""

    def __init__(self) -> None:
        self._current_cpu = _cpu_reader()
        self._cpu = -1
        self._thread_id = _poller_id() if self._current_cpu is not None else None
        self._home: set[int] = set()
        self._place(self._stand_back)

    def follow(self) -> None:
        """Have it run where the caller runs."""
        if self._thread_id is None or self._current_cpu is None or (cpu := self._current_cpu()) == self._cpu:
            return
        self._cpu = cpu
        self._place(lambda thread: os.sched_setaffinity(thread, (cpu,)))

    def _stand_back(self, thread: int) -> None:
        """Have it never take the place of what runs, which a thread of the usual policy may when it wakes."""
        self._home = os.sched_getaffinity(thread)
        os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))

    def _place(self, place: Callable[[int], None]) -> None:
        thread = self._thread_id
        if thread is None:
            return
        try:
            place(thread)
        except OSError:
            # As it was, and no more of it.
            self._thread_id = None
            with suppress(OSError):
                os.sched_setaffinity(thread, self._home)
            with suppress(OSError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _is_grpc(callback: Callable[..., object]) -> bool:
    method = getattr(callback, "func", callback)
    return type(getattr(method, "__self__", None)).__module__.startswith(_GRPC)


def _poller_id() -> int | None:
    """Its thread id, where there is one and no more."""
    found = [thread.native_id for thread in threading.enumerate() if any(name in thread.name for name in _POLLERS)]
    return found[0] if len(found) == 1 else None


def _cpu_reader() -> Callable[[], int] | None:
    """What tells the processor that the caller runs on; None where the system has no such function."""
    if sys.platform != "linux":
        return None
    read: Callable[[], int] | None = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return read
