"""A rank's process, as whoever starts it holds it: rank 0 on one machine, a supervisor under torchrun."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Sequence

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.engine.framing import encode_frame

RANK_MODULE = "tokenwire_service.engine.rank_process"
STOPPED, LOST, REFUSED = 0, 1, 2
"""Exit statuses: asked to stop; the group went down, start again; this rank cannot be, its log says why."""


class RankChild:
    """Alive as long as its starter is: the starter's end of its socket closes with the starter."""

    def __init__(
        self,
        configuration: pb.Configure,
        log_arguments: Sequence[str],
        *,
        new_session: bool = False,
        module: str = RANK_MODULE,
    ) -> None:
        """`configuration` has the rank's place. In the starter's session it goes when that is killed as a whole; a
        terminal's Ctrl-C reaches it only there. `module` is what it runs."""
        ours, theirs = socket.socketpair()
        memory_fd = configuration.place.memory_fd
        with theirs:
            command = [sys.executable, "-m", module, str(theirs.fileno()), *log_arguments]
            inherited = (theirs.fileno(), *((memory_fd,) if memory_fd else ()))
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=inherited, start_new_session=new_session
            )
        self.rank = int(configuration.place.rank)
        self._connection = ours
        with contextlib.suppress(OSError):
            # One that died at once shows by its status.
            ours.sendall(encode_frame(configuration.SerializeToString()))

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """Its exit status once it ended; negative for a signal."""
        return self._popen.poll()

    def fileno(self) -> int:
        """Readable when it gave a sign of life, or ended."""
        return self._connection.fileno()

    def read_sign(self) -> bool:
        """Take in what made it readable; False when it ended."""
        try:
            return bool(self._connection.recv(1 << 10))
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once."""
        if self._popen.poll() is None:
            self._popen.kill()

    def reap(self, timeout_s: float) -> int:
        """Wait for its end, kill it after `timeout_s`; its exit status."""
        try:
            status = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait()
        self._connection.close()
        return status


def told(status: int) -> str:
    """An exit status, for the operator."""
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
