"""The process that keeps a rank going under torchrun, over children that a test acts."""

import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tokenwire_service.app import rank_supervisor
from tokenwire_service.app.main import run_service
from tokenwire_service.app.rank_supervisor import RankSupervisor
from tokenwire_service.config import Config, EngineConfig, FrontendConfig
from tokenwire_service.engine.rank_child import LOST, REFUSED, STOPPED
from tokenwire_service.errors import ConfigError, StartupError

ENVIRON = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


class Child:
    """Ends with `status` at once, or, with None, lives until it is killed; `speaks` gives one sign of life."""

    def __init__(self, status: int | None, *, speaks: bool = True) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._status = status
        self.killed = False
        if speaks:
            self._theirs.sendall(b".")
        if status is not None:
            self._theirs.close()

    def fileno(self) -> int:
        return self._ours.fileno()

    def read_sign(self) -> bool:
        return bool(self._ours.recv(1))

    def kill(self) -> None:
        self.killed = True
        self._status = -signal.SIGKILL
        self._theirs.close()

    def reap(self, timeout_s: float) -> int:
        self._ours.close()
        assert self._status is not None
        return self._status


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_supervisor, "_FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(rank_supervisor, "_LOOK_S", 0.02)
    monkeypatch.setattr(rank_supervisor, "_SILENCE_S", 0.1)


def run(*children: Child, supervisor: RankSupervisor | None = None) -> int:
    started: Iterator[Child] = iter(children)
    supervisor = supervisor or RankSupervisor(FrontendConfig())
    status = supervisor.run(lambda: next(started))  # type: ignore[arg-type,return-value]
    assert next(started, None) is None, "a child was not started"
    return status


def test_a_lost_rank_is_started_again_until_it_stops_by_intention() -> None:
    assert run(Child(LOST), Child(-9), Child(STOPPED)) == 0


def test_a_rank_that_cannot_be_ends_the_process() -> None:
    with pytest.raises(StartupError, match="cannot start"):
        run(Child(LOST), Child(REFUSED))


def test_a_rank_that_stands_still_is_ended_but_not_one_that_never_spoke_yet() -> None:
    hung = Child(None)
    assert run(hung, Child(STOPPED)) == 0
    assert hung.killed
    slow = Child(None, speaks=False)
    threading.Timer(0.5, slow._theirs.close).start()
    slow._status = STOPPED
    assert run(slow) == 0
    assert not slow.killed


def test_a_signal_lets_the_rank_end_with_rank_zero_and_a_second_ends_it_now() -> None:
    supervisor, child = RankSupervisor(FrontendConfig()), Child(None)
    threading.Timer(0.05, lambda: supervisor.receive_signal(signal.SIGTERM, None)).start()
    threading.Timer(0.06, lambda: supervisor.receive_signal(signal.SIGTERM, None)).start()
    assert run(child, supervisor=supervisor) == 0
    assert child.killed
    supervisor, child = RankSupervisor(FrontendConfig()), Child(LOST)
    supervisor._num_signals = 1
    assert run(child, supervisor=supervisor) == 0


def test_a_signal_without_a_rank_ends_the_process() -> None:
    with pytest.raises(SystemExit):
        RankSupervisor(FrontendConfig()).receive_signal(signal.SIGTERM, None)


def test_flags_that_go_against_the_launcher_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--num-shard 4, but the launcher started 2 processes \(WORLD_SIZE\)"):
        run_service(Config(engine=EngineConfig(num_shard=4)), ENVIRON)
    with pytest.raises(ConfigError, match="--replicas is for one machine"):
        run_service(Config(frontend=FrontendConfig(replicas=2)), ENVIRON)
