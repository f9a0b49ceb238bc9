"""Roofline arithmetic: how fast a step could be on this device if every byte moved, and every product ran, at its best.

Weights and keys are read once a step; linear layers and attention come one after the other, each bound by whichever of
bandwidth and arithmetic takes longer. Activations, norms and sampling count nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tokenwire_service.models.checkpoint import checkpoint_tensors
from tokenwire_service.models.spec import ModelSpec

_PROBE_BYTES = 256 << 20
_PROBE_REPEATS = 5


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What a device reaches, not what its data sheet says."""

    bytes_per_s: float
    flops_per_s: float
    source: str


H200 = DeviceLimits(4.3e12, 790e12, "H200: measured copy and bf16 product")


def device_limits(device: torch.device, dtype: torch.dtype, *, probe_bytes: int = _PROBE_BYTES) -> DeviceLimits:
    """The H200's constants on one in bfloat16, a quick measurement anywhere else."""
    if device.type == "cuda" and dtype is torch.bfloat16 and "H200" in torch.cuda.get_device_name(device):
        return H200
    source = torch.zeros(probe_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / best_s(lambda: target.copy_(source), device)
    read = source.nbytes / best_s(source.sum, device)
    side = 8192 if device.type == "cuda" else 1024
    # What computes fp16 models on a CPU multiplies in float32.
    a = torch.zeros((side, side), dtype=dtype if device.type == "cuda" else torch.float32, device=device)
    flops = 2 * side**3 / best_s(lambda: a @ a, device)
    return DeviceLimits(max(copied, read), flops, "probe: copy, sum and square product")


def best_s(work: Callable[[], object], device: torch.device, repeats: int = _PROBE_REPEATS) -> float:
    """Seconds of the quickest of a few runs, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model makes a device do."""

    body_parameters: int
    """Of the linear layers, the head left out."""
    head_parameters: int
    kv_bytes_per_token: int
    attention_flops_per_pair: int
    """For one query and one key, over all layers."""
    weight_bytes: float
    """Of one parameter."""

    @classmethod
    def of(cls, spec: ModelSpec, weight_bytes: float, kv_item_bytes: int) -> ModelCost:
        matrices = {name: rows * columns for name, (rows, *rest) in checkpoint_tensors(spec) for columns in rest}
        embedding = spec.vocab_size * spec.hidden_size
        outside = sum(matrices.get(name, 0) for name in ("model.embed_tokens.weight", "lm_head.weight"))
        return cls(
            body_parameters=sum(matrices.values()) - outside,
            head_parameters=embedding,
            kv_bytes_per_token=2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * kv_item_bytes,
            attention_flops_per_pair=4 * spec.num_layers * spec.num_heads * spec.head_dim,
            weight_bytes=weight_bytes,
        )

    def decode_limit(self, batch: int, context: int, limits: DeviceLimits) -> float:
        """Tokens per second of `batch` sequences of `context` tokens."""
        parameters = self.body_parameters + self.head_parameters
        linear_s = max(parameters * self.weight_bytes / limits.bytes_per_s, 2 * parameters * batch / limits.flops_per_s)
        pairs = batch * context
        attention_s = max(
            pairs * self.kv_bytes_per_token / limits.bytes_per_s,
            pairs * self.attention_flops_per_pair / limits.flops_per_s,
        )
        return batch / (linear_s + attention_s)

    def prefill_limit(self, length: int, limits: DeviceLimits) -> float:
        """Prompt tokens per second of prompts of `length` tokens, many of them at once."""
        attention = self.attention_flops_per_pair * length / 2
        return limits.flops_per_s / (2 * self.body_parameters + attention)
