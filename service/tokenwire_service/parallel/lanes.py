"""Where a device does work in order: two lanes of a GPU go on side by side."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch


class Lane(Protocol):
    """One order of work. What was issued in one is not waited for in another unless said."""

    def on(self) -> AbstractContextManager[object]:
        """Work issued in this context is this lane's."""
        ...

    def fork(self) -> None:
        """Its work from now on begins after what was issued outside of lanes."""
        ...

    def join(self) -> None:
        """Work issued outside of lanes from now on begins after its own."""
        ...

    def mark(self) -> torch.cuda.Event | None:
        """The end of its work so far."""
        ...

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """Its work from now on begins after another lane's mark."""
        ...


class HostLane:
    """A CPU's: work is done when it is issued."""

    def on(self) -> AbstractContextManager[object]:
        return nullcontext()

    def fork(self) -> None:
        """Nothing is ever behind."""

    def join(self) -> None:
        """Nothing is ever behind."""

    def mark(self) -> None:
        """Nothing is ever behind."""

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """Nothing is ever behind."""


class GpuLane:
    """A stream. Tensors made in it are its own: whoever uses one elsewhere does so between `join` and the next
    `fork`."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def on(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def fork(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def join(self) -> None:
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def wait(self, mark: torch.cuda.Event | None) -> None:
        if mark is not None:
            self._stream.wait_event(mark)
