"""Tiny GGUF files written by gguf-py from real transformers models, the way llama.cpp's converter would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
}


def llama_cpp_rows(weights: torch.Tensor, num_heads: int) -> torch.Tensor:
    """convert_hf_to_gguf's permutation of Q and K rows for interleaved rotary embedding."""
    rows = weights.reshape(num_heads, 2, weights.shape[0] // num_heads // 2, *weights.shape[1:])
    return rows.swapaxes(1, 2).reshape(weights.shape)


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{kind}"


def byte_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, token types and merges of a byte-level vocabulary with a few words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ t", "1 2", "12 3", "Ġ 1", "Ċ Ċ"]
    words = [merge.replace(" ", "") for merge in merges]
    tokens = ["<|end|>", "<|im_start|>", "<|im_end|>", *letters, *words, "<think>"]
    types = [3, 3, 3, *[1] * (len(tokens) - 4), 4]
    padding = SIZES["vocab_size"] - len(tokens)
    return tokens + [f"[PAD{i}]" for i in range(padding)], types + [5] * padding, merges


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """write(architecture, state_dict, heads to permute, more metadata) → path of the file."""

    def write(
        architecture: str,
        state: dict[str, torch.Tensor],
        *,
        permute: bool,
        metadata: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
        dtype: type = np.float32,
        head_dim: int = 16,
    ) -> Path:
        path = tmp_path / f"{architecture}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_context_length(128)
        writer.add_embedding_length(64)
        writer.add_block_count(2)
        writer.add_feed_forward_length(96)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10_000.0)
        writer.add_vocab_size(300)
        writer.add_key_length(head_dim)
        tokens, types, merges = byte_vocabulary()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        metadata(writer)
        for name, tensor in state.items():
            if permute and ".q_proj." in name:
                tensor = llama_cpp_rows(tensor, 4)
            if permute and ".k_proj." in name:
                tensor = llama_cpp_rows(tensor, 2)
            plain = np.float32 if tensor.ndim == 1 else dtype
            writer.add_tensor(gguf_name(name), tensor.numpy().astype(plain))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """make(model type, tied, **config) → a transformers model with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(model_type: str, *, tied: bool = False, **config: Any) -> Any:
        torch.manual_seed(7)
        made = AutoConfig.for_model(model_type, **SIZES, tie_word_embeddings=tied, **config)
        return AutoModelForCausalLM.from_config(made).eval()

    return make


@pytest.fixture
def state_of() -> Callable[[Any], dict[str, torch.Tensor]]:
    """The weights of a model, without the head where it is tied."""

    def state(model: Any) -> dict[str, torch.Tensor]:
        tied = model.config.tie_word_embeddings
        return {n: t for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}

    return state
