"""`tokenwire bench`: load on any running server, and what came of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import uvloop

from tokenwire_service.bench_command.grpc_target import GrpcTarget
from tokenwire_service.bench_command.plot import plot
from tokenwire_service.bench_command.progress import Progress
from tokenwire_service.bench_command.prompts import PromptWriter, jobs, source_text
from tokenwire_service.bench_command.report import report
from tokenwire_service.bench_command.rest_target import RestTarget
from tokenwire_service.bench_command.runner import Run, run_load
from tokenwire_service.bench_command.settings import Endpoint, Settings
from tokenwire_service.bench_command.summary import Summary, summarise
from tokenwire_service.bench_command.target import Target
from tokenwire_service.errors import StartupError

NUM_MEASURED_PARTS, PART_CHARS = 24, 1000


@dataclass(frozen=True, slots=True)
class Findings:
    """What a benchmark found, load by load."""

    description: str
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]


def open_target(endpoint: Endpoint, *, ignore_eos: bool = True) -> Target:
    """Call it inside the event loop. Raises ConfigError."""
    return (RestTarget if endpoint.rest else GrpcTarget)(endpoint, ignore_eos=ignore_eos)


async def chars_per_token(target: Target) -> float:
    """The server's own measure of the text prompts are cut from. Raises StartupError."""
    text = source_text()
    starts = [len(text) * part // NUM_MEASURED_PARTS for part in range(NUM_MEASURED_PARTS)]
    counts = [await target.count_tokens(text[at : at + PART_CHARS]) for at in starts]
    # What a template or a first token adds is in both parts, and once in the whole.
    whole = await target.count_tokens(text[:PART_CHARS] + text[starts[1] : starts[1] + PART_CHARS])
    added = max(counts[0] + counts[1] - whole, 0)
    return PART_CHARS * NUM_MEASURED_PARTS / max(sum(counts) - added * NUM_MEASURED_PARTS, 1)


async def bench(settings: Settings, out: TextIO) -> Findings:
    """Run every load; `out` gets the progress. Raises StartupError."""
    workload = settings.workload
    target = open_target(settings.endpoint, ignore_eos=settings.ignore_eos)
    runs: list[Run] = []
    try:
        await target.prepare()
        writer = PromptWriter(await chars_per_token(target), workload.seed)
        out.write(f"{target.description}\n")
        made = jobs(workload, writer)
        for load in settings.loads:
            run = Run(load)
            progress = Progress(run, settings.duration_s, out)
            following = asyncio.ensure_future(progress.follow())
            try:
                await run_load(target, load, made, settings.duration_s, settings.max_requests, workload.seed, run)
            finally:
                following.cancel()
                progress.clear()
            runs.append(run)
    finally:
        await target.close()
    return Findings(target.description, tuple(runs), tuple(summarise(run, settings.slo) for run in runs))


def run_bench(settings: Settings, plot_path: Path | None, json_path: Path | None) -> int:
    """The command; 0 when any request was answered. Raises StartupError."""
    for path in (plot_path, json_path):
        if path is not None and not path.parent.is_dir():
            raise StartupError(f"{path}: there is no directory {path.parent}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(bench(settings, sys.stderr))
    sys.stdout.write(report(settings, found.runs, found.summaries) + "\n")
    if json_path is not None:
        json_path.write_text(json.dumps(findings_json(settings, found), indent=2) + "\n")
    if plot_path is not None:
        plot_path.write_text(plot("tokenwire bench", _subtitle(settings, found), found.runs, found.summaries))
    return 0 if any(summary.completed for summary in found.summaries) else 1


def findings_json(settings: Settings, found: Findings) -> dict[str, Any]:
    """The settings without the key, and a row for each load."""
    asked: dict[str, Any] = {
        "server": found.description,
        "workload": asdict(settings.workload),
        "duration_s": settings.duration_s,
        "max_requests": settings.max_requests,
        "ignore_eos": settings.ignore_eos,
        "slo_ms": {
            "ttft": _finite_ms(settings.slo.ttft_s),
            "itl": _finite_ms(settings.slo.itl_s),
        },
    }
    return {**asked, "rows": rows(found.summaries)}


def rows(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Plain values, one row for each load."""
    return [summary.to_json() for summary in summaries]


def _finite_ms(seconds: float) -> float | None:
    return seconds * 1000 if seconds != float("inf") else None


def _subtitle(settings: Settings, found: Findings) -> str:
    loads = ", ".join(summary.load for summary in found.summaries)
    return f"{found.description} · {settings.workload.kind} · {loads}"
