"""From flags, the model and free memory to the fixed sizes of batch and cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenwire_service.config import EngineConfig
from tokenwire_service.errors import ConfigError
from tokenwire_service.models.spec import ModelSpec

_MAX_TOTAL_TOKENS_ON_CPU = 8192


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """What the scheduler and the runner agree on."""

    num_blocks: int
    block_size: int
    max_num_sequences: int
    """Slots."""
    max_batch_tokens: int
    """Tokens computed in one step at most."""
    max_total_tokens: int
    """Longest sequence; one fits the cache."""

    @property
    def max_blocks_per_sequence(self) -> int:
        return -(-self.max_total_tokens // self.block_size)


def choose_sizes(
    config: EngineConfig, spec: ModelSpec, block_bytes: int, device: torch.device, free_bytes: int
) -> EngineSizes:
    """`block_bytes` is what one KV block takes over all layers of this rank. Raises ConfigError when nothing fits."""
    on_cpu = device.type == "cpu"
    block_size = config.block_size
    max_num_sequences = config.max_batch_size or (64 if on_cpu else 256)
    longest = config.max_total_tokens or (_MAX_TOTAL_TOKENS_ON_CPU if on_cpu else spec.max_position_embeddings)
    longest = min(longest, spec.max_position_embeddings)
    useful = max_num_sequences * -(-longest // block_size)
    num_blocks = -(-config.max_batch_total_tokens // block_size)
    if num_blocks == 0:
        num_blocks = min(useful, int(free_bytes * config.kv_cache_memory_fraction) // block_bytes)
    if num_blocks * block_bytes > free_bytes or num_blocks < 1:
        raise ConfigError(
            f"the KV cache does not fit: {max(num_blocks, 1)} blocks of {block_bytes} bytes, {free_bytes} bytes free; "
            "lower --max-batch-total-tokens or give the process more memory"
        )
    return EngineSizes(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_sequences=max_num_sequences,
        max_batch_tokens=config.max_batch_prefill_tokens or (512 if on_cpu else 8192),
        max_total_tokens=min(longest, num_blocks * block_size),
    )
