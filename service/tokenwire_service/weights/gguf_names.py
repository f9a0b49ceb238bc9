"""GGUF tensor names as Hugging Face's, and llama.cpp's row order undone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from tokenwire_service.errors import WeightsError

_OUTSIDE = MappingProxyType(
    {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
)
_INSIDE = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
# Its values are already in the config, as rope_scaling.
_NOT_WEIGHTS = frozenset({"rope_freqs.weight"})
# Architectures whose rotary embedding llama.cpp runs on interleaved pairs, so that its converter reorders Q and K rows.
_INTERLEAVED_ROPE = frozenset({"llama", "smollm3"})


def hf_name(name: str) -> str | None:
    """The Hugging Face name of a GGUF tensor; None for what is no weight. Raises WeightsError for an unknown name."""
    if name in _NOT_WEIGHTS:
        return None
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if (match := _LAYER.fullmatch(name)) and match[2] in _INSIDE:
        return f"model.layers.{match[1]}.{_INSIDE[match[2]]}.{match[3]}"
    raise WeightsError(
        f"GGUF tensor {name[:200]} has no place in this architecture; the file is damaged or unsupported"
    )


class RowOrder:
    """Puts Q and K rows back into Hugging Face's order: within a head, the first of every pair, then the second."""

    def __init__(self, architecture: str, config: Mapping[str, int]) -> None:
        interleaved = architecture in _INTERLEAVED_ROPE
        self._num_heads = {
            "q_proj": config["num_attention_heads"] if interleaved else 0,
            "k_proj": config["num_key_value_heads"] if interleaved else 0,
        }

    def unit(self, name: str, num_rows: int) -> int:
        """How many rows of the tensor `name` (Hugging Face's) are put in order together: a head's; 1 where all are."""
        num_heads = self._num_heads.get(name.rsplit(".", 2)[-2], 0)
        if not num_heads:
            return 1
        if num_rows % (2 * num_heads):
            raise WeightsError(f"{name} has {num_rows} rows, which {num_heads} heads do not divide")
        return num_rows // num_heads

    def restore(self, tensor: Tensor, unit: int) -> Tensor:
        """`tensor` [units · unit, …] in Hugging Face's order."""
        if unit == 1:
            return tensor
        pairs = tensor.reshape(len(tensor) // unit, unit // 2, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)
