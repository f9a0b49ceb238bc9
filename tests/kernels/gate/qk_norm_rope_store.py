"""What lies between QKV projection and attention is compiled for, by families of models."""

from __future__ import annotations

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.qk_norm_rope_store import _triton


def variants() -> list[Variant]:
    return [
        variant("llama-8b", 32, 8, 128, 128),
        variant("llama-8b-fp8", 32, 8, 128, 128, kv="fp8e4nv"),
        variant("smollm2", 9, 3, 64, 64),
        variant("qwen3-normed", 32, 8, 128, 128, normed=True),
        variant("gemma-normed", 8, 4, 256, 256, normed=True),
        variant("phi-partial", 32, 32, 80, 32),
        variant("gpt-j", 16, 16, 256, 64, interleaved=True),
        variant("falcon", 71, 1, 64, 64),
        variant("no-rotation", 16, 16, 96, 0),
    ]


def variant(
    name: str,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    *,
    kv: str = "bf16",
    normed: bool = False,
    interleaved: bool = False,
) -> Variant:
    tile = _triton.config(num_heads, head_dim, rotary_dim)
    types: dict[str, str] = {
        "qkv": "*bf16",
        "slot_mapping": "*i64",
        "key": f"*{kv}",
        "value": f"*{kv}",
        "q_out": "*bf16",
    }
    if rotary_dim:
        types["cos_sin"] = "*fp32"
    if normed:
        types |= {"q_norm": "*bf16", "k_norm": "*bf16"}
    constants: dict[str, object] = dict.fromkeys({"cos_sin", "q_norm", "k_norm"} - set(types))
    constants |= {"NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim, "ROTARY_DIM": rotary_dim}
    constants |= {"INTERLEAVED": interleaved, "SATURATE": kv == "fp8e4nv", "BLOCK_D": tile.block_d}
    constants |= {"HEADS": tile.heads, "HALF": tile.half, "REST": tile.rest}
    numbers = {"num_slots": "i32", "block_size": "i32", "eps": "fp32", "key_scale": "fp32", "value_scale": "fp32"}
    return Variant(
        name,
        _triton.qk_norm_rope_store_kernel,
        types | numbers | dict.fromkeys(constants, "constexpr"),
        constants,
        num_warps=tile.num_warps,
        aligned=(*types, "block_size"),
    )
