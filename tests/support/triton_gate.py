"""Compiles every Triton variant the launchers use for an H100 or H200 (sm_90), without a GPU.

`tests/kernels/gate/<op>.py` names the variants of one operation: `def variants() -> list[Variant]`. Compiling needs
a process in which Triton does not interpret, so a test calls `measure_variants`, which runs this module as one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GATE = ROOT / "tests" / "kernels" / "gate"
SHARED_MEMORY_LIMIT = 232448
"""Bytes of shared memory one block may use on sm_90."""


@dataclass(frozen=True)
class Variant:
    """One way in which a launcher calls a kernel.

    signature: the type of every parameter, as Triton writes it ("*bf16", "*fp8e4nv", "i32", "i64", "fp32"), or
    "constexpr" for one whose value is in `constants` (None for an absent pointer).
    aligned: the pointers and integers that are divisible by 16. wgmma: whether Hopper's matrix instruction must occur.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, object]
    num_warps: int = 4
    num_stages: int = 2
    wgmma: bool = False
    aligned: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Measured:
    """What one variant became. The counts are zero where `error` says why it did not compile."""

    name: str
    error: str = ""
    shared_bytes: int = 0
    registers: int = 0
    stack_bytes: int = 0
    local_bytes: int = 0
    has_wgmma: bool = False
    has_mma: bool = False
    has_cp_async: bool = False


def variants_by_name() -> dict[str, Variant]:
    """All variants as "<op>-<name>". Their kernels can be compiled only where Triton does not interpret."""
    found: dict[str, Variant] = {}
    for path in sorted(GATE.glob("*.py")):
        for variant in import_module(f"tests.kernels.gate.{path.stem}").variants():
            name = f"{path.stem}-{variant.name}"
            if name in found:
                raise ValueError(f"two variants are called {name}")
            found[name] = variant
    return found


def measure_variants(*names: str) -> dict[str, Measured]:
    """Compile all variants, or those named, in a process without the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.triton_gate", *names]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the compile gate failed:\n{result.stderr}")
    return {entry["name"]: Measured(**entry) for entry in json.loads(result.stdout)}


def _measure(name: str) -> Measured:
    try:
        return _compile(name, variants_by_name()[name])
    except Exception as error:
        return Measured(name, error="\n".join(_reasons(error)))


def _reasons(error: BaseException | None) -> Iterator[str]:
    """An error and what caused it: Triton names the caller first, the fault in the called function last."""
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__


def _compile(name: str, variant: Variant) -> Measured:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    parameters = variant.kernel.arg_names
    if set(variant.signature) != set(parameters):
        raise ValueError(f"signature and parameters differ in {set(variant.signature) ^ set(parameters)}")
    source = ASTSource(
        variant.kernel,
        {parameter: variant.signature[parameter] for parameter in parameters},
        constexprs=dict(variant.constants),
        attrs={(parameters.index(parameter),): [["tt.divisibility", 16]] for parameter in variant.aligned},
    )
    # Triton's cache is addressed by the source of the kernel and all it calls, the options and its own version.
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx, usage = compiled.asm["ptx"], _resource_usage(compiled.asm["cubin"])
    return Measured(
        name,
        shared_bytes=compiled.metadata.shared,
        registers=usage["REG"],
        stack_bytes=usage["STACK"],
        local_bytes=usage["LOCAL"],
        has_wgmma="wgmma.mma_async" in ptx,
        has_mma="mma.sync" in ptx,
        has_cp_async="cp.async" in ptx,
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output)}


def _main(names: list[str]) -> None:
    wanted = names or list(variants_by_name())
    # Forked, so that workers inherit the imported modules.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), mp_context=context) as pool:
        sys.stdout.write(json.dumps([asdict(measured) for measured in pool.map(_measure, wanted)], indent=1))


if __name__ == "__main__":
    _main(sys.argv[1:])
