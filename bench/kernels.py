"""Every kernel against its reference and plain torch, and against what the device reaches: `python -m bench.kernels`.

A kernel whose tests are red is not measured: nothing is, and the exit status is 1. Times are the best of many runs; on
a GPU the cache is flushed before each, since a step reads every weight once.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.engine_limits import DeviceLimits, device_limits
from bench.engine_shapes import SHAPES
from bench.kernels_cases import OPS, TESTS, Case, Setting, Work
from tokenwire_service.config import DEVICES, DTYPES, OPENMP_SPIN
from tokenwire_service.kernels.backend import Backend, reference_backend, select_backend
from tokenwire_service.models.families import read_spec
from tokenwire_service.runner.dtypes import choose_dtype, choose_kv_dtype
from tokenwire_service.runner.machine import choose_device

_ROOT = Path(__file__).parent.parent
_RUNS = 30
_ENOUGH_S = 0.5
_FLUSHED_BYTES = 256 << 20
Row = dict[str, Any]


def red_tests(ops: list[str]) -> list[str]:
    """Names of the tests of these kernels that fail; pytest's own words where it could not run them."""
    found = {op: list((_ROOT / "tests" / "kernels").glob(TESTS[op])) for op in ops}
    if untested := [op for op, paths in found.items() if not paths]:
        return [f"{op} has no tests that match tests/kernels/{TESTS[op]}" for op in untested]
    paths = sorted({str(path) for paths in found.values() for path in paths})
    unknown_option = "ignore::pytest.PytestConfigWarning"
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-W", unknown_option, *paths]
    result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return []
    named = re.findall(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE)
    return named or [(result.stdout + result.stderr).strip()[-2000:]]


def make_setting(given: argparse.Namespace) -> Setting:
    device = choose_device(given.device, 0)
    dtype = choose_dtype(given.dtype, device)
    best = select_backend(device, dtype)
    activations = best.compute_dtype or dtype
    backends = {"reference": reference_backend(device)} | {_name(best): best}
    formats = {"reference": reference_backend(device)} | dict(_linear_backends(device, best))
    shape = given.shape or ("llama-3.1-8b" if device.type == "cuda" else "smollm2-135m")
    return Setting(
        spec=read_spec(SHAPES[shape]),
        dtype=activations,
        kv_dtype=choose_kv_dtype("auto", dtype, best),
        backends=backends,
        linear_backends=formats,
        num_tokens=tuple(given.tokens),
        context=given.context,
    )


def _name(backend: Backend) -> str:
    if backend.triton:
        return "triton"
    return "reference" if backend.library is None else "native"


def _linear_backends(device: torch.device, best: Backend) -> Iterator[tuple[str, Backend]]:
    """Native formats of weights; on a GPU linear layers are the library's."""
    if best.library is None:
        return
    yield "native float32", select_backend(device, torch.float32)
    yield "native float16", select_backend(device, torch.float16)
    yield "native int8", select_backend(device, torch.float32, "int8")


@torch.inference_mode()
def measure(case: Case, limits: DeviceLimits, device: torch.device) -> list[Row]:
    rows = []
    for name, work in case.runs.items():
        seconds = gpu_best_s(work) if device.type == "cuda" else cpu_best_s(work)
        limit_s = max(case.num_bytes / limits.bytes_per_s, case.flops / limits.flops_per_s)
        rows.append(
            {
                "op": case.op,
                "shape": case.shape,
                "implementation": name,
                "us": 1e6 * seconds,
                "gb_per_s": case.num_bytes / seconds / 1e9,
                "tflop_per_s": case.flops / seconds / 1e12,
                "fraction_of_limit": limit_s / seconds,
            }
        )
    return rows


def cpu_best_s(work: Work) -> float:
    work()
    best, begun = float("inf"), time.perf_counter()
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now - begun > _ENOUGH_S:
            break
    return best


def gpu_best_s(work: Work) -> float:
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device="cuda")
    work()
    marks = []
    for _ in range(_RUNS):
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return min(float(start.elapsed_time(end)) for start, end in marks) / 1e3


def print_case(case: Case, rows: list[Row]) -> None:
    plain = next(row["us"] for row in rows if row["implementation"] == "torch")
    for row in rows:
        speed = f"{row['tflop_per_s']:.3f} TFLOP/s" if case.flops else f"{row['gb_per_s']:.1f} GB/s"
        print(
            f"{case.op:<20}{case.shape:<30}{row['implementation']:<16}{row['us']:>12.1f} us{speed:>18}"
            f"{row['fraction_of_limit']:>8.0%} of limit{plain / row['us']:>8.2f}x torch"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(OPS), action="append", help="these kernels alone; may be repeated")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="llama-3.1-8b on a GPU, smollm2-135m elsewhere")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 128, 1024])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--out", type=Path, help="result file; bench/results/<date>-kernels.json unless given")
    return parser.parse_args()


def use_engine_threads() -> None:
    """Start again with OpenMP set as the engine sets it, which the library reads only when it is loaded."""
    name, value = OPENMP_SPIN
    if name not in os.environ:
        os.environ[name] = value
        os.execv(sys.executable, [sys.executable, "-m", "bench.kernels", *sys.argv[1:]])


def main() -> None:
    given = parse()
    use_engine_threads()
    ops = given.only or list(OPS)
    print(f"testing {', '.join(ops)} ...", file=sys.stderr)
    red = red_tests(ops)
    if red:
        raise SystemExit("\n".join(["nothing is measured while tests are red:", *red]))
    setting = make_setting(given)
    limits = device_limits(setting.device, setting.dtype)
    rows = []
    for op in ops:
        for case in OPS[op](setting):
            measured = measure(case, limits, setting.device)
            print_case(case, measured)
            rows += measured
    workload = {"shape": given.shape, "dtype": str(setting.dtype), "tokens": given.tokens, "context": given.context}
    more = {"device": str(setting.device), "limits": asdict(limits)}
    path = record.write("kernels", workload, rows, ("torch",), more=more, path=given.out)
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
