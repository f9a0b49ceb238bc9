"""Milliseconds of policy in one decode step: `python -m bench.scheduler`.

Fills the batch, then times `Scheduler.schedule` and `Scheduler.update` of steps in which every sequence decodes.
Nothing is computed: each row is answered with a fixed token. Minimum and median over all steps of all rounds; the
minimum is what the code costs, the median also what the machine did meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

from bench.record import write
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.scheduling.limits import SchedulerLimits
from tokenwire_service.scheduling.output import SchedulerOutput, SlotResult, StepResult
from tokenwire_service.scheduling.scheduler import Scheduler

BLOCK_SIZE = 32
TOKEN_ID = 7
STOP_TOKEN_IDS = frozenset({2, 3})
BUDGET = 8192


def fill(num_sequences: int, context: int, num_steps: int) -> Scheduler:
    """A scheduler whose sequences all decode, from about `context` tokens on, for at least `num_steps` more steps."""
    num_steps += 2 + num_sequences * context // BUDGET
    num_blocks = num_sequences * -(-(context + num_steps) // BLOCK_SIZE) + num_sequences
    limits = SchedulerLimits(num_blocks, BLOCK_SIZE, num_sequences, BUDGET, context + num_steps)
    scheduler = Scheduler(limits, model_name="bench")
    stopping = StoppingParams(num_steps, stop_token_ids=STOP_TOKEN_IDS)
    for number in range(num_sequences):
        prompt = (number, *range(context - 1))
        scheduler.add(Request(str(number), prompt, SamplingParams(), stopping), 0.0)
    filling = True
    while filling:
        output = scheduler.schedule(0.0)
        scheduler.update(output, answer(output), 0.0)
        filling = any(row.start < context for row in output.scheduled)
    return scheduler


def answer(output: SchedulerOutput) -> StepResult:
    return StepResult(
        output.step_id, tuple(SlotResult(row.slot, (TOKEN_ID,) if row.samples else ()) for row in output.scheduled)
    )


def time_steps(scheduler: Scheduler, num_steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each `schedule` and of each `update`."""
    schedule_s, update_s = [], []
    for _ in range(num_steps):
        begin = time.perf_counter()
        output = scheduler.schedule(1.0)
        schedule_s.append(time.perf_counter() - begin)
        result = answer(output)
        begin = time.perf_counter()
        scheduler.update(output, result, 1.0)
        update_s.append(time.perf_counter() - begin)
    return schedule_s, update_s


def measure(num_sequences: int, context: int, num_steps: int, rounds: int) -> dict[str, Any]:
    """One row of the result file, in milliseconds."""
    schedule_s: list[float] = []
    update_s: list[float] = []
    for _ in range(rounds):
        scheduler = fill(num_sequences, context, num_steps)
        gc.collect()
        # As in the engine's process: what exists already is not looked at by collections.
        gc.freeze()
        for seconds, total in zip(time_steps(scheduler, num_steps), (schedule_s, update_s), strict=True):
            total.extend(seconds)
        gc.unfreeze()
    both_s = [sum(pair) for pair in zip(schedule_s, update_s, strict=True)]
    row: dict[str, Any] = {"num_sequences": num_sequences}
    for name, seconds in (("schedule", schedule_s), ("update", update_s), ("both", both_s)):
        row[f"{name}_min_ms"] = round(1e3 * min(seconds), 4)
        row[f"{name}_median_ms"] = round(1e3 * statistics.median(seconds), 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--context", type=int, default=257, help="tokens each sequence holds at the start")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write bench/results/<date>-scheduler.json")
    arguments = parser.parse_args()
    rows = []
    for num_sequences in arguments.sequences:
        row = measure(num_sequences, arguments.context, arguments.steps, arguments.rounds)
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if arguments.write:
        workload = {"context": arguments.context, "steps": arguments.steps, "rounds": arguments.rounds}
        print(write("scheduler", workload, rows, packages=()))


if __name__ == "__main__":
    main()
