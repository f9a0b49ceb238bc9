"""A running server under load, over gRPC and over the REST adapter: `python -m bench.serving`.

Starts `tokenwire launch` itself, each time with the flags a scenario needs, and loads it as `tokenwire bench` would.

    mix             conversations' lengths, Poisson arrivals, over both doors
    shared-prefix   every prompt of nine in ten begins with the same 1,000 tokens: the prefix cache on against off
    long-prompts    8k-token prompts arrive among streams that decode: what those notice of it

To load a server that already runs, use `tokenwire bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop

from bench import record
from tests.support.stack import Stack, running_stack
from tokenwire_service.bench_command.command import bench, chars_per_token, open_target
from tokenwire_service.bench_command.prompts import PromptWriter, jobs
from tokenwire_service.bench_command.report import report, seconds_text
from tokenwire_service.bench_command.settings import Endpoint, Load, Settings, Slo, Workload
from tokenwire_service.bench_command.summary import Distribution, ttft_of
from tokenwire_service.bench_command.target import Answer

SCENARIOS = ("mix", "shared-prefix", "long-prompts")
SLO = Slo(ttft_s=1.0, itl_s=0.2)
# The embedded model's context holds 8,192; what text comes to in tokens is known to a few per cent.
LONG_PROMPT_TOKENS, LONG_OUTPUT_TOKENS = 7_700, 4
DECODE_PROMPT_TOKENS, DECODE_OUTPUT_TOKENS = 64, 8_000
PACKAGES = ("torch", "grpcio", "tokenizers", "transformers")
# Until every decoder has its first token.
SETTLE_S = 3.0
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What all scenarios share."""

    duration_s: float = 30.0
    rate: float = 1.0
    concurrency: int = 8
    decoders: int = 4
    flags: tuple[str, ...] = ()
    """More flags of `tokenwire launch`."""


@contextmanager
def launched(plan: Plan, *flags: str) -> Iterator[Stack]:
    """A fresh server: no prefix is cached yet."""
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory), [*plan.flags, *flags]) as stack,
    ):
        yield stack


def mix(plan: Plan) -> Rows:
    """Both doors in turn, each of a fresh server: the same requests at the same times."""
    workload = Workload(prompt_tokens=160, output_tokens=64)
    rows: Rows = []
    for door in ("gRPC", "REST"):
        with launched(plan) as stack:
            endpoint = Endpoint(stack.grpc if door == "gRPC" else stack.rest)
            settings = Settings(endpoint, workload, (Load(rate=plan.rate),), SLO, plan.duration_s)
            rows += _bench(settings, {"scenario": "mix", "door": door})
    return rows


def shared_prefix(plan: Plan) -> Rows:
    """Requests a second with the prefix cache on and off, always the same number at once."""
    workload = Workload("shared-prefix", prompt_tokens=30, output_tokens=32)
    rows: Rows = []
    for caching in (True, False):
        with launched(plan, "--prefix-caching" if caching else "--no-prefix-caching") as stack:
            loads = (Load(concurrency=plan.concurrency),)
            settings = Settings(Endpoint(stack.grpc), workload, loads, SLO, plan.duration_s)
            rows += _bench(settings, {"scenario": "shared-prefix", "prefix_caching": caching})
    with_cache, without = (row["requests_per_s"] for row in rows)
    print(f"\nprefix cache: {with_cache / without:.2f} times the throughput (goal 3)")
    return rows


def long_prompts(plan: Plan) -> Rows:
    """Time between the tokens of streams that decode: before, while long prompts are read one after the other, and
    after. Streams grow meanwhile, and their steps with them: alone, they are slower after than before."""
    with launched(plan) as stack:
        gaps, first_tokens = uvloop.run(_decode_beside_prompts(stack.grpc, plan))
    found = {name: Distribution.of(values) for name, values in gaps.items()}
    for name, one in found.items():
        print(
            f"{name:6} between tokens: p50 {seconds_text(one.p50)}, p99 {seconds_text(one.p99)} ({_ratio(one):.2f} "
            f"times), max {seconds_text(one.max)} ({one.count} gaps)"
        )
    alone = (found["before"].p50 + found["after"].p50) / 2
    beside = found["beside"]
    print(
        f"decoders' p99 over p50 in the whole run: {_ratio(found['whole']):.2f} (goal 2); beside a prompt, over p50 "
        f"alone (the mean of before and after): p50 {beside.p50 / alone:.2f}, p99 {beside.p99 / alone:.2f}; first "
        "token of the prompts after " + ", ".join(seconds_text(time) for time in first_tokens)
    )
    facts = {"scenario": "long-prompts", "decoders": plan.decoders, "prompts_ttft_s": first_tokens}
    return [{**facts, "decoders_are": name, "itl": asdict(one), "ratio": _ratio(one)} for name, one in found.items()]


def _ratio(times: Distribution) -> float:
    return times.p99 / times.p50


async def _decode_beside_prompts(target: str, plan: Plan) -> tuple[dict[str, list[float]], list[float]]:
    """Gaps between the decoders' tokens by what went on meanwhile, and each prompt's time to its first token."""
    server = open_target(Endpoint(target))
    tasks: list[asyncio.Task[None]] = []
    try:
        await server.prepare()
        writer = PromptWriter(await chars_per_token(server), seed=0)
        decoding = jobs(Workload("fixed", DECODE_PROMPT_TOKENS, DECODE_OUTPUT_TOKENS), writer)
        reading = jobs(Workload("fixed", LONG_PROMPT_TOKENS, LONG_OUTPUT_TOKENS), writer)
        decoders = [Answer(next(decoding), time.monotonic()) for _ in range(plan.decoders)]
        tasks = [asyncio.create_task(server.ask(answer)) for answer in decoders]
        await asyncio.sleep(SETTLE_S)
        began = time.monotonic()
        await asyncio.sleep(plan.duration_s / 2)
        prompts: list[Answer] = []
        middle = time.monotonic()
        while time.monotonic() < middle + plan.duration_s:
            prompts.append(Answer(next(reading), time.monotonic()))
            await server.ask(prompts[-1])
        ended = time.monotonic()
        await asyncio.sleep(plan.duration_s / 2)
        left = time.monotonic()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.close()
    for answer in (*decoders, *prompts):
        if answer.error:
            raise RuntimeError(f"{answer.error}: {answer.message}")
    spans = {"before": (began, middle), "beside": (middle, ended), "after": (ended, left), "whole": (began, left)}
    gaps = {name: [gap for answer in decoders for gap in _gaps(answer, *span)] for name, span in spans.items()}
    return gaps, [ttft_of(answer) for answer in prompts]


def _gaps(answer: Answer, begin: float, end: float) -> Iterator[float]:
    """Times between its tokens, of those that came in [begin, end)."""
    for earlier, later in pairwise(answer.token_times):
        if begin <= later < end:
            yield later - earlier


def _bench(settings: Settings, facts: dict[str, Any]) -> Rows:
    found = uvloop.run(bench(settings.validate(), sys.stderr))
    print(f"{', '.join(f'{name} {value}' for name, value in facts.items())}", end="")
    print(report(settings, found.runs, found.summaries), flush=True)
    return [{**facts, **summary.to_json()} for summary in found.summaries]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Plan()
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="repeat for several; all when left out")
    parser.add_argument("--duration", type=float, default=defaults.duration_s, help="seconds a load goes on")
    parser.add_argument("--rate", type=float, default=defaults.rate, help="of mix: requests a second")
    parser.add_argument("--concurrency", type=int, default=defaults.concurrency, help="of shared-prefix")
    parser.add_argument("--decoders", type=int, default=defaults.decoders, help="of long-prompts")
    parser.add_argument("--out", type=Path, help="result file; bench/results/<date>-serving.json when left out")
    parser.add_argument("flags", nargs="*", help="flags of `tokenwire launch`, after --")
    args = parser.parse_args(arguments)
    plan = Plan(args.duration, args.rate, args.concurrency, args.decoders, tuple(args.flags))
    rows: Rows = []
    for scenario in args.scenario or SCENARIOS:
        rows += {"mix": mix, "shared-prefix": shared_prefix, "long-prompts": long_prompts}[scenario](plan)
    print(record.write("serving", asdict(plan), rows, PACKAGES, path=args.out))


if __name__ == "__main__":
    main()
