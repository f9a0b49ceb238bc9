"""A rank other than 0: `python -m tokenwire_service.engine.rank_process FD LOG_LEVEL [json]`, started by a RankChild.

FD is its end of a socket pair, over which it is told its place and its configuration, and gives a sign of life each
second. It finds rank 0, loads its part of the model, and carries out one plan after the other. It decides nothing.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from typing import NoReturn

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire.engine.v1alpha import ranks_pb2 as ranks_pb
from tokenwire_service.core.logging import configure_logging
from tokenwire_service.engine.codec import configure_from_pb, place_from_pb
from tokenwire_service.engine.framing import read_frames
from tokenwire_service.engine.rank_child import LOST, REFUSED, STOPPED
from tokenwire_service.engine.rank_hello import make_hello
from tokenwire_service.engine.rank_link import RankLink
from tokenwire_service.engine.startup_failure import failure_to_pb, one_line
from tokenwire_service.errors import StartupError
from tokenwire_service.parallel.identity import RankIdentity
from tokenwire_service.parallel.local_ranks import LocalRanks, map_memory
from tokenwire_service.parallel.plan_channel import PlanReceiver
from tokenwire_service.parallel.rendezvous import connect_store, join, leave
from tokenwire_service.runner.executor import Executor, LocalExecutor, PendingStep
from tokenwire_service.runner.machine import choose_device
from tokenwire_service.runner.step_plan import decode
from tokenwire_service.runner.worker import Worker
from tokenwire_service.weights.progress import SilentProgress

_SIGN_S = 1.0
_RETRY_S = 0.2
_TELL_S = 10.0
_EXIT_GRACE_S = 3.0
"""How long the main thread may take to end once there is nothing more to do."""
_FIRST_WORD_S = 0.25
"""How long a failed step waits for the loss of the rank that caused it to show."""


def main(arguments: list[str], make_executor: Callable[[Worker], Executor] = LocalExecutor) -> int:
    """The exit status; see rank_child. `make_executor`: what carries out plans with the loaded worker."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    descriptor, log_level, *log_format = arguments[1:]
    configure_logging(log_level, json_output=log_format == ["json"])
    starter = socket.socket(fileno=int(descriptor))
    first = next(read_frames(starter), None)
    if first is None:
        return LOST
    threading.Thread(target=_live_with, args=(starter,), name="starter", daemon=True).start()
    configuration = pb.Configure.FromString(first)
    return _Rank(configuration, place_from_pb(configuration.place)).run(make_executor)


class _Rank:
    """One life."""

    def __init__(self, configuration: pb.Configure, identity: RankIdentity) -> None:
        self._configuration = configuration
        self._identity = identity
        self._logger = logging.getLogger(f"tokenwire_service.engine.rank{identity.rank}")
        self._setups: queue.SimpleQueue[ranks_pb.RankSetup] = queue.SimpleQueue()
        self._num_steps = 0
        self._link, self._plans = self._find_rank_zero()

    def run(self, make_executor: Callable[[Worker], Executor]) -> int:
        """Until rank 0 says stop."""
        self._link.follow(self._sign_of_life, self._receive, self._lose)
        worker = self._load(self._setups.get())
        if worker is None:
            return REFUSED
        try:
            self._carry_out(make_executor(worker))
        except Exception as error:
            # Rank 0's own end may be the cause, or another's, of which rank 0 knows.
            time.sleep(_FIRST_WORD_S)
            self._logger.critical("a step failed", exc_info=True)
            self._link.send(ranks_pb.RankMessage(failure=f"failed in a step: {one_line(error)}"))
            time.sleep(_EXIT_GRACE_S)
            return LOST
        leave()
        return STOPPED

    def _find_rank_zero(self) -> tuple[RankLink[ranks_pb.RankZeroMessage], PlanReceiver]:
        own_version = version("tokenwire-service")
        link = RankLink(self._connect(), ranks_pb.RankZeroMessage)
        link.send(ranks_pb.RankMessage(hello=make_hello(self._configuration, own_version)))
        plans = RankLink(self._connect(), ranks_pb.RankZeroMessage)
        plans.send(ranks_pb.RankMessage(hello=make_hello(self._configuration, own_version, plans=True)))
        return link, PlanReceiver(plans.detach())

    def _connect(self) -> socket.socket:
        """To rank 0's door, which may open late."""
        address = (self._identity.address, self._identity.port)
        next_told = time.monotonic() + _TELL_S
        while True:
            try:
                return socket.create_connection(address, timeout=_TELL_S)
            except OSError as error:
                if time.monotonic() > next_told:
                    self._logger.info("waiting for rank 0 at %s:%d (%s)", *address, error.strerror or error)
                    next_told = time.monotonic() + _TELL_S
                time.sleep(_RETRY_S)

    def _load(self, setup: ranks_pb.RankSetup) -> Worker | None:
        """None when it failed, which rank 0 was told then."""
        identity = self._identity
        try:
            resolved, dtype, config = configure_from_pb(self._configuration)
            device = choose_device(config.device, identity.local_rank)
            store = connect_store(identity.address, setup.store_port, identity.size)
            memory_fd = self._configuration.place.memory_fd
            memory = map_memory(memory_fd) if memory_fd else None
            group = join(identity, store, device, self._link.local_address)
            local = LocalRanks(identity.local_rank, identity.num_local, memory)
            return Worker(resolved, dtype, config, SilentProgress(), group, local)
        except StartupError as error:
            failure = failure_to_pb(error)
        except Exception as error:
            time.sleep(_FIRST_WORD_S)
            self._logger.exception("loading failed")
            failure = failure_to_pb(error)
        self._link.send(ranks_pb.RankMessage(startup_failure=failure))
        time.sleep(_EXIT_GRACE_S)
        return None

    def _carry_out(self, local: Executor) -> None:
        """Every plan, in order. A device that works by itself is given the next before the last one's result."""
        depth = 2 if local.runs_ahead else 1
        pending: deque[PendingStep] = deque()
        while (plan := self._plans.receive()) is not None:
            pending.append(local.launch(decode(plan)))
            while len(pending) >= depth:
                pending.popleft().result()
                self._num_steps += 1

    def _sign_of_life(self) -> ranks_pb.RankMessage:
        return ranks_pb.RankMessage(alive=ranks_pb.RankAlive(num_steps=self._num_steps))

    def _receive(self, message: ranks_pb.RankZeroMessage) -> None:
        match message.WhichOneof("part"):
            case "setup":
                self._setups.put(message.setup)
            case "refused":
                self._logger.critical("rank 0 refuses this rank: %s", message.refused)
                self._exit(REFUSED)
            case "stop":
                self._plans.close()
                # Loading, or a step, may never come back to see that.
                time.sleep(_EXIT_GRACE_S)
                self._exit(STOPPED)

    def _lose(self, why: str) -> None:
        self._logger.error("rank 0 %s; ending", why)
        self._exit(LOST)

    def _exit(self, status: int) -> NoReturn:
        logging.shutdown()
        os._exit(status)


def _live_with(starter: socket.socket) -> None:
    """Give signs of life to whoever started this process, and end with it."""
    starter.setblocking(False)
    while True:
        readable, _, _ = select.select([starter], [], [], _SIGN_S)
        try:
            if readable and not starter.recv(1):
                break
            starter.send(b".")
        except BlockingIOError:
            # A rank 0 reads them only until all have come: its links tell it more.
            continue
        except OSError:
            break
    os._exit(LOST)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
