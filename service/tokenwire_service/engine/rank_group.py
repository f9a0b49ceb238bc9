"""Rank 0's hold of the other ranks: starts them, follows them, and ends with them when one is lost.

Ranks that no longer agree cannot go on, and the thread that waits for a collective cannot be interrupted: whoever
notices first ends this process. The others notice that, and the frontend starts everything again.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import NoReturn

import torch

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire.engine.v1alpha import ranks_pb2 as ranks_pb
from tokenwire_service.engine.codec import place_to_pb
from tokenwire_service.engine.rank_child import RANK_MODULE, RankChild
from tokenwire_service.engine.rank_hello import make_hello
from tokenwire_service.engine.rank_meeting import Link, Meeting
from tokenwire_service.kernels.exchange import memory_bytes
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.parallel.identity import RankIdentity
from tokenwire_service.parallel.local_ranks import LocalRanks, allocate, map_memory
from tokenwire_service.parallel.plan_channel import PlanSender
from tokenwire_service.parallel.rendezvous import Store, join

_STOP_S = 3.0
"""How long ranks that were asked to stop may take."""
_REAP_S = 0.5
_LOOK_S = 0.1
_FIRST_WORD_S = 0.25
"""How long an error may wait for the loss of the rank that caused it, so that the log names the right one."""


class RankGroup:
    """Formed by `form`; then `join`, once, and `plans` are there."""

    def __init__(
        self,
        identity: RankIdentity,
        report: Callable[[pb.StartupFailure], None],
        logger: logging.Logger,
    ) -> None:
        """`report` tells the frontend why loading failed on another rank."""
        self.identity = identity
        self._report = report
        self._logger = logger
        self._children: tuple[RankChild, ...] = ()
        self._memory: mmap.mmap | None = None
        self._meeting = Meeting(identity, logger)
        self._formed = False
        self._closing = False
        self._ending = threading.Lock()
        self._num_steps = [0] * identity.size
        """That each rank has said to have finished."""

    def form(
        self, configuration: pb.Configure, log_arguments: Sequence[str], *, spawn: bool, module: str = RANK_MODULE
    ) -> None:
        """Start the others where `spawn` says so, and wait until all have come. Raises StartupError."""
        identity = self.identity
        place = place_to_pb(replace(identity, port=self._meeting.port))
        configuration.place.CopyFrom(place)
        ours = make_hello(configuration, version("tokenwire-service"))
        if spawn:
            configuration.place.memory_fd = allocate(memory_bytes(identity.size)) or 0
            self._children = tuple(
                RankChild(_at_rank(configuration, rank), log_arguments, module=module)
                for rank in range(1, identity.size)
            )
        if configuration.place.memory_fd:
            self._memory = map_memory(configuration.place.memory_fd)
        self._meeting.wait(ours, self._children, self._follow)
        self._formed = True
        self.plans = PlanSender([self._meeting.plans[rank] for rank in range(1, identity.size)])

    def join(self, device: torch.device) -> TensorParallelGroup:
        """Form the tensors' group. Raises what torch raises when the ranks cannot reach each other."""
        links = self._links()
        own_address = links[0].local_address
        store = Store(own_address, self.identity.size)
        for link in links:
            link.send(ranks_pb.RankZeroMessage(setup=ranks_pb.RankSetup(store_port=store.port)))
        return join(self.identity, store.store, device, own_address)

    @property
    def local(self) -> LocalRanks:
        """The ranks on this machine."""
        return LocalRanks(self.identity.local_rank, self.identity.num_local, self._memory)

    def watch(self, waits_for: Callable[[], int | None], progress: Callable[[], int], timeout_s: float) -> None:
        """From now on a step that `waits_for` names for so long, `progress` telling the same all the while, ends this
        process: a rank hangs, though its process lives. The frontend would notice too, and could not say where the
        ranks are."""
        watched = (waits_for, progress, timeout_s)
        threading.Thread(target=self._watch, args=watched, name="steps", daemon=True).start()

    def let_others_speak(self) -> None:
        """Something failed here: when the loss of a rank was the cause, that shows now, and ends this process."""
        time.sleep(_FIRST_WORD_S)

    def fail(self, why: str) -> NoReturn:
        """A step failed here, which leaves the ranks apart. Ends this process."""
        self.let_others_speak()
        self._end(f"rank 0 {why}")

    def close(self, refused: str = "") -> None:
        """Let the other ranks end by intention, or because of what they are `refused` for, and wait for those that
        this process started, which need not be told why."""
        self._closing = True
        self._meeting.close()
        because = refused if not self._children else ""
        last = ranks_pb.RankZeroMessage(refused=because) if because else ranks_pb.RankZeroMessage(stop=True)
        for link in self._links():
            link.send(last)
        deadline = time.monotonic() + _STOP_S
        for child in self._children:
            child.reap(max(0.0, deadline - time.monotonic()))
        for link in self._links():
            link.close()

    def _links(self) -> list[Link]:
        return [self._meeting.links[rank] for rank in sorted(self._meeting.links)]

    def _follow(self, rank: int, link: Link) -> None:
        link.follow(
            partial(ranks_pb.RankZeroMessage, alive=True),
            partial(self._receive, rank),
            partial(self._lose, rank, link),
        )

    def _watch(self, waits_for: Callable[[], int | None], progress: Callable[[], int], timeout_s: float) -> None:
        step, made, waited_s = None, 0, 0.0
        while waited_s < timeout_s:
            time.sleep(_LOOK_S)
            now = waits_for(), progress()
            # Counted in looks, so that a machine that stood still as a whole does not count.
            waited_s = waited_s + _LOOK_S if step is not None and now == (step, made) else 0.0
            step, made = now
        finished = ", ".join(f"rank {rank} {steps}" for rank, steps in enumerate(self._num_steps) if rank)
        self._end(f"step {step} made no progress for {timeout_s:g} s (steps finished: {finished})")

    def _receive(self, rank: int, message: ranks_pb.RankMessage) -> None:
        match message.WhichOneof("part"):
            case "alive":
                self._num_steps[rank] = message.alive.num_steps
            case "startup_failure":
                failure = message.startup_failure
                # What is wrong on every rank is best told by rank 0.
                self.let_others_speak()
                told = f"rank {rank} of {self.identity.size}: {failure.message}"
                self._end(f"rank {rank} cannot start", pb.StartupFailure(kind=failure.kind, message=told))
            case "failure":
                self.let_others_speak()
                self._end(f"rank {rank} {message.failure}")

    def _lose(self, rank: int, link: Link, why: str) -> None:
        if self._closing:
            return
        if self._formed or self._children:
            self._end(f"rank {rank} {why}")
        self._logger.warning("rank %d %s before the group was complete", rank, why)
        self._meeting.forget(rank, link)

    def _end(self, why: str, failure: pb.StartupFailure | None = None) -> NoReturn:
        """From any thread; the first to come says why."""
        self._ending.acquire()
        if self._closing:
            # The main thread is about to end this process anyway.
            threading.Event().wait()
        if failure is None:
            self._logger.critical("%s; ending all %d ranks", why, self.identity.size)
        else:
            self._report(failure)
        for child in self._children:
            child.kill()
        for child in self._children:
            child.reap(_REAP_S)
        logging.shutdown()
        os._exit(1)


def local_identity(num_ranks: int) -> RankIdentity:
    """Of rank 0 where all ranks are on this machine, and nobody else may join."""
    return RankIdentity(0, num_ranks, 0, num_ranks, token=secrets.token_hex(16))


def _at_rank(configuration: pb.Configure, rank: int) -> pb.Configure:
    """The configuration of another rank of this machine."""
    placed = pb.Configure()
    placed.CopyFrom(configuration)
    placed.place.rank = placed.place.local_rank = rank
    return placed
