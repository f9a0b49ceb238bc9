from __future__ import annotations

from pathlib import Path

import torch

from tests.support.tensor_parallel import run_ranks

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
}


def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    """Repeated KV heads, a vocabulary that needs padding, biases added once, a tied head."""
    tokens = torch.arange(11)
    (alone,) = run_ranks(CONFIG, 1, tokens, tmp_path)
    for logits in run_ranks(CONFIG, 2, tokens, tmp_path):
        assert logits.shape == (11, 31)
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


def test_heads_that_do_not_divide_evenly_are_shared_out_whole(tmp_path: Path) -> None:
    """Three KV heads over two ranks: one holds one of them with its query heads, the other two."""
    config = CONFIG | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4, "hidden_size": 24}
    tokens = torch.arange(11)
    (alone,) = run_ranks(config, 1, tokens, tmp_path)
    for logits in run_ranks(config, 2, tokens, tmp_path):
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
