"""Work that is recorded once and replayed without Python: a CUDA graph on a GPU, a list of native calls on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Graph(Protocol):
    """Recorded work. Its inputs and outputs are tensors that live at least as long as it."""

    def replay(self) -> None:
        """Do the work again on what the input tensors hold now."""
        ...


class GraphRecorder(Protocol):
    """Records graphs that share one pool of working memory: only one of them may be under way at a time."""

    def record(self, work: Callable[[], None]) -> Graph:
        """Run `work` (once or more) and record it. It must read and write only tensors that outlive the graph, besides
        its own temporaries, and must not look at a tensor's values on the host. Raises ValueError where it holds
        something that cannot be replayed."""
        ...
