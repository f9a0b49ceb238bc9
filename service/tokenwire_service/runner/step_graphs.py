"""Which work is recorded, and when."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

from tokenwire_service.kernels.graph import Graph, GraphRecorder

_LOG = logging.getLogger(__name__)
_MAX_GRAPHS = 64


class StepGraphs(Protocol):
    """Runs work by its recording where there is one. A key always comes with the same work."""

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """Ascending numbers of rows that decode steps are padded to, and recorded ahead, sampling included. Empty where
        steps keep their own size and only the decoder is recorded."""
        ...

    def prepare(self, key: Hashable, work: Callable[[], None]) -> None:
        """Record ahead, while nothing else is under way."""
        ...

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do the work."""
        ...


class NoGraphs:
    """Everything runs as it is written."""

    bucket_sizes: tuple[int, ...] = ()

    def prepare(self, key: Hashable, work: Callable[[], None]) -> None:
        """Nothing to prepare."""

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        work()


class BucketGraphs:
    """Records ahead, in a few sizes; what was not recorded runs as it is."""

    def __init__(self, recorder: GraphRecorder, bucket_sizes: tuple[int, ...]) -> None:
        self.bucket_sizes = bucket_sizes
        self._recorder = recorder
        self._graphs: dict[Hashable, Graph] = {}

    def prepare(self, key: Hashable, work: Callable[[], None]) -> None:
        self._graphs[key] = self._recorder.record(work)

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        graph = self._graphs.get(key)
        if graph is None:
            work()
        else:
            graph.replay()


class LazyGraphs:
    """Records what it sees for the first time; the recording longest unused goes when there are too many."""

    bucket_sizes: tuple[int, ...] = ()

    def __init__(self, recorder: GraphRecorder, max_graphs: int = _MAX_GRAPHS) -> None:
        self._recorder: GraphRecorder | None = recorder
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def prepare(self, key: Hashable, work: Callable[[], None]) -> None:
        """Recorded when it is first run."""

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            graph.replay()
        elif self._recorder is None or not self._record(self._recorder, key, work):
            work()

    def _record(self, recorder: GraphRecorder, key: Hashable, work: Callable[[], None]) -> bool:
        """Whether it could be; the work is done then."""
        try:
            self._graphs[key] = recorder.record(work)
        except ValueError as error:
            _LOG.info("decode steps are not recorded: %s", error)
            self._recorder = None
            return False
        if len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)
        return True


def bucket_sizes(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then every 8 up to 256 and every 32 beyond, until `max_rows` fit."""
    sizes = [1]
    while sizes[-1] < max_rows:
        sizes.append(sizes[-1] + min(sizes[-1], 8 if sizes[-1] < 256 else 32))
    return tuple(sizes)
