"""EngineClient over several engines that serve the same model side by side."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from tokenwire_service import errors
from tokenwire_service.core.events import EngineStats, FailureReason
from tokenwire_service.core.params import Request
from tokenwire_service.engine.client import EngineInfo, EngineState, RequestStream, require_ready
from tokenwire_service.engine.delivery import Delivery
from tokenwire_service.engine.process_client import LoadCallback, Overseer, ProcessEngineClient
from tokenwire_service.engine.routing import Router
from tokenwire_service.engine.totals import SlowestLoad, counters, total_info, total_stats
from tokenwire_service.engine.waiting_room import WaitingRoom

_SETTLE_S = 0.1
"""Engines often die together: a request that lost one waits so long before it goes to another that may be dead too."""


class MakeReplica(Protocol):
    """Makes the client of one engine, not started."""

    def __call__(self, index: int, overseer: Overseer, on_load: LoadCallback) -> ProcessEngineClient: ...


class ReplicatedEngineClient:
    """See EngineClient. READY while one replica is; all calls belong to one event loop.

    `Router` chooses who takes a request. A replica that is down is routed around, and comes back by itself; of the
    requests it had, those that it had not begun go to others, or wait while there is none.
    """

    def __init__(
        self,
        num_replicas: int,
        make: MakeReplica,
        *,
        logger: logging.Logger,
        on_load: LoadCallback | None = None,
        prefix_caching: bool = True,
    ) -> None:
        """`on_load` is told how far the slowest replica is. `prefix_caching`: whether the engines do."""
        self._logger = logger
        self._prefix_caching = prefix_caching
        self._router = Router(num_replicas)
        self._room = WaitingRoom()
        self._settling: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._retired = EngineStats()
        """Counted by engines that went down, so that totals only grow."""
        self._loads = SlowestLoad(num_replicas, on_load or _nobody_to_tell)
        self._replicas = [make(index, _Place(self, index), self._on_load(index)) for index in range(num_replicas)]
        self._lives: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Spawn all engines and wait until every one is READY. Raises the first StartupError. Call once."""
        starts = [asyncio.create_task(replica.start()) for replica in self._replicas]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
        self._router.limit(self.info.num_blocks * self.info.block_size if self._prefix_caching else 0)
        self._lives = [asyncio.create_task(self._live(index)) for index in range(len(self._replicas))]

    async def wait_stopped(self) -> None:
        """Return when the engines were closed; raise StartupError when none of them will come back."""
        results = await asyncio.gather(*self._lives, return_exceptions=True)
        given_up = [result for result in results if isinstance(result, errors.StartupError)]
        if given_up and len(given_up) == len(results):
            raise given_up[-1]

    @property
    def state(self) -> EngineState:
        states = [replica.state for replica in self._replicas]
        for state in (EngineState.READY, EngineState.LOADING):
            if state in states:
                return state
        return EngineState.DOWN

    @property
    def replicas(self) -> Sequence[tuple[EngineStats, EngineState]]:
        """See OwnedEngine.replicas."""
        return [(replica.stats, replica.state) for replica in self._replicas]

    @property
    def info(self) -> EngineInfo:
        """See totals.total_info; raises RuntimeError before every replica was READY once."""
        return total_info(replica.info for replica in self._replicas)

    @property
    def stats(self) -> EngineStats:
        """See totals.total_stats; over the replicas' latest snapshots, and what went before."""
        return total_stats([self._retired, *(replica.stats for replica in self._replicas)])

    @property
    def pids(self) -> tuple[int | None, ...]:
        """Of each replica's process; None while there is none."""
        return tuple(replica.pid for replica in self._replicas)

    async def wait_state_change(self, seen: EngineState) -> EngineState:
        """Return as soon as the state differs from `seen`."""
        while self.state is seen:
            await self._changed.wait()
        return self.state

    def submit(self, request: Request) -> RequestStream:
        """Hand a request to an engine. Raises ModelLoadingError or EngineDownError when none is READY."""
        require_ready(self.state)
        delivery = Delivery(request)
        self._place(delivery)
        return delivery.mailbox

    def abort(self, request_ids: Sequence[str]) -> int:
        """See EngineClient.abort."""
        return self._room.abort(request_ids) + sum(replica.abort(request_ids) for replica in self._replicas)

    def flush_cache(self) -> None:
        """See EngineClient.flush_cache; of every replica."""
        self._router.forget_prefixes()
        for replica in self._replicas:
            replica.flush_cache()

    async def close(self) -> None:
        """Stop the engines and wait for their processes. Idempotent."""
        await asyncio.gather(*(replica.close() for replica in self._replicas))
        if self._settling is not None:
            self._settling.cancel()
        self._room.fail_all(FailureReason.DRAINING, "the server is shutting down; retry elsewhere")
        await asyncio.gather(*self._lives, return_exceptions=True)

    def kill(self) -> None:
        """End the engines' processes at once."""
        for replica in self._replicas:
            replica.kill()

    def replica_changed(self, index: int) -> None:
        """A replica's state is another one; those who waited for one go first."""
        if self._replicas[index].state is EngineState.READY:
            self._empty_room()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def take_over(self, index: int, deliveries: Sequence[Delivery], stats: EngineStats) -> None:
        """A replica's engine went down; see Overseer."""
        self._router.forget(index)
        self._retired = total_stats([self._retired, counters(stats)])
        self._room.take_in(deliveries)
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(_SETTLE_S, self._settle)

    def _settle(self) -> None:
        self._settling = None
        if self.state is EngineState.READY:
            self._empty_room()

    def _empty_room(self) -> None:
        for delivery in self._room.release():
            self._place(delivery)

    def _place(self, delivery: Delivery) -> None:
        """Give it to one of the replicas that are READY, of which there is one at least."""
        weights = {
            index: replica.weight for index, replica in enumerate(self._replicas) if replica.state is EngineState.READY
        }
        route = self._router.choose(delivery.request, weights)
        delivery.weight = route.weight
        self._replicas[route.replica].take_in(delivery)

    async def _live(self, index: int) -> None:
        """Until the replica is closed. Raises StartupError when it will not come back; the others go on without it."""
        try:
            await self._replicas[index].wait_stopped()
        except errors.StartupError as error:
            self._logger.error("replica %d will not come back: %s", index, error)
            others = sum(not life.done() for life in self._lives) - 1
            if not others:
                self._room.fail_all(FailureReason.ENGINE_DOWN, "the engine went down for good")
            raise

    def _on_load(self, index: int) -> LoadCallback:
        return lambda phase, fraction: self._loads.heard(index, phase, fraction)


class _Place:
    """One replica's Overseer."""

    def __init__(self, replicas: ReplicatedEngineClient, index: int) -> None:
        self._replicas = replicas
        self._index = index

    def state_changed(self) -> None:
        self._replicas.replica_changed(self._index)

    def take_over(self, deliveries: Sequence[Delivery], stats: EngineStats) -> None:
        self._replicas.take_over(self._index, deliveries, stats)


def _nobody_to_tell(phase: str, fraction: float) -> None:
    pass
