"""Reports of the engine process as bars or log lines."""

from collections.abc import Iterator
from contextlib import contextmanager

from tokenwire_service.app.progress import PhaseProgress
from tokenwire_service.weights.progress import CallbackTask, ProgressTask


class Recorded:
    """Progress as a list of what was shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    @contextmanager
    def task(self, label: str, total: int = 0, unit: str = "B") -> Iterator[ProgressTask]:
        self.shown.append(f"begin {label}")
        yield CallbackTask(lambda done, total: self.shown.append(f"{done}/{total}{unit}"), total)
        self.shown.append(f"end {label}")


def test_each_phase_is_a_task_that_ends_when_it_is_done_or_the_next_begins() -> None:
    recorded, overall = Recorded(), list[float]()
    phases = PhaseProgress(recorded, overall.append)
    for phase, fraction in (("weights", 0.0), ("weights", 0.5), ("warm-up", 0.0), ("warm-up", 1.0), ("warm-up", 1.0)):
        phases.report(phase, fraction)
    phases.close()
    assert recorded.shown == [
        *("begin weights", "0/100%", "50/100%", "end weights"),
        *("begin warm-up", "0/100%", "100/100%", "end warm-up"),
    ]
    assert overall == [0.0, 0.5, 0.0, 1.0, 1.0]


def test_an_engine_that_loads_again_shows_it_again() -> None:
    recorded = Recorded()
    phases = PhaseProgress(recorded, lambda fraction: None)
    for fraction in (0.0, 1.0, 0.0, 1.0):
        phases.report("weights", fraction)
    assert recorded.shown.count("begin weights") == recorded.shown.count("end weights") == 2
