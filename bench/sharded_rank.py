"""What a rank of `bench.sharded` runs: the real thing, with a note of when each step came and was computed."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tokenwire_service.engine.rank_process import main
from tokenwire_service.runner.executor import LocalExecutor, PendingStep
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput

NOTES = "TOKENWIRE_BENCH_NOTES"
"""Names the file the notes go to."""


class NotedWorker:
    """A worker that notes, for each step, when it began and when it was done, on the clock all processes share."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.device = worker.device
        self.steps: dict[int, tuple[float, float]] = {}

    def launch(self, output: SchedulerOutput) -> PendingStep:
        begun = time.perf_counter()
        pending = self._worker.launch(output)
        pending.result()
        self.steps[output.step_id] = (begun, time.perf_counter())
        return pending


def run(arguments: list[str]) -> int:
    noted: list[NotedWorker] = []

    def make_executor(worker: Worker) -> LocalExecutor:
        noted.append(NotedWorker(worker))
        return LocalExecutor(noted[0])  # type: ignore[arg-type]

    status = main(arguments, make_executor)
    if noted:
        Path(os.environ[NOTES]).write_text(json.dumps(noted[0].steps))
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv))
