"""Compile variants of paged attention: one for each line of the config table, and each option where it costs most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.paged_attention import AttentionOptions, _triton
from tokenwire_service.kernels.paged_attention._config import Sizes, launch_config

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float8_e4m3fn: "fp8e4nv"}
PLAIN = AttentionOptions(0.1)
SLOPES = torch.zeros(1)


@dataclass(frozen=True)
class Launch:
    """A call: rows of the batch, tokens of each, heads, and what varies."""

    name: str
    seqs: int
    tokens: int
    heads: tuple[int, int]
    head_dim: int
    block_size: int = 64
    max_len: int = 4096
    options: AttentionOptions = PLAIN
    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype = torch.bfloat16
    wgmma: bool = False

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            num_tokens=self.seqs * self.tokens,
            num_seqs=self.seqs,
            num_heads=self.heads[0],
            num_kv_heads=self.heads[1],
            head_dim=self.head_dim,
            block_size=self.block_size,
            max_blocks=self.max_len // self.block_size,
            q_bytes=self.dtype.itemsize,
            kv_bytes=self.kv_dtype.itemsize,
        )


GEMMA = AttentionOptions(0.1, window=4096, softcap=50.0)
GPT_OSS = AttentionOptions(0.1, window=128, sinks=SLOPES)
BLOOM = AttentionOptions(0.1, alibi_slopes=SLOPES)
FP8 = torch.float8_e4m3fn

LAUNCHES = (
    Launch("decode", 32, 1, (32, 8), 128),
    Launch("decode-split", 1, 1, (32, 8), 128, block_size=16),
    Launch("decode-fp8", 64, 1, (32, 8), 128, kv_dtype=FP8),
    Launch("decode-gqa3-d64", 8, 1, (9, 3), 64, block_size=32),
    Launch("decode-mqa71", 32, 1, (71, 1), 64),
    Launch("decode-d256-softcap", 32, 1, (8, 4), 256, options=GEMMA),
    Launch("decode-sinks", 32, 1, (64, 8), 64, options=GPT_OSS),
    Launch("decode-fp32", 4, 1, (9, 3), 64, block_size=32, dtype=torch.float32, kv_dtype=torch.float32),
    Launch("verify", 16, 4, (32, 8), 128),
    Launch("prefill64-d64", 4, 64, (9, 3), 64, block_size=32, wgmma=True),
    Launch("prefill64-d128", 4, 64, (32, 8), 128, wgmma=True),
    Launch("prefill64-d96", 4, 64, (32, 32), 96, block_size=16, wgmma=True),
    Launch("prefill128-d64-sinks", 4, 2048, (64, 8), 64, options=GPT_OSS, wgmma=True),
    Launch("prefill128-d128", 1, 4096, (32, 8), 128, wgmma=True),
    Launch("prefill128-d128-gather", 1, 4096, (32, 8), 128, block_size=16, wgmma=True),
    Launch("prefill128-d128-alibi", 2, 4096, (32, 32), 128, options=BLOOM, wgmma=True),
    Launch("prefill128-d128-fp8", 1, 4096, (32, 8), 128, kv_dtype=FP8, wgmma=True),
    Launch("prefill128-d80", 1, 4096, (32, 32), 80, wgmma=True),
    Launch("prefill128-d256-softcap", 1, 4096, (8, 4), 256, options=GEMMA, wgmma=True),
    Launch("prefill64-d256-fp8", 1, 4096, (8, 4), 256, kv_dtype=FP8, wgmma=True),
    Launch("prefill-fp32-d128", 1, 256, (32, 8), 128, dtype=torch.float32, kv_dtype=torch.float32),
)


def variants() -> list[Variant]:
    return [_attention(launch) for launch in LAUNCHES] + [_merge("merge", 1, (32, 8), 128, sinks=True)]


def _attention(launch: Launch) -> Variant:
    sizes, options = launch.sizes, launch.options
    config = launch_config(sizes)
    constants: dict[str, object] = dict(_triton.attention_constants(sizes, options, config))
    kv, split = f"*{TYPES[launch.kv_dtype]}", config.splits > 1
    signature = {
        "q": f"*{TYPES[launch.dtype]}",
        "key": kv,
        "value": kv,
        "query_start_loc": "*i32",
        "seq_lens": "*i32",
        "block_tables": "*i32",
        "alibi_slopes": "*fp32" if options.alibi_slopes is not None else "constexpr",
        "sinks": "*fp32" if options.sinks is not None else "constexpr",
        "out": f"*{TYPES[launch.dtype]}",
        **dict.fromkeys(("partial", "partial_top", "partial_total"), "*fp32" if split else "constexpr"),
        "num_seqs": "i32",
        "table_width": "i32",
        "score_scale": "fp32",
        "value_scale": "fp32",
        **dict.fromkeys(constants, "constexpr"),
    }
    return Variant(
        launch.name,
        _triton.paged_attention_kernel,
        signature,
        {**{name: None for name, kind in signature.items() if kind == "constexpr"}, **constants},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        wgmma=launch.wgmma,
        aligned=tuple(name for name, kind in signature.items() if kind.startswith("*")),
    )


def _merge(name: str, seqs: int, heads: tuple[int, int], head_dim: int, *, sinks: bool) -> Variant:
    sizes = Launch(name, seqs, 1, heads, head_dim).sizes
    config = launch_config(sizes)
    constants: dict[str, object] = dict(_triton.merge_constants(sizes, config))
    signature = {
        **dict.fromkeys(("partial", "partial_top", "partial_total"), "*fp32"),
        "sinks": "*fp32" if sinks else "constexpr",
        "query_start_loc": "*i32",
        "out": "*bf16",
        "num_seqs": "i32",
        "value_scale": "fp32",
        **dict.fromkeys(constants, "constexpr"),
    }
    return Variant(
        name,
        _triton.merge_splits_kernel,
        signature,
        constants if sinks else {"sinks": None, **constants},
        num_warps=_triton.merge_warps(sizes, config),
        aligned=tuple(name for name, kind in signature.items() if kind.startswith("*")),
    )
