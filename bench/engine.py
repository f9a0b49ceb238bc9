"""Our engine against transformers on the same model, prompts and threads: `python -m bench.engine`.

Each contender runs in a process of its own, one after the other, all started by this one. tok/s counts generated tokens
over the whole run, prefill included; TTFT is the time of one request for one token. Each figure is the best of its
repeats: noise only ever makes a run slower.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any, Protocol

from bench.record import write
from bench.workload import Workload, make_prompts
from tokenwire_service.config import EMBEDDED_MODEL_ID, ModelConfig
from tokenwire_service.text.tokenizer import Tokenizer
from tokenwire_service.weights.resolve import ResolvedModel, resolve_model

OURS = "tokenwire"
CONTENDERS = (OURS, "transformers generate", "transformers continuous batching")


class Contender(Protocol):
    """Generates greedily, end tokens ignored."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> int:
        """Run all prompts at once to `new_tokens` each; returns how many tokens were generated."""
        ...

    def close(self) -> None: ...


def open_contender(name: str, resolved: ResolvedModel, model: ModelConfig) -> Contender:
    if name == OURS:
        from bench.contenders.tokenwire import Tokenwire

        return TokenwireContender(model, resolved)
    from bench.transformers_contenders import TransformersContinuousBatching, TransformersGenerate

    return (
        TransformersGenerate(resolved) if name == "transformers generate" else TransformersContinuousBatching(resolved)
    )


def timed(contender: Contender, prompts: list[list[int]], new_tokens: int) -> float:
    start = time.perf_counter()
    generated = contender.generate(prompts, new_tokens)
    seconds = time.perf_counter() - start
    if generated != len(prompts) * new_tokens:
        raise RuntimeError(f"{generated} tokens generated, {len(prompts) * new_tokens} asked for")
    return seconds


def measure(name: str, model: ModelConfig, workload: Workload) -> list[dict[str, Any]]:
    """One row per concurrency and one for TTFT. Every run has prompts of its own, so that no cache helps."""
    resolved = resolve_model(model)
    tokenizer = Tokenizer.from_dir(resolved.tokenizer_dir)

    def prompts(num: int, length: int, offset: int) -> list[list[int]]:
        return make_prompts(lambda text: tokenizer.encode(text, add_special_tokens=False), num, length, offset)

    contender = open_contender(name, resolved, model)
    rows = []
    try:
        timed(contender, prompts(2, workload.prompt_tokens, 90), 8)
        for num in workload.concurrency:
            runs = [
                timed(contender, prompts(num, workload.prompt_tokens, repeat * num), workload.new_tokens)
                for repeat in range(workload.repeats)
            ]
            rows.append(
                {
                    "engine": name,
                    "concurrency": num,
                    "tokens_per_s": num * workload.new_tokens / min(runs),
                    "runs_s": runs,
                }
            )
        runs = [
            timed(contender, prompts(1, workload.ttft_prompt_tokens, 1 + repeat), 1)
            for repeat in range(workload.repeats)
        ]
        rows.append(
            {"engine": name, "ttft_prompt_tokens": workload.ttft_prompt_tokens, "ttft_s": min(runs), "runs_s": runs}
        )
    finally:
        contender.close()
    return rows


def in_own_process(name: str, arguments: list[str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "bench.engine", "--contender", name, *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return rows


def print_table(rows: list[dict[str, Any]], workload: Workload) -> None:
    """One line a measure: ours, each other, and ours over it (above 1 is faster)."""
    others = [name for name in CONTENDERS if any(row["engine"] == name for row in rows) and name != OURS]
    print(f"{'':<24}{OURS:>12}" + "".join(f"{name:>36}{'ratio':>8}" for name in others))
    for num in workload.concurrency:
        found = {row["engine"]: row["tokens_per_s"] for row in rows if row.get("concurrency") == num}
        ratios = "".join(f"{found[name]:>36.1f}{found[OURS] / found[name]:>7.2f}x" for name in others)
        print(f"{f'tok/s at {num}':<24}{found[OURS]:>12.1f}{ratios}")
    found = {row["engine"]: row["ttft_s"] for row in rows if "ttft_s" in row}
    ratios = "".join(f"{found[name]:>36.2f}{found[name] / found[OURS]:>7.2f}x" for name in others)
    print(f"{f'TTFT s at {workload.ttft_prompt_tokens}':<24}{found[OURS]:>12.2f}{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-id", default=EMBEDDED_MODEL_ID)
    parser.add_argument("--repeats", type=int, default=Workload().repeats)
    parser.add_argument("--new-tokens", type=int, default=Workload().new_tokens)
    parser.add_argument("--only", choices=CONTENDERS, action="append", help="leave the others out (ours is always run)")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    workload = Workload(repeats=given.repeats, new_tokens=given.new_tokens)
    model = ModelConfig(model_id=given.model_id, dtype="float32")
    if given.contender:
        print(json.dumps(measure(given.contender, model, workload)))
        return
    arguments = ["--model-id", given.model_id, "--repeats", str(given.repeats), "--new-tokens", str(given.new_tokens)]
    rows: list[dict[str, Any]] = []
    for name in CONTENDERS:
        if name == OURS or not given.only or name in given.only:
            print(f"running {name} ...", file=sys.stderr)
            rows += in_own_process(name, arguments)
    print_table(rows, workload)
    path = write("engine", workload.to_json() | {"model": given.model_id}, rows, ("torch", "transformers"))
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
