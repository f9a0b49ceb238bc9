"""From flags, the model and free memory to the fixed sizes of batch and cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median_low

import torch

from tokenwire_service.config import EngineConfig
from tokenwire_service.errors import ConfigError
from tokenwire_service.models.spec import ModelSpec
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.scheduling.limits import SchedulerLimits

_MAX_TOTAL_TOKENS_ON_CPU = 8192
_MIN_SHARE = 0.8
"""Of the median of what the other ranks have free, what every rank must have."""


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """What the scheduler and the runner agree on."""

    num_blocks: int
    block_size: int
    max_num_sequences: int
    """Slots; no more than `max_batch_tokens`, so that each has its token in every step."""
    max_batch_tokens: int
    """Tokens computed in one step at most."""
    max_total_tokens: int
    """Longest sequence; one fits the cache."""
    vocab_size: int
    """Rows of the embedding."""

    @property
    def max_blocks_per_sequence(self) -> int:
        return -(-self.max_total_tokens // self.block_size)

    def scheduler_limits(self, *, prefix_caching: bool) -> SchedulerLimits:
        """These sizes as the scheduler's limits."""
        return SchedulerLimits(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_sequences=self.max_num_sequences,
            max_batch_prefill_tokens=self.max_batch_tokens,
            max_total_tokens=self.max_total_tokens,
            prefix_caching=prefix_caching,
            vocab_size=self.vocab_size,
        )


def check_flags(config: EngineConfig, spec: ModelSpec, device: torch.device) -> None:
    """Raises ConfigError for flags that need no weights and no free memory to be refused."""
    on_cpu = device.type == "cpu"
    _batch(config, on_cpu)
    _longest(config, spec, on_cpu)
    cores = os.cpu_count() or 1
    if config.num_threads > cores:
        raise ConfigError(
            f"--num-threads {config.num_threads} is more than this machine's {cores} cores; lower it or leave it out"
        )


def choose_sizes(
    config: EngineConfig, spec: ModelSpec, block_bytes: int, device: torch.device, free_bytes: int
) -> EngineSizes:
    """`block_bytes` is what one KV block takes over all layers of this rank.

    Raises ConfigError when memory is short, and for a flag that cannot be honoured as it was given.
    """
    on_cpu = device.type == "cpu"
    max_num_sequences, max_batch_tokens = _batch(config, on_cpu)
    longest = _longest(config, spec, on_cpu)
    useful = max_num_sequences * -(-longest // config.block_size)
    num_blocks = _num_blocks(config, useful, block_bytes, free_bytes)
    num_cached_tokens = num_blocks * config.block_size
    if config.max_total_tokens > num_cached_tokens:
        raise ConfigError(
            f"--max-total-tokens {config.max_total_tokens}: the KV cache holds {num_cached_tokens} tokens; lower it, "
            "raise --max-batch-total-tokens, or give the process more memory"
        )
    return EngineSizes(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_sequences=max_num_sequences,
        max_batch_tokens=max_batch_tokens,
        max_total_tokens=min(longest, num_cached_tokens),
        vocab_size=spec.vocab_size,
    )


def measure_together(group: TensorParallelGroup, device: torch.device, measure: Callable[[torch.device], int]) -> int:
    """This rank's free memory once every rank holds its weights: before, ranks of one machine see what others will
    still take. Called by all ranks together."""
    group.all_max(torch.zeros(1, device=device))
    return measure(device)


def agree_on_sizes(
    sizes: EngineSizes, free_bytes: int, group: TensorParallelGroup, device: torch.device, *, asked: bool
) -> EngineSizes:
    """The sizes that fit every rank: every block is a block of each. Called by all ranks together.

    Unless the size of the cache was `asked` for, one rank with much less memory than the others raises ConfigError, on
    every rank: it would cost the others what they have more.
    """
    own = torch.tensor([[sizes.num_blocks], [free_bytes], [sizes.max_total_tokens]], device=device)
    num_blocks, free, longest = (list(map(int, row)) for row in group.all_gather(own))
    poorest = free.index(min(free))
    others = free[:poorest] + free[poorest + 1 :]
    usual = median_low(others) if others else 0
    if not asked and free[poorest] < _MIN_SHARE * usual:
        raise ConfigError(
            f"rank {poorest} of {len(free)} has {_mib(free[poorest])} free for its KV cache, the others {_mib(usual)}, "
            f"of which they could use no more than it has; free memory on rank {poorest}'s device, or say by "
            f"--max-batch-total-tokens how large the cache is to be"
        )
    return replace(sizes, num_blocks=min(num_blocks), max_total_tokens=min(longest))


def _batch(config: EngineConfig, on_cpu: bool) -> tuple[int, int]:
    """Sequences running at once, and tokens computed in one step. A default gives way to what was asked for."""
    size, tokens = config.max_batch_size, config.max_batch_prefill_tokens
    if tokens and size > tokens:
        raise ConfigError(
            f"--max-batch-size {size} is more than --max-batch-prefill-tokens {tokens}: every running sequence takes a "
            "token of each step; lower the one or raise the other"
        )
    tokens = tokens or max(512 if on_cpu else 8192, size)
    return size or min(64 if on_cpu else 256, tokens), tokens


def _longest(config: EngineConfig, spec: ModelSpec, on_cpu: bool) -> int:
    asked, context = config.max_total_tokens, spec.max_position_embeddings
    if asked > context:
        raise ConfigError(
            f"--max-total-tokens {asked} is more than the model's context of {context} tokens; lower it or leave it out"
        )
    if asked == 1:
        raise ConfigError("--max-total-tokens 1: a sequence has a prompt and an answer; give at least 2")
    return asked or (min(context, _MAX_TOTAL_TOKENS_ON_CPU) if on_cpu else context)


def _num_blocks(config: EngineConfig, useful: int, block_bytes: int, free_bytes: int) -> int:
    asked = -(-config.max_batch_total_tokens // config.block_size)
    if asked * block_bytes > free_bytes:
        raise ConfigError(
            f"--max-batch-total-tokens {config.max_batch_total_tokens}: a KV cache of that many tokens takes "
            f"{_mib(asked * block_bytes)}, {_mib(free_bytes)} are free; lower it, or give the process more memory"
        )
    num_blocks = asked or min(useful, int(free_bytes * config.kv_cache_memory_fraction) // block_bytes)
    if num_blocks < 1:
        raise ConfigError(
            f"no room for a KV cache: one block of {config.block_size} tokens takes {_mib(block_bytes)}, and "
            f"{_mib(free_bytes)} are free, of which it gets {config.kv_cache_memory_fraction:g}; give the process more "
            "memory, or raise --kv-cache-memory-fraction"
        )
    return num_blocks


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
