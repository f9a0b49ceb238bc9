"""What runs of an engine's ranks, seen from outside."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.service_process import ServiceProcess, command_of


def in_session(session: int) -> list[int]:
    """Processes of a session, zombies left out; an engine and the ranks it started are one."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, of = fields[0], int(fields[3])
        if of == session and state != "Z":
            found.append(int(path.name))
    return sorted(found)


def rank_pids(service: ServiceProcess) -> list[int]:
    """Of the ranks of a service's one engine, in the order of ranks."""
    engine = service.engine_pid()
    others = [pid for pid in in_session(engine) if b"engine.rank_process" in command_of(pid)]
    return [engine, *others]


@contextmanager
def main_thread_held(pid: int) -> Iterator[None]:
    """Its main thread stands still for good, as in a call that never returns; its other threads go on. Needs to trace
    it, as a debugger does: until the context's end what is left of the thread is this process's."""
    attach, any_child = 16, 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(attach, pid, None, None) < 0:
        pytest.skip(f"tracing is refused here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        try:
            # It stopped first, and was killed since: until both are waited for it stays a zombie.
            while not os.WIFSIGNALED(os.waitpid(pid, any_child)[1]):
                pass
        except ChildProcessError:
            pass


def with_mark(mark: str) -> list[int]:
    """Processes, zombies left out, that inherited a variable of this name."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if f"{mark}=".encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return sorted(found)
