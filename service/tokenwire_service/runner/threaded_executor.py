"""A worker whose device is the host, made to go on by itself: a thread of its own computes."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

from tokenwire_service.runner.executor import PendingStep
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput, StepResult


class ThreadedExecutor:
    """An Executor. While a step is computed, which holds no interpreter lock, the engine's thread plans the next."""

    runs_ahead = True

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._plans: queue.SimpleQueue[tuple[SchedulerOutput, Future[StepResult]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._compute, name="worker", daemon=True)
        self._thread.start()

    def launch(self, output: SchedulerOutput) -> PendingStep:
        """See Executor.launch."""
        future: Future[StepResult] = Future()
        self._plans.put((output, future))
        return future

    def close(self) -> None:
        """See Executor.close. Steps not begun yet are never computed."""
        self._plans.put(None)

    def _compute(self) -> None:
        while (work := self._plans.get()) is not None:
            output, future = work
            try:
                future.set_result(self._worker.launch(output).result())
            except Exception as error:
                future.set_exception(error)
