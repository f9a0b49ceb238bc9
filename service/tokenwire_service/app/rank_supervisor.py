"""What `tokenwire serve` is under torchrun on every rank but 0: it keeps this rank's process going.

The rank's process ends with its group. This one starts it again, so that the group comes back after a failure without
torchrun starting everything anew, until rank 0 says that it stops, or a signal comes. It imports no torch.
"""

from __future__ import annotations

import logging
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tokenwire_service.app.progress import choose_progress
from tokenwire_service.config import Config, FrontendConfig
from tokenwire_service.engine.codec import configure_to_pb
from tokenwire_service.engine.rank_child import REFUSED, STOPPED, RankChild, told
from tokenwire_service.errors import StartupError
from tokenwire_service.parallel.identity import RankIdentity
from tokenwire_service.weights.resolve import resolve_model

_LOOK_S = 0.25
_SILENCE_S = 8.0
"""How long the rank's process, which gives a sign of life each second, may give none."""
_REAP_S = 5.0
_FIRST_DELAY_S, _MAX_DELAY_S = 0.5, 10.0
_HEALTHY_S = 60.0
"""A process that lived so long starts the delays anew."""

log = logging.getLogger(__name__)


def run_rank(config: Config, identity: RankIdentity, cache_root: Path | None) -> int:
    """Return the exit code once rank 0 stops, or a signal came. Raises StartupError."""
    supervisor = RankSupervisor(config.frontend)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.receive_signal)
    resolved = resolve_model(config.model, choose_progress(config.frontend, log), cache_root)
    configuration = configure_to_pb(resolved, config.model.dtype, config.engine, identity)
    log.info("rank %d of %d; rank 0 is at %s:%d", identity.rank, identity.size, identity.address, identity.port)
    frontend = config.frontend
    log_arguments = [frontend.log_level, "json"] if frontend.json_output else [frontend.log_level]
    return supervisor.run(lambda: RankChild(configuration, log_arguments, new_session=True))


class RankSupervisor:
    """One rank's process after the other."""

    def __init__(self, frontend: FrontendConfig) -> None:
        self._grace_s = frontend.lame_duck_s + frontend.graceful_termination_timeout_s
        self._child: RankChild | None = None
        self._num_signals = 0
        self._deadline = float("inf")

    def receive_signal(self, number: int, frame: FrameType | None) -> None:
        """The first asks to end when rank 0 does, at most after the grace period; the second, or one that comes while
        there is no process, to end now."""
        self._num_signals += 1
        if self._child is None:
            raise SystemExit(0)
        self._deadline = time.monotonic() + self._grace_s if self._num_signals == 1 else 0.0

    def run(self, start: Callable[[], RankChild]) -> int:
        """Until one ended by intention. Raises StartupError when this rank cannot be."""
        delay_s = _FIRST_DELAY_S
        while True:
            began = time.monotonic()
            self._child = start()
            status = self._follow(self._child)
            self._child = None
            if status == STOPPED or self._num_signals:
                return 0
            if status == REFUSED:
                raise StartupError("this rank cannot start; its log above says why")
            if time.monotonic() - began > _HEALTHY_S:
                delay_s = _FIRST_DELAY_S
            log.error("the rank's process %s; starting it again in %.1f s", told(status), delay_s)
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    def _follow(self, child: RankChild) -> int:
        """Its exit status. Ends it when it is silent, or the time to end is over."""
        poll = select.poll()
        poll.register(child, select.POLLIN)
        speaks, silent_s = False, 0.0
        while silent_s < _SILENCE_S and time.monotonic() < self._deadline:
            # Counted in looks, so that a machine that stood still as a whole does not count.
            if not poll.poll(_LOOK_S * 1000):
                silent_s += _LOOK_S if speaks else 0.0
            elif child.read_sign():
                speaks, silent_s = True, 0.0
            else:
                return child.reap(_REAP_S)
        if silent_s >= _SILENCE_S:
            log.error("the rank's process gave no sign of life for %g s; ending it", silent_s)
        child.kill()
        return child.reap(_REAP_S)
