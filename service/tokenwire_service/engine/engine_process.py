"""One engine process as the frontend holds it: its socket, its messages, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import cast

from google.protobuf.message import DecodeError

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.engine.framing import FrameDecoder, FramingError, encode_frame

ENGINE_MODULE = "tokenwire_service.engine.process"
Receive = Callable[[pb.EngineMessage], None]
_POLL_S = 0.01
_GROUP_EXIT_S = 1.0
"""How long ranks that were killed are waited for: what they held should be free when the next engine looks."""


class EngineProcess(asyncio.Protocol):
    """Spawned by `spawn`; `ended` is done when its socket closed or it was killed, after which `reap` waits for the
    process itself.

    It leads a session of its own, of which the ranks it starts are part: the group ends with it, whatever ends it.
    """

    def __init__(self, popen: subprocess.Popen[bytes], receive: Receive) -> None:
        self._popen = popen
        self._receive = receive
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def spawn(
        cls,
        receive: Receive,
        *,
        log_level: str,
        json_output: bool,
        module: str = ENGINE_MODULE,
        environ: Mapping[str, str] | None = None,
    ) -> EngineProcess:
        """Start a process that waits for its configuration; `receive` gets its messages in order. `environ` is its
        environment, this process's own when None."""
        log_arguments = [log_level, "json"] if json_output else [log_level]
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                popen = _start(module, theirs.fileno(), log_arguments, environ)
            ours.setblocking(False)
            process = cls(popen, receive)
            await asyncio.get_running_loop().create_unix_connection(lambda: process, sock=ours)
        except BaseException:
            ours.close()
            raise
        return process

    @property
    def pid(self) -> int:
        return self._popen.pid

    def send(self, message: pb.FrontendMessage) -> None:
        """Never blocks; after the process ended it does nothing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message.SerializeToString()))

    @property
    def exited(self) -> bool:
        """Whether it ended, its ranks aside. Something it started may still hold its end of the socket open."""
        return self._popen.returncode is not None or _has_exited(self._popen.pid)

    def kill(self) -> None:
        """End it and its ranks at once; `ended` is done without waiting for them, who may be stuck in a driver."""
        self._kill_group()
        if self._transport is not None:
            self._transport.abort()

    async def reap(self, timeout_s: float) -> int:
        """Close the socket, wait for the process, kill it after `timeout_s`; its exit status. Nothing is left of its
        group then."""
        if self._transport is not None:
            self._transport.close()
        await asyncio.to_thread(_wait_for_exit, self._popen.pid, timeout_s)
        # Before the process is reaped, so that its group's id cannot be anybody else's.
        self._kill_group()
        status = await asyncio.to_thread(self._popen.wait)
        await asyncio.to_thread(_wait_for_group, self._popen.pid)
        return status

    def _kill_group(self) -> None:
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._decoder.feed(data):
                self._receive(pb.EngineMessage.FromString(payload))
        except (DecodeError, FramingError):
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _start(
    module: str, fd: int, log_arguments: list[str], environ: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    """In a session of its own: the terminal's Ctrl-C is the frontend's to handle."""
    command = [sys.executable, "-m", module, str(fd), *log_arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(fd,), start_new_session=True, env=environ)


def _has_exited(pid: int) -> bool:
    """Of a child, which stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait_for_exit(pid: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _has_exited(pid) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _wait_for_group(group: int) -> None:
    """Wait until no process of the killed group is left. Those that came to this process, as orphans come to a
    container's first one, are reaped."""
    deadline = time.monotonic() + _GROUP_EXIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-group, os.WNOHANG)[0]:
                pass
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(_POLL_S)
