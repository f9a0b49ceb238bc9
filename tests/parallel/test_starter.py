"""A rank's process lives as long as whoever started it, who need not listen."""

import socket
import threading
import time

import pytest

from tokenwire_service.engine import rank_process
from tokenwire_service.engine.rank_child import LOST


class Exited(BaseException):
    """Instead of the process's end."""


def end(status: int) -> None:
    raise Exited(status)


def test_a_starter_that_never_reads_loses_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[object] = []

    def live(starter: socket.socket) -> None:
        try:
            rank_process._live_with(starter)
        except Exited as exited:
            ended.append(exited.args[0])

    monkeypatch.setattr(rank_process, "_SIGN_S", 0.001)
    monkeypatch.setattr(rank_process.os, "_exit", end)
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with theirs:
        rank = threading.Thread(target=live, args=(theirs,), daemon=True)
        rank.start()
        before = b""
        while (unread := ours.recv(1 << 20, socket.MSG_PEEK)) != before:
            before = unread
            time.sleep(0.3)
        assert rank.is_alive(), "a full buffer is no lost starter"
        assert ours.recv(1 << 20) == unread
        assert ours.recv(1) == b".", "it goes on when somebody reads"
        ours.close()
        rank.join(20)
        assert ended == [LOST]
