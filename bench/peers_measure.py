"""What is asked of every contender, and the rows its answers make."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from bench.peers_list import Contender
from bench.workload import Workload

ENOUGH_S = 20.0
"""A figure measured for this long is not measured again: a run that long averages its own noise."""
_WARM_UP_TOKENS = 8

MakePrompts = Callable[[int, int, int], list[list[int]]]
"""(number, length, offset) to prompts; see workload.make_prompts."""


class Memory(Protocol):
    @property
    def peak_mb(self) -> float: ...

    def restart_peak(self) -> None: ...


class Worker(Protocol):
    """What is needed of a WorkerProcess."""

    @property
    def memory(self) -> Memory: ...

    def ask(self, message: dict[str, Any]) -> dict[str, Any]: ...


def max_tokens(workload: Workload) -> int:
    """Tokens that the largest batch holds, with a block to spare for each sequence."""
    return max(workload.concurrency) * (workload.prompt_tokens + workload.new_tokens + 64) + workload.ttft_prompt_tokens


def measure(
    contender: Contender, worker: Worker, setup: dict[str, Any], workload: Workload, prompts: MakePrompts
) -> dict[str, Any]:
    """The contender's rows, one a concurrency, and what it says of itself. Raises RuntimeError when work is missing."""
    opened = worker.ask(setup)
    load_mb = worker.memory.peak_mb
    worker.memory.restart_peak()
    _ask(worker, prompts(2, workload.prompt_tokens, 90), _WARM_UP_TOKENS)
    single: list[int] = []
    rows: list[dict[str, Any]] = []
    for num in workload.concurrency:
        runs = list(_runs(worker, workload, prompts, num))
        rows.append({"concurrency": num, **_speeds(runs, workload.new_tokens)})
        single = single or runs[0][0]["token_ids"]
    ttft = [
        _ask(worker, prompts(1, workload.ttft_prompt_tokens, 1 + repeat), 1)[0]["first_s"]
        for repeat in range(workload.repeats)
    ]
    run_mb = worker.memory.peak_mb
    shared = {
        "engine": contender.engine,
        "precision_class": contender.precision_class,
        "variant": contender.name,
    }
    of_all = {
        "ttft_1024_s" if workload.ttft_prompt_tokens == 1024 else "ttft_s": min(ttft),
        "ttft_runs_s": ttft,
        "rss_mb": max(load_mb, run_mb),
        "rss_after_load_mb": run_mb,
        "startup_s": opened["startup_s"],
    }
    return {
        "versions": opened["versions"],
        "settings": opened["settings"],
        "rows": [shared | row | of_all for row in rows],
        "first_output": single,
    }


def _runs(worker: Worker, workload: Workload, prompts: MakePrompts, num: int) -> Iterator[list[dict[str, Any]]]:
    spent_s = 0.0
    for repeat in range(workload.repeats):
        run = _ask(worker, prompts(num, workload.prompt_tokens, repeat * num), workload.new_tokens)
        yield run
        spent_s += max(output["last_s"] for output in run)
        if spent_s >= ENOUGH_S:
            return


def _ask(worker: Worker, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = worker.ask({"prompts": prompts, "new_tokens": new_tokens})["outputs"]
    counts = [len(output["token_ids"]) for output in outputs]
    if counts != [new_tokens] * len(prompts):
        raise RuntimeError(f"{counts} tokens generated for {len(prompts)} prompts, {new_tokens} each asked for")
    return outputs


def _speeds(runs: list[list[dict[str, Any]]], new_tokens: int) -> dict[str, Any]:
    """Of the best run each: tokens of all streams until the last one, and the median stream's pace after its first."""
    seconds = [max(output["last_s"] for output in run) for run in runs]
    paces = [statistics.median(_pace(output, new_tokens) for output in run) for run in runs]
    return {
        "tokens_per_s": len(runs[0]) * new_tokens / min(seconds),
        "decode_tokens_per_s": max(paces),
        "runs_s": seconds,
    }


def _pace(output: dict[str, Any], new_tokens: int) -> float:
    pace: float = (new_tokens - 1) / (output["last_s"] - output["first_s"])
    return pace
