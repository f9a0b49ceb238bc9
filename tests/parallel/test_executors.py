"""How plans reach the ranks, and what becomes of a step that fails or never ends."""

import logging
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenwire_service.engine.rank_group import RankGroup, local_identity
from tokenwire_service.runner.executor import ShardedExecutor
from tokenwire_service.runner.step_plan import decode
from tokenwire_service.runner.threaded_executor import ThreadedExecutor
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, StepResult


def step(step_id: int, *, leaves: tuple[int, ...] = (), rows: int = 1) -> SchedulerOutput:
    scheduled = tuple(ScheduledSlot(slot, 0, 1, (), samples=True) for slot in range(rows))
    return SchedulerOutput(step_id, leaves, (), scheduled)


class Ended(Exception):
    """What stands for the end of the process."""


def fail(why: str) -> None:
    raise Ended(why)


class Worker:
    """Steps wait for `go` and come in order; step 99 fails."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.threads: set[int] = set()

    def launch(self, output: SchedulerOutput) -> "Worker.Pending":
        self.go.acquire()
        self.threads.add(threading.get_ident())
        if output.step_id == 99:
            raise RuntimeError("no memory")
        return Worker.Pending(output.step_id)

    class Pending:
        def __init__(self, step_id: int) -> None:
            self._step_id = step_id

        def result(self) -> StepResult:
            return StepResult(self._step_id, ())


class Plans:
    def __init__(self) -> None:
        self.sent: list[SchedulerOutput] = []
        self.closed = False

    def send(self, words: NDArray[np.int32]) -> None:
        if self.closed:
            raise BrokenPipeError("gone")
        self.sent.append(decode(words))

    def close(self) -> None:
        self.closed = True


def sharded(worker: Any, plans: Any) -> ShardedExecutor:
    return ShardedExecutor(ThreadedExecutor(worker), plans, fail)


def test_a_thread_computes_while_the_next_step_is_planned() -> None:
    worker, plans = Worker(), Plans()
    executor = sharded(worker, plans)
    assert executor.runs_ahead
    first, second = executor.launch(step(1)), executor.launch(step(2))
    assert [plan.step_id for plan in plans.sent] == [1, 2]
    assert executor.waits_for == 1
    worker.go.release(2)
    assert first.result().step_id == 1
    assert executor.waits_for == 2
    assert second.result().step_id == 2
    assert executor.waits_for is None
    assert len(worker.threads) == 1
    assert threading.get_ident() not in worker.threads
    executor.close()
    assert plans.closed


def test_a_plan_that_changes_nothing_is_not_sent() -> None:
    worker, plans = Worker(), Plans()
    executor = sharded(worker, plans)
    executor.launch(step(1, rows=0))
    executor.launch(step(2, leaves=(3,), rows=0))
    assert [plan.step_id for plan in plans.sent] == [2]
    assert executor.waits_for is None
    worker.go.release(2)
    executor.close()


def test_a_step_that_fails_ends_every_rank() -> None:
    worker, plans = Worker(), Plans()
    executor = sharded(worker, plans)
    worker.go.release()
    with pytest.raises(Ended, match="failed in step 99: RuntimeError: no memory"):
        executor.launch(step(99)).result()
    executor.close()
    with pytest.raises(Ended, match="failed in step 3: BrokenPipeError: gone"):
        executor.launch(step(3))


def test_a_step_that_never_ends_is_told_with_what_the_ranks_have_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    group = RankGroup(local_identity(3), lambda failure: None, logging.getLogger("test"))
    told: list[str] = []
    ended = threading.Event()

    def end(why: str) -> None:
        told.append(why)
        ended.set()

    monkeypatch.setattr(group, "_end", end)
    group._num_steps[:] = [0, 40, 39]
    looks = iter([None, 40, *[41] * 100])
    computed = iter([0, 1, 2, 3, 4, *[5] * 100])
    group.watch(lambda: next(looks), lambda: next(computed), 0.3)
    assert ended.wait(20)
    # 41 from the third look on, but work was done until the sixth.
    assert len(list(looks)) == 102 - 6 - 3
    assert told == ["step 41 made no progress for 0.3 s (steps finished: rank 1 40, rank 2 39)"]
    group.close()
