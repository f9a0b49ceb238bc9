"""Where the time of a step goes: the host's, the device's, and the device's waiting for the host."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StepTiming:
    """One step, in seconds."""

    host_s: float
    """The runner's own work on the host: launching, and reading the results once they were there."""
    device_s: float
    """From the step's first work on the device to its last."""
    gap_s: float
    """What the device stood idle between the step before and this one; 0 for the first step."""


class Mark:
    """A point in the device's work."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._time = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._time = time.perf_counter()

    def wait(self) -> None:
        """Until the device has reached it."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_to(self, later: Mark) -> float:
        """Both have been reached."""
        if self._event is not None and later._event is not None:
            return float(self._event.elapsed_time(later._event)) / 1000.0
        return later._time - self._time
