"""Who is compared: ours and each peer, at each precision it can be had in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

OURS = "tokenwire"
FULL, EIGHT_BIT, FOUR_BIT, BF16 = "full", "8bit", "4bit", "bf16"
"""Precision classes: fp32 or fp16 weights with fp32 arithmetic; 8-bit weights; 4-bit weights; bf16 arithmetic."""
COMPARED = (FULL, BF16, EIGHT_BIT)
"""The classes both sides are in."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One engine, one way to hold the weights."""

    name: str
    engine: str
    precision_class: str
    worker: str
    """Module under bench.contenders."""
    venv: str
    """Directory under .bench and requirements/bench-<venv>.txt; empty: the Python that runs this."""
    model: str
    """Format, see PeerModels."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    convert: bool = False
    """Whether the engine turns the model into a form of its own on first sight, which is done before it is measured."""


def _ours(name: str, precision_class: str, model: str, **options: str) -> Contender:
    return Contender(f"{OURS}-{name}", OURS, precision_class, "tokenwire", "", model, MappingProxyType(options))


def _llamacpp(kind: str, precision_class: str) -> Contender:
    model = "embedded" if kind == "Q4_1" else kind
    return Contender(f"llamacpp-{kind.lower()}", "llama.cpp", precision_class, "llamacpp", "llamacpp", model)


def _transformers(mode: str, name: str) -> Contender:
    options = MappingProxyType({"mode": mode})
    return Contender(name, f"transformers {mode}", FULL, "transformers", "transformers", "safetensors", options)


def _openvino(name: str, precision_class: str, kind: str, **options: str) -> Contender:
    return Contender(
        f"openvino-{name}",
        "openvino",
        precision_class,
        "openvino",
        "openvino",
        kind,
        MappingProxyType(options),
        convert=True,
    )


def contenders(quantizations: tuple[str, ...]) -> tuple[Contender, ...]:
    """In the order they run. `quantizations` are those our engine takes."""
    # Q8_0 is 8 bits with a scale for each 32 weights, which is what int8 holds: the same numbers.
    eight_bit = {"quantize": "int8"} if "int8" in quantizations else {}
    int8 = (_ours("int8", EIGHT_BIT, "embedded", dtype="auto", **eight_bit),) if eight_bit else ()
    return (
        _ours("float16", FULL, "embedded", dtype="float16"),
        _ours("float32", FULL, "embedded", dtype="float32"),
        # bf16 arithmetic where the processor has it, as for OpenVINO below.
        _ours("bfloat16", BF16, "embedded", dtype="bfloat16"),
        *int8,
        _ours("q8_0", EIGHT_BIT, "Q8_0", dtype="auto", **eight_bit),
        # OpenVINO picks bf16 arithmetic where the processor has it, which is another class: "full" is told otherwise.
        _openvino("f16", FULL, "F16", inference_precision="f32", kv_cache_precision="f16"),
        _openvino("q8_0", EIGHT_BIT, "Q8_0", kv_cache_precision="u8"),
        _openvino("default", BF16, "F16", kv_cache_precision="u8"),
        _llamacpp("F32", FULL),
        _llamacpp("F16", FULL),
        _llamacpp("Q8_0", EIGHT_BIT),
        _llamacpp("Q4_1", FOUR_BIT),
        Contender("vllm", "vllm", FULL, "vllm", "vllm", "safetensors", MappingProxyType({"dtype": "float32"})),
        _transformers("generate", "transformers-generate"),
        _transformers("continuous batching", "transformers-continuous-batching"),
    )
