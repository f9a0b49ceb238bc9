"""One engine process as the frontend holds it: its socket, its messages, its end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import cast

from google.protobuf.message import DecodeError

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.engine.framing import FrameDecoder, FramingError, encode_frame

ENGINE_MODULE = "tokenwire_service.engine.process"
Receive = Callable[[pb.EngineMessage], None]


class EngineProcess(asyncio.Protocol):
    """Spawned by `spawn`; `ended` is done when its socket closed, after which `reap` waits for the process itself."""

    def __init__(self, popen: subprocess.Popen[bytes], receive: Receive) -> None:
        self._popen = popen
        self._receive = receive
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def spawn(
        cls, receive: Receive, *, log_level: str, json_output: bool, module: str = ENGINE_MODULE
    ) -> EngineProcess:
        """Start a process that waits for its configuration; `receive` gets its messages in order."""
        log_arguments = [log_level, "json"] if json_output else [log_level]
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                popen = _start(module, theirs.fileno(), log_arguments)
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

    def kill(self) -> None:
        """End it at once."""
        if self._popen.poll() is None:
            self._popen.kill()

    async def reap(self, timeout_s: float) -> int:
        """Close the socket, wait for the process, kill it after `timeout_s`; its exit status."""
        if self._transport is not None:
            self._transport.close()
        try:
            return await asyncio.to_thread(self._popen.wait, timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return await asyncio.to_thread(self._popen.wait)

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


def _start(module: str, fd: int, log_arguments: list[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: the terminal's Ctrl-C is the frontend's to handle."""
    command = [sys.executable, "-m", module, str(fd), *log_arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(fd,), start_new_session=True)
