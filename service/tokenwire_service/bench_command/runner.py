"""Makes requests come as a load says, and gathers the answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenwire_service.bench_command.prompts import Job
from tokenwire_service.bench_command.settings import Load
from tokenwire_service.bench_command.target import Answer, Target


@dataclass(slots=True)
class Run:
    """One load's answers, as far as they came. Times are on the monotonic clock."""

    load: Load
    began: float = 0.0
    ended: float = 0.0
    """When the last answer ended; 0 while it runs."""
    ending: bool = False
    """No request begins any more."""
    answers: list[Answer] = field(default_factory=list)
    """Ended, in the order of their ends."""
    running: set[Answer] = field(default_factory=set)

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        return (self.ended or time.monotonic()) - self.began


async def run_load(
    target: Target, load: Load, jobs: Iterator[Job], duration_s: float, max_requests: int, seed: int, run: Run
) -> None:
    """Fill `run`: requests begin for `duration_s`, at most `max_requests` (0: any number); all are waited for."""
    run.began = time.monotonic()
    last = run.began + duration_s
    try:
        async with asyncio.TaskGroup() as group:
            if load.rate:
                await _open_loop(group, target, load.rate, jobs, last, max_requests, seed, run)
            else:
                _closed_loop(group, target, load.concurrency, jobs, last, max_requests, run)
        run.ended = time.monotonic()
    finally:
        run.ending = True


async def _open_loop(
    group: asyncio.TaskGroup,
    target: Target,
    rate: float,
    jobs: Iterator[Job],
    last: float,
    max_requests: int,
    seed: int,
    run: Run,
) -> None:
    """Poisson arrivals: they come whether or not earlier ones were answered."""
    chance = random.Random(seed)
    due, num = run.began, 0
    while not max_requests or num < max_requests:
        due += chance.expovariate(rate)
        if due >= last:
            break
        await asyncio.sleep(due - time.monotonic())
        group.create_task(_ask(target, Answer(next(jobs), due), run))
        num += 1
    run.ending = True


def _closed_loop(
    group: asyncio.TaskGroup,
    target: Target,
    concurrency: int,
    jobs: Iterator[Job],
    last: float,
    max_requests: int,
    run: Run,
) -> None:
    left = max_requests or -1

    async def caller() -> None:
        nonlocal left
        while left and time.monotonic() < last:
            left -= 1
            await _ask(target, Answer(next(jobs), time.monotonic()), run)
        run.ending = True

    for _ in range(concurrency):
        group.create_task(caller())


async def _ask(target: Target, answer: Answer, run: Run) -> None:
    answer.sent = time.monotonic()
    run.running.add(answer)
    try:
        await target.ask(answer)
    finally:
        answer.ended = time.monotonic()
        run.running.discard(answer)
    run.answers.append(answer)
