"""Work that is recorded once and replayed without Python: a CUDA graph on a GPU, a list of native calls on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from tokenwire_service.kernels._tape import CpuGraphRecorder
from tokenwire_service.kernels.backend import Backend

_WARM_UPS = 2
"""Runs before a capture: kernels are compiled, and libraries take their workspaces, in these."""


class Graph(Protocol):
    """Recorded work. Its inputs and outputs are tensors that live at least as long as it."""

    def replay(self) -> None:
        """Do the work again on what the input tensors hold now."""
        ...


class GraphRecorder(Protocol):
    """Records graphs that share one pool of working memory: only one of them may be under way at a time."""

    def record(self, work: Callable[[], object]) -> Graph:
        """Run `work` (once or more) and record it. It must read and write only tensors that outlive the graph, besides
        its own temporaries, and must not look at a tensor's values on the host. Raises ValueError where it holds
        something that cannot be replayed."""
        ...


def make_recorder(backend: Backend) -> GraphRecorder | None:
    """A recorder of the backend's kernels; None where they cannot be recorded. On the CPU it takes native kernels
    alone, on a GPU all that does not look at values on the host."""
    if backend.library is not None:
        return CpuGraphRecorder(backend.library)
    # Without Triton some kernels are references that look.
    return CudaGraphRecorder(backend.device) if backend.device.type == "cuda" and backend.triton else None


class CudaGraphRecorder:
    """CUDA graphs of one device, replayed on the stream that is current then. Record the largest first: the others then
    fit into its memory."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, work: Callable[[], object]) -> Graph:
        """See GraphRecorder. Waits for the device; never call it while steps are in flight."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on calling CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        current.wait_stream(self._stream)
        return graph
