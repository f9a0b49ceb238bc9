"""Two ranks on this CPU: what a plan's way to the other rank costs, and whether the next step hides it.

`python -m bench.sharded` decodes a batch twice, with one step in flight and with two, over the same RankGroup, plan
channel and rank process that `tokenwire serve --num-shard 2` uses, and notes on the clock both processes share when
each step was planned, encoded, sent, begun and done on each rank. Writes bench/results/<date>-sharded.json and
docs/images/sharded-timeline.svg. `bench.collectives` compares the ways tensors can go.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import record
from bench.collectives import compare
from bench.sharded_rank import NOTES, NotedWorker
from bench.sharded_timeline import draw_timelines
from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.config import EMBEDDED_MODEL_ID, EngineConfig, ModelConfig
from tokenwire_service.core.events import EngineEvent, EngineStats, TokensGenerated
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.engine.codec import configure_to_pb
from tokenwire_service.engine.engine import Commands, Engine
from tokenwire_service.engine.rank_group import RankGroup, local_identity
from tokenwire_service.parallel.plan_channel import PlanSender
from tokenwire_service.runner.executor import Executor, LocalExecutor, PendingStep, ShardedExecutor
from tokenwire_service.runner.threaded_executor import ThreadedExecutor
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import SchedulerOutput, StepResult
from tokenwire_service.scheduling.scheduler import Scheduler
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolve import resolve_model

_IMAGES = Path(__file__).parent.parent / "docs" / "images"
_SHOWN = 6
"""Steps of a timeline."""
Row = dict[str, Any]


class Notes:
    """When what happened to each step on rank 0, in seconds of the shared clock."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self._planned = (0.0, 0.0)

    def planned(self, begun: float, done: float) -> None:
        self._planned = (begun, done)

    def launch(self, step_id: int) -> None:
        begun, done = self._planned
        self.steps[step_id] = {"plan_begin": begun, "plan_end": done, "encode_begin": time.perf_counter()}

    def at(self, step_id: int, name: str) -> None:
        self.steps[step_id][name] = time.perf_counter()


class _NotedScheduler(Scheduler):
    notes: Notes

    def schedule(self, now: float) -> SchedulerOutput:
        begun = time.perf_counter()
        output = super().schedule(now)
        self.notes.planned(begun, time.perf_counter())
        return output


class _NotedSender(PlanSender):
    notes: Notes

    def send(self, words: NDArray[np.int32]) -> None:
        step_id = int(words[1:3].view(np.int64)[0])
        self.notes.at(step_id, "send_begin")
        super().send(words)
        self.notes.at(step_id, "send_end")
        self.notes.steps[step_id]["bytes"] = words.nbytes


class _NotedExecutor:
    def __init__(self, inner: Executor, notes: Notes) -> None:
        self._inner, self._notes = inner, notes
        self.runs_ahead = inner.runs_ahead

    def launch(self, output: SchedulerOutput) -> PendingStep:
        self._notes.launch(output.step_id)
        return _NotedPending(self._inner.launch(output), output.step_id, self._notes)

    def close(self) -> None:
        self._inner.close()


@dataclasses.dataclass(frozen=True)
class _NotedPending:
    inner: PendingStep
    step_id: int
    notes: Notes

    def result(self) -> StepResult:
        result = self.inner.result()
        self.notes.at(self.step_id, "result")
        return result


class TwoRanks:
    """Rank 0 here, rank 1 a process of its own."""

    def __init__(self, config: EngineConfig, depth: int, notes_path: Path) -> None:
        self._notes_path = notes_path
        os.environ[NOTES] = str(notes_path)
        logger = logging.getLogger("bench.sharded")
        resolved = resolve_model(ModelConfig(model_id=EMBEDDED_MODEL_ID))
        self._group = RankGroup(local_identity(2), _refuse, logger)
        self._group.form(
            configure_to_pb(resolved, "auto", config), ["warning"], spawn=True, module="bench.sharded_rank"
        )
        tensors = self._group.join(torch.device("cpu"))
        worker = Worker(resolved, "auto", config, SilentProgress(), tensors, self._group.local)
        self._notes, self._noted = Notes(), NotedWorker(worker)
        plans = self._group.plans
        plans.__class__, plans.notes = _NotedSender, self._notes  # type: ignore[attr-defined]
        local = LocalExecutor(self._noted) if depth == 1 else ThreadedExecutor(self._noted)  # type: ignore[arg-type]
        self._executor = _NotedExecutor(ShardedExecutor(local, plans, self._group.fail), self._notes)
        scheduler = _NotedScheduler(worker.sizes.scheduler_limits(prefix_caching=False))
        scheduler.notes = self._notes
        self._waiting: list[Commands] = []
        self._events: list[EngineEvent] = []
        self._engine = Engine(scheduler, self._executor, self, self._publish, logger=logger, max_steps_in_flight=depth)

    def drain(self, timeout_s: float) -> Sequence[Commands]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def decode(self, batch: int, prompt_tokens: int, new_tokens: int) -> float:
        """All at once; tokens per second."""
        requests = tuple(
            Request(
                request_id=str(index),
                prompt_token_ids=tuple(range(100 + index, 100 + index + prompt_tokens)),
                sampling=SamplingParams(temperature=0.0),
                stopping=StoppingParams(max_tokens=new_tokens),
                arrival_time=time.monotonic(),
            )
            for index in range(batch)
        )
        self._waiting.append(Commands(submissions=requests))
        missing, begun = batch * new_tokens, time.perf_counter()
        while missing:
            self._engine.step()
            missing -= sum(len(event.token_ids) for event in self._events if isinstance(event, TokensGenerated))
            self._events.clear()
        return batch * new_tokens / (time.perf_counter() - begun)

    def close(self) -> list[Row]:
        """End both; every step, in order."""
        self._executor.close()
        self._group.close()
        other = {int(step): times for step, times in json.loads(self._notes_path.read_text()).items()}
        rows = []
        for step_id, notes in sorted(self._notes.steps.items()):
            if "result" in notes and step_id in other and step_id in self._noted.steps:
                (begin0, end0), (begin1, end1) = self._noted.steps[step_id], other[step_id]
                times = {"begin_0": begin0, "end_0": end0, "begin_1": begin1, "end_1": end1}
                rows.append({"step_id": step_id, **notes, **times})
        return rows

    def _publish(self, events: Sequence[EngineEvent], stats: EngineStats) -> None:
        self._events += events


def _refuse(failure: pb.StartupFailure) -> None:
    raise RuntimeError(failure.message)


def summarise(rows: list[Row]) -> Row:
    """Milliseconds, p50 and p90 over the decode steps of a run."""
    steps = rows[4:-4]
    pairs = list(itertools.pairwise(steps))
    spans = {
        "plan": [row["plan_end"] - row["plan_begin"] for row in steps],
        "encode": [row["send_begin"] - row["encode_begin"] for row in steps],
        "send": [row["send_end"] - row["send_begin"] for row in steps],
        "encode_to_begin_on_rank_1": [row["begin_1"] - row["encode_begin"] for row in steps],
        "compute_0": [row["end_0"] - row["begin_0"] for row in steps],
        "compute_1": [row["end_1"] - row["begin_1"] for row in steps],
        "idle_before_step_0": [after["begin_0"] - before["end_0"] for before, after in pairs],
        "idle_before_step_1": [after["begin_1"] - before["end_1"] for before, after in pairs],
    }
    figures: Row = {"steps": len(steps), "plan_bytes": statistics.median(row["bytes"] for row in steps)}
    for name, values in spans.items():
        ordered = sorted(values)
        figures[f"{name}_p50_ms"] = round(1000 * statistics.median(ordered), 4)
        figures[f"{name}_p90_ms"] = round(1000 * ordered[int(0.9 * len(ordered))], 4)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--out", type=Path, help="instead of bench/results/<date>-sharded.json")
    options = parser.parse_args()
    config = EngineConfig(num_shard=2, num_threads=2, max_batch_size=options.batch, max_batch_total_tokens=16384)
    rows, timelines = [], {}
    for depth in (1, 2):
        with tempfile.TemporaryDirectory() as directory:
            ranks = TwoRanks(config, depth, Path(directory) / "notes.json")
            ranks.decode(options.batch, options.prompt_tokens, 8)
            rate = ranks.decode(options.batch, options.prompt_tokens, options.new_tokens)
            steps = ranks.close()
        rows.append({"steps_in_flight": depth, "tokens_per_s": round(rate, 1), **summarise(steps)})
        middle = len(steps) // 2
        timelines[f"{depth} in flight"] = steps[middle : middle + _SHOWN]
        print(json.dumps(rows[-1], indent=2))
    collectives = compare()
    print(json.dumps(collectives, indent=2))
    workload = {name: getattr(options, name) for name in ("batch", "prompt_tokens", "new_tokens")}
    more = {"timelines": timelines, "collectives": collectives}
    path = record.write(
        "sharded", workload | {"model": EMBEDDED_MODEL_ID, "ranks": 2}, rows, ("torch",), more=more, path=options.out
    )
    (_IMAGES / "sharded-timeline.svg").write_text(draw_timelines(timelines))
    print(path)


if __name__ == "__main__":
    main()
