"""All-reduce by message size: torch.distributed's against the shortcut ranks of one machine take.

    torchrun --nproc-per-node 8 -m bench.all_reduce        # on GPUs: NCCL and symmetric memory, each in a CUDA graph
    torchrun --nproc-per-node 2 -m bench.all_reduce        # on a CPU: gloo alone, which shows that it runs

Both sum the same numbers; sums that differ by more than rounding end it with status 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench import record
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.parallel.symmetric import choose_way, make_symmetric_sum

_SIZES = tuple(1 << shift for shift in range(12, 25))
"""Bytes."""
_REPEATS = 50


def seconds_each(sum_up: Callable[[], object], device: torch.device) -> float:
    """Of one sum among many in a row, recorded where the device can."""
    replay: Callable[[], object] = sum_up
    for _ in range(3):
        sum_up()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sum_up()
        replay = graph.replay
    dist.barrier()
    _wait(device)
    begun = time.perf_counter()
    for _ in range(_REPEATS):
        replay()
    _wait(device)
    return (time.perf_counter() - begun) / _REPEATS


def agree(group: TensorParallelGroup, plain: TensorParallelGroup, x: Tensor) -> bool:
    """Whether both ways give the same sums up to rounding."""
    ours, theirs = group.all_reduce(x.clone()), plain.all_reduce(x.clone())
    return torch.allclose(ours.float(), theirs.float(), rtol=2e-2, atol=2e-2)


def measure(group: TensorParallelGroup, device: torch.device) -> list[dict[str, Any]]:
    """A row for each size. Raises RuntimeError where the two ways disagree."""
    plain = dataclasses.replace(group, shortcut=None)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for size in _SIZES:
        x = torch.randn(size // dtype.itemsize, device=device).to(dtype)
        if not agree(group, plain, x):
            raise RuntimeError(f"sums of {size} bytes differ")
        # Sums of sums grow without bound; zeros cost the same.
        x.zero_()
        row: dict[str, Any] = {"bytes": size, "plain_us": 1e6 * seconds_each(partial(_sum, plain, x), device)}
        if group.shortcut is not None:
            way = choose_way(size, group.size, multicast=True)
            row |= {
                "way": None if way is None else way.name.lower(),
                "ours_us": 1e6 * seconds_each(partial(_sum, group, x), device),
            }
        rows.append(row)
    return rows


def _sum(group: TensorParallelGroup, x: Tensor) -> None:
    # Of a group of one nothing would be left to measure.
    if group.size > 1:
        group.all_reduce(x)
    else:
        dist.all_reduce(x)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file; bench/results/<date>-all-reduce.json unless given")
    given = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it by torchrun")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        group = TensorParallelGroup(dist.get_rank(), dist.get_world_size())
        if on_gpu and group.size > 1:
            group = dataclasses.replace(group, shortcut=make_symmetric_sum(group, torch.bfloat16, device))
        rows = measure(group, device)
        if group.rank == 0:
            for row in rows:
                print("  ".join(f"{name} {value}" for name, value in row.items()))
            work = {"ranks": group.size, "device": device.type}
            print(f"written to {record.write('all-reduce', work, rows, ('torch',), path=given.out)}", file=sys.stderr)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
