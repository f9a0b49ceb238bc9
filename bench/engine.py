"""The engine without its doors, against what the device could do: `python -m bench.engine`.

Decoding: sequences of `--context` tokens, as many at once as each `--batch` says, `--new-tokens` each. Prefill: prompts
of each `--prefill` length. Every figure comes as tokens per second and as a fraction of the roofline's; a decode step
is split into the device's time, the device's waiting for the host, and what a step takes with nothing to compute. With
`--shape` the model is random numbers of a known shape; transformers' continuous batching runs on the same shape after.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.engine_limits import DeviceLimits, ModelCost, device_limits
from bench.engine_offline import BatchRun, OfflineEngine, median
from bench.engine_shapes import SHAPES, without_work
from tokenwire_service.config import DEVICES, DTYPES, EMBEDDED_MODEL_ID, OPENMP_SPIN, EngineConfig, ModelConfig
from tokenwire_service.models.families import read_spec
from tokenwire_service.runner.dtypes import choose_dtype
from tokenwire_service.runner.machine import choose_device
from tokenwire_service.weights.resolve import resolve_model

OURS, TRANSFORMERS = "tokenwire", "transformers continuous batching"
_WARM_UP_TOKENS = 8
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class EngineWorkload:
    """What is asked of each contender."""

    model: str
    dtype: str
    device: str
    context: int
    new_tokens: int
    batches: tuple[int, ...]
    prefill: tuple[int, ...]
    prefill_tokens: int
    """Prompt tokens of one prefill run at least; as many prompts as that takes."""
    repeats: int
    sharded_path: bool = False
    """Whether the engine is driven as one over many ranks is."""

    @property
    def longest(self) -> int:
        return max(self.context + self.new_tokens, max(self.prefill, default=0) + 1)

    @property
    def cached_tokens(self) -> int:
        """Most tokens held at once, with a block to spare for each sequence."""
        decoding = max(self.batches) * (self.context + self.new_tokens + 128)
        return max(decoding, self.prefill_tokens + 2 * max(self.prefill, default=0))

    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            device=self.device,
            max_batch_size=max(max(self.batches), self.num_prompts(min(self.prefill, default=self.context))),
            max_total_tokens=self.longest,
            max_batch_total_tokens=self.cached_tokens,
            prefix_caching=False,
        )

    def num_prompts(self, length: int) -> int:
        return max(1, self.prefill_tokens // length)

    def prompts(self, num: int, length: int, vocab_size: int) -> list[list[int]]:
        """Random ids; every call the same."""
        generator = torch.Generator().manual_seed(length)
        ids: list[list[int]] = torch.randint(vocab_size, (num, length), generator=generator).tolist()
        return ids


def model_config(name: str) -> Mapping[str, Any]:
    """config.json of a shape, or of a model by its id or path."""
    return SHAPES[name] if name in SHAPES else resolve_model(ModelConfig(model_id=name)).config


def open_engine(work: EngineWorkload, config: Mapping[str, Any]) -> OfflineEngine:
    if work.model in SHAPES:
        engine_config, sharded = work.engine_config(), work.sharded_path
        return OfflineEngine.random(work.model, config, work.dtype, engine_config, sharded_path=sharded)
    resolved = resolve_model(ModelConfig(model_id=work.model))
    return OfflineEngine(resolved, work.dtype, work.engine_config(), sharded_path=work.sharded_path)


def measure_ours(work: EngineWorkload, config: Mapping[str, Any]) -> list[Row]:
    vocab_size = read_spec(config).vocab_size
    bare = _decode_without_work(work, config) if choose_device(work.device, 0).type == "cpu" else {}
    engine = open_engine(work, config)
    engine.run(work.prompts(1, 16, vocab_size), _WARM_UP_TOKENS)
    rows = []
    for batch in work.batches:
        prompts = work.prompts(batch, work.context, vocab_size)
        runs = [engine.run(prompts, work.new_tokens) for _ in range(work.repeats)]
        rows.append(_decode_row(max(runs, key=lambda run: _rate(run, batch)), batch) | bare.get(batch, {}))
    for length in work.prefill:
        prompts = work.prompts(work.num_prompts(length), length, vocab_size)
        runs = [engine.run(prompts, 1) for _ in range(work.repeats)]
        lone = [engine.run(prompts[:1], 1) for _ in range(work.repeats)]
        rows.append(
            {
                "kind": "prefill",
                "length": length,
                "tokens_per_s": len(prompts) * length / min(run.seconds for run in runs),
                "ttft_s": min(run.first_token_s[0] for run in lone),
            }
        )
    return [{"engine": OURS, **row} for row in rows]


def _rate(run: BatchRun, batch: int) -> float:
    return batch / median([step.took_s for step in run.steady(batch)])


def _decode_row(run: BatchRun, batch: int) -> Row:
    steps = run.steady(batch)
    return {
        "kind": "decode",
        "batch": batch,
        "tokens_per_s": _rate(run, batch),
        "offline_tokens_per_s": run.num_tokens / run.seconds,
        "step_ms": 1e3 * median([step.took_s for step in steps]),
        "device_ms": 1e3 * median([step.device_s for step in steps]),
        "gap_ms": 1e3 * median([step.gap_s for step in steps]),
        "runner_host_ms": 1e3 * median([step.host_s for step in steps]),
    }


def _decode_without_work(work: EngineWorkload, config: Mapping[str, Any]) -> dict[int, Row]:
    """By batch: what Python, scheduling and dispatch take of a step, on the CPU, where they are not beside the work."""
    small = dataclasses.replace(work, context=16, prefill=())
    name, least = "no work", without_work(config)
    engine = OfflineEngine.random(name, least, "float32", small.engine_config())
    found = {}
    for batch in work.batches:
        prompts = small.prompts(batch, small.context, least["vocab_size"])
        runs = [engine.run(prompts, work.new_tokens) for _ in range(work.repeats)]
        found[batch] = {
            "without_work_ms": min(1e3 * median([step.took_s for step in run.steady(batch)]) for run in runs)
        }
    return found


def measure_transformers(work: EngineWorkload, config: Mapping[str, Any]) -> list[Row]:
    from bench.transformers_contenders import RandomContinuousBatching, steady_rate

    device = choose_device(work.device, 0)
    dtype = choose_dtype(work.dtype, device) if device.type == "cuda" else torch.float32
    vocab_size = read_spec(config).vocab_size
    engine = RandomContinuousBatching(config, dtype, device, work.cached_tokens)
    engine.run(work.prompts(1, 16, vocab_size), _WARM_UP_TOKENS)
    rows: list[Row] = []
    for batch in work.batches:
        prompts = work.prompts(batch, work.context, vocab_size)
        runs = [engine.run(prompts, work.new_tokens) for _ in range(work.repeats)]
        rows.append({"kind": "decode", "batch": batch, "tokens_per_s": max(steady_rate(run) for run in runs)})
    for length in work.prefill:
        prompts = work.prompts(work.num_prompts(length), length, vocab_size)
        runs = [engine.run(prompts, 1) for _ in range(work.repeats)]
        last = min(max(each.token_times_s[0] for each in run) for run in runs)
        rows.append({"kind": "prefill", "length": length, "tokens_per_s": len(prompts) * length / last})
    return [{"engine": TRANSFORMERS, **row} for row in rows]


def add_fractions(rows: list[Row], work: EngineWorkload, config: Mapping[str, Any], limits: DeviceLimits) -> None:
    """What each row is of the roofline's tokens per second, the context being that of the middle of the run."""
    device = choose_device(work.device, 0)
    item = choose_dtype(work.dtype, device).itemsize
    cost = ModelCost.of(read_spec(config), item, item)
    for row in rows:
        if row["kind"] == "decode":
            limit = cost.decode_limit(row["batch"], work.context + work.new_tokens // 2, limits)
        else:
            limit = cost.prefill_limit(row["length"], limits)
        row["limit_tokens_per_s"] = limit
        row["fraction_of_limit"] = row["tokens_per_s"] / limit


def print_table(rows: list[Row]) -> None:
    for row in rows:
        what = f"decode at {row['batch']}" if row["kind"] == "decode" else f"prefill of {row['length']}"
        line = (
            f"{row['engine']:<34}{what:<18}{row['tokens_per_s']:>11.1f} tok/s{row['fraction_of_limit']:>8.1%} of limit"
        )
        if "step_ms" in row:
            line += f"   step {row['step_ms']:.2f} ms: device {row['device_ms']:.2f}, gap {row['gap_ms']:.3f}"
        if "without_work_ms" in row:
            line += f", without work {row['without_work_ms']:.2f} ({row['without_work_ms'] / row['step_ms']:.0%})"
        if "ttft_s" in row:
            line += f"   alone {row['ttft_s']:.3f} s"
        print(line)


def in_own_process(contender: str, arguments: list[str]) -> list[Row]:
    """What a contender holds is gone when the next one starts."""
    command = [sys.executable, "-m", "bench.engine", *arguments, "--contender", contender]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[Row] = json.loads(result.stdout.splitlines()[-1])
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape, made on the device")
    model.add_argument("--model-id", default=EMBEDDED_MODEL_ID, help="a real model: ours alone is run")
    parser.add_argument("--random-weights", action="store_true", help="what --shape means anyway")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--batch", type=int, nargs="+", help="1 32 128 256 on a GPU, 1 8 16 32 elsewhere unless given")
    parser.add_argument("--context", type=int, help="1024 on a GPU, 256 elsewhere unless given")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prefill", type=int, nargs="*", help="1024 4096 8192 on a GPU, 1024 elsewhere unless given")
    parser.add_argument(
        "--prefill-tokens", type=int, help="prompt tokens of a prefill run at least; the longest prompt"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sharded-path", action="store_true", help="drive the one rank as one over many is driven")
    parser.add_argument("--no-transformers", action="store_true", help="run ours alone")
    parser.add_argument("--out", type=Path, help="result file; bench/results/<date>-engine-<model>.json unless given")
    parser.add_argument("--contender", choices=(OURS, TRANSFORMERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.random_weights and not given.shape:
        parser.error("--random-weights needs --shape")
    return given


def make_workload(given: argparse.Namespace) -> EngineWorkload:
    """What was asked for, the rest by what the device can do in a few minutes."""
    on_gpu = choose_device(given.device, 0).type == "cuda"
    prefill = given.prefill if given.prefill is not None else [1024, 4096, 8192] if on_gpu else [1024]
    return EngineWorkload(
        model=given.shape or given.model_id,
        dtype=given.dtype,
        device=given.device,
        context=given.context or (1024 if on_gpu else 256),
        new_tokens=given.new_tokens,
        batches=tuple(given.batch or ([1, 32, 128, 256] if on_gpu else [1, 8, 16, 32])),
        prefill=tuple(prefill),
        prefill_tokens=given.prefill_tokens or max(prefill, default=0),
        repeats=given.repeats,
        sharded_path=given.sharded_path,
    )


def main() -> None:
    given = parse()
    os.environ.setdefault(*OPENMP_SPIN)
    work = make_workload(given)
    config = model_config(work.model)
    if given.contender:
        measure = measure_ours if given.contender == OURS else measure_transformers
        print(json.dumps(measure(work, config)))
        return
    rows = in_own_process(OURS, sys.argv[1:])
    if given.shape and not given.no_transformers:
        rows += in_own_process(TRANSFORMERS, sys.argv[1:])
    device = choose_device(work.device, 0)
    limits = device_limits(device, choose_dtype(work.dtype, device))
    add_fractions(rows, work, config, limits)
    print_table(rows)
    described = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    more = {"device": described, "limits": dataclasses.asdict(limits)}
    workload = dataclasses.asdict(work)
    kind = f"engine-{Path(work.model).stem if work.model not in SHAPES else work.model}"
    kind += "-sharded-path" if work.sharded_path else ""
    path = record.write(kind, workload, rows, ("torch", "transformers"), more=more, path=given.out)
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
