"""From one rank's measured steps to the throughput of all: `python -m bench.projection FILE`.

FILE is what `python -m bench.engine --shape llama-3.1-70b-of-8` wrote: a model that is one rank's part of a larger one.
A step of all ranks takes what this one takes, and two all-reduces a layer of [batch, hidden size] in bfloat16, none of
it hidden. What an all-reduce takes is interpolated between published figures for one-shot and NCCL's symmetric kernels
on four H100 (vLLM pull requests 24111 and 24532), not measured here.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.engine_shapes import SHAPES

_ALL_REDUCE_US = ((0.0, 9.0), (0.5, 10.0), (1.0, 14.0), (2.0, 21.0), (4.0, 28.0))
"""MiB and microseconds; beyond the last, in proportion."""
_ALL_REDUCES_A_LAYER = 2
_BFLOAT16_BYTES = 2


def all_reduce_s(num_bytes: int) -> float:
    """Seconds of one all-reduce of `num_bytes` over NVLink."""
    size = num_bytes / (1 << 20)
    for (low, low_us), (high, high_us) in pairwise(_ALL_REDUCE_US):
        if size <= high:
            return 1e-6 * (low_us + (high_us - low_us) * (size - low) / (high - low))
    largest, largest_us = _ALL_REDUCE_US[-1]
    return 1e-6 * largest_us * size / largest


def projected(row: dict[str, Any], num_layers: int, hidden_size: int) -> dict[str, Any]:
    """What a row of decoding becomes when every rank computes the like and waits for the others."""
    step_s = 1e-3 * row["step_ms"]
    exchange_s = _ALL_REDUCES_A_LAYER * num_layers * all_reduce_s(row["batch"] * hidden_size * _BFLOAT16_BYTES)
    return {
        "batch": row["batch"],
        "rank_step_ms": row["step_ms"],
        "all_reduce_ms": 1e3 * exchange_s,
        "tokens_per_s": row["batch"] / (step_s + exchange_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    found = json.loads(parser.parse_args().file.read_text())
    shape = SHAPES[found["workload"]["model"]]
    print(f"{'batch':>6}{'rank step ms':>14}{'all-reduce ms':>15}{'tokens/s':>10}")
    for row in found["rows"]:
        if row["kind"] == "decode" and "step_ms" in row:
            line = projected(row, shape["num_hidden_layers"], shape["hidden_size"])
            print(
                f"{line['batch']:>6}{line['rank_step_ms']:>14.2f}{line['all_reduce_ms']:>15.2f}{line['tokens_per_s']:>10.0f}"
            )


if __name__ == "__main__":
    main()
