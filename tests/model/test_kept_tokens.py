"""The last layer computes only what somebody wants of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import random_model, save, stored_tensors
from tests.support.paged import BlockTables, poisoned_blocks
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.layers.batch import KeptTokens
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.parallel.group import TensorParallelGroup

ROWS = [(0, 5, 5), (1, 9, 9), (2, 1, 1)]
"""(sequence, query length, sequence length)."""


@pytest.mark.parametrize("kept_per_row", [(0, 2, 1), (5, 0, 0), (0, 0, 0), (5, 9, 1)])
@torch.inference_mode()
def test_kept_tokens_have_the_states_they_have_among_all(
    backends: dict[str, Backend], kept_per_row: tuple[int, ...], tmp_path: Path
) -> None:
    spec = read_spec(save(random_model("mistral", sliding_window=4), tmp_path))
    ends = torch.tensor([length for _, length, _ in ROWS]).cumsum(0).tolist()
    wanted = [range(end - count, end) for end, count in zip(ends, kept_per_row, strict=True)]
    tokens = torch.tensor([token for part in wanted for token in part], dtype=torch.int64)
    kept = KeptTokens(tokens, torch.tensor([0, *kept_per_row]).cumsum(0).to(torch.int32))
    ids = torch.arange(ends[-1]) % spec.vocab_size
    for backend in backends.values():
        decoder = load_weights(spec, stored_tensors(tmp_path), torch.float32, TensorParallelGroup(), backend)
        batch, positions = BlockTables(16, 4).batch(ROWS)
        caches = [
            [poisoned_blocks(16, decoder.num_kv_heads, 4, spec.head_dim) for _ in range(spec.num_layers)]
            for _ in range(2)
        ]
        everything = decoder.forward(ids, positions, batch, caches[0])
        some = decoder.forward(ids, positions, batch, caches[1], kept)
        torch.testing.assert_close(some, everything[tokens], atol=1e-5, rtol=1e-5)
        for all_kv, some_kv in zip(*caches, strict=True):
            assert torch.equal(all_kv.key.nan_to_num(7), some_kv.key.nan_to_num(7))
            assert torch.equal(all_kv.value.nan_to_num(7), some_kv.value.nan_to_num(7))
