from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.paged import BlockTables, poisoned_blocks
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.paged_attention import AttentionOptions, paged_attention
from tokenwire_service.layers.batch import AttentionBatch, LayerKV

RAGGED = ((1, 1), (5, 5), (1, 70), (70, 200), (33, 90), (1, 257))
"""(query length, sequence length): first token, prefill, decode, chunks, decode."""

Heads = tuple[int, int]


class Case:
    """A batch over poisoned blocks, and the contiguous keys and values it stands for."""

    def __init__(
        self, heads: Heads, head_dim: int, block_size: int, rows: tuple[tuple[int, int], ...], seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        num_heads, num_kv_heads = heads
        num_blocks = sum(-(-length // block_size) for _, length in rows) + 2
        self.kv = poisoned_blocks(num_blocks, num_kv_heads, block_size, head_dim)
        self.batch, _ = BlockTables(num_blocks, block_size, seed).batch([(i, *row) for i, row in enumerate(rows)])
        self.q = torch.randn(sum(query_len for query_len, _ in rows), num_heads, head_dim)
        self.keys = [torch.randn(num_kv_heads, length, head_dim) for _, length in rows]
        self.values = [torch.randn(num_kv_heads, length, head_dim) for _, length in rows]
        for table, keys, values in zip(self.batch.block_tables.tolist(), self.keys, self.values, strict=True):
            for at in range(0, keys.shape[1], block_size):
                used = min(block_size, keys.shape[1] - at)
                self.kv.key[table[at // block_size], :, :used] = keys[:, at : at + used]
                self.kv.value[table[at // block_size], :, :used] = values[:, at : at + used]

    def run(self, options: AttentionOptions, backend: Backend) -> Tensor:
        return attend(self.q, self.kv, self.batch, options, backend)

    def expected(self, options: AttentionOptions) -> Tensor:
        """In float64, query by query."""
        out = torch.empty_like(self.q, dtype=torch.float64)
        bounds = self.batch.query_start_loc.tolist()
        for row, length in enumerate(self.batch.seq_lens.tolist()):
            for token in range(bounds[row], bounds[row + 1]):
                position = length - (bounds[row + 1] - token)
                out[token] = one_query(
                    self.q[token].double(), self.keys[row].double(), self.values[row].double(), position, options
                )
        return out


def one_query(q: Tensor, keys: Tensor, values: Tensor, position: int, options: AttentionOptions) -> Tensor:
    """q [H, D] at `position` over keys and values [K, L, D]."""
    first = 0 if options.window is None else max(0, position - options.window + 1)
    group = q.shape[0] // keys.shape[0]
    seen_keys = keys[:, first : position + 1].repeat_interleave(group, dim=0)
    seen_values = values[:, first : position + 1].repeat_interleave(group, dim=0)
    scores = torch.einsum("hd,hld->hl", q, seen_keys) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    return torch.einsum("hl,hld->hd", scores.softmax(dim=-1), seen_values)


def attend(q: Tensor, kv: LayerKV, batch: AttentionBatch, options: AttentionOptions, backend: Backend) -> Tensor:
    return paged_attention(
        q,
        kv.key,
        kv.value,
        batch.query_start_loc,
        batch.seq_lens,
        batch.block_tables,
        options=options,
        backend=backend,
    )


@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (8, 1), (14, 2)], ids=["gqa", "mha", "mqa", "gqa7"])
@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 16), (80, 32), (96, 5), (128, 16), (20, 1), (16, 64)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, None), (100, 30.0)])
def test_native_matches_the_reference(
    backends: dict[str, Backend],
    heads: Heads,
    head_dim: int,
    block_size: int,
    window: int | None,
    softcap: float | None,
) -> None:
    case = Case(heads, head_dim, block_size, RAGGED)
    options = AttentionOptions(head_dim**-0.5, window, softcap)
    expected = case.run(options, backends["reference"])
    for backend in backends.values():
        torch.testing.assert_close(case.run(options, backend), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, 20.0)])
def test_every_backend_matches_attention_one_query_at_a_time(
    backends: dict[str, Backend], window: int | None, softcap: float | None
) -> None:
    case = Case((6, 2), 32, 8, ((1, 1), (9, 9), (1, 40), (11, 37)))
    options = AttentionOptions(0.3, window, softcap)
    for backend in backends.values():
        torch.testing.assert_close(
            case.run(options, backend).double(), case.expected(options), atol=2e-5, rtol=1e-5, check_dtype=False
        )


@pytest.mark.parametrize("window", [None, 1500])
def test_long_contexts_are_cut_into_spans_and_merged(backends: dict[str, Backend], window: int | None) -> None:
    case = Case((9, 3), 64, 16, ((1, 3000), (2, 2049), (300, 3000), (1, 1024), (1, 1025)))
    options = AttentionOptions(0.125, window)
    expected = case.run(options, backends["reference"])
    for backend in backends.values():
        torch.testing.assert_close(case.run(options, backend), expected, atol=1e-5, rtol=1e-5)


def test_a_decode_does_not_depend_on_its_neighbours(backends: dict[str, Backend]) -> None:
    options = AttentionOptions(0.125)
    case = Case((9, 3), 64, 16, ((1, 2500), (40, 40), (1, 70)))
    batch = case.batch
    alone = AttentionBatch(
        torch.tensor([0, 1], dtype=torch.int32),
        batch.seq_lens[:1],
        batch.block_tables[:1].contiguous(),
        batch.slot_mapping[:1],
        1,
        2500,
    )
    for backend in backends.values():
        together = case.run(options, backend)[:1]
        assert torch.equal(attend(case.q[:1], case.kv, alone, options, backend), together)


def test_large_scores_neither_overflow_nor_vanish(backends: dict[str, Backend]) -> None:
    case = Case((4, 2), 64, 16, ((3, 90), (1, 200)))
    options = AttentionOptions(40.0)
    for backend in backends.values():
        torch.testing.assert_close(
            case.run(options, backend).double(), case.expected(options), atol=2e-3, rtol=1e-3, check_dtype=False
        )


def test_a_row_without_queries_is_allowed(backends: dict[str, Backend]) -> None:
    case = Case((4, 2), 16, 4, ((2, 2), (0, 5), (1, 9)))
    options = AttentionOptions(0.25)
    for backend in backends.values():
        torch.testing.assert_close(
            case.run(options, backend).double(), case.expected(options), atol=1e-5, rtol=1e-5, check_dtype=False
        )


def test_nan_in_a_visible_key_is_not_hidden(backends: dict[str, Backend]) -> None:
    case = Case((2, 2), 16, 4, ((1, 6),))
    block = int(case.batch.block_tables[0, 0])
    case.kv.key[block, 0, 1] = float("nan")
    for backend in backends.values():
        out = case.run(AttentionOptions(0.25), backend)
        assert out[0, 0].isnan().all()
        assert out[0, 1].isfinite().all()


def test_block_ids_and_lengths_out_of_range_are_refused(backends: dict[str, Backend]) -> None:
    case = Case((2, 2), 16, 4, ((1, 6), (1, 3)))
    case.batch.block_tables[1, 0] = case.kv.key.shape[0]
    for backend in backends.values():
        with pytest.raises(IndexError):
            case.run(AttentionOptions(0.25), backend)


def test_wrong_layouts_are_refused(backends: dict[str, Backend]) -> None:
    case = Case((4, 2), 16, 4, ((1, 6),))
    options, backend = AttentionOptions(0.25), backends["reference"]
    with pytest.raises(ValueError, match="key and value must be contiguous"):
        attend(case.q, LayerKV(case.kv.key.transpose(1, 2), case.kv.value), case.batch, options, backend)
    with pytest.raises(ValueError, match="q must be contiguous"):
        attend(case.q[..., :8], case.kv, case.batch, options, backend)
    with pytest.raises(ValueError, match="q must be contiguous"):
        attend(case.q[:, :3].contiguous(), case.kv, case.batch, options, backend)
    with pytest.raises(ValueError, match="int32"):
        paged_attention(
            case.q,
            case.kv.key,
            case.kv.value,
            case.batch.query_start_loc.long(),
            case.batch.seq_lens,
            case.batch.block_tables,
            options=options,
            backend=backend,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 32), (80, 5), (20, 16)])
def test_narrow_keys_and_values(
    backends: dict[str, Backend], dtype: torch.dtype, head_dim: int, block_size: int
) -> None:
    case = Case((6, 2), head_dim, block_size, RAGGED)
    case.kv = LayerKV(case.kv.key.to(dtype), case.kv.value.to(dtype))
    case.keys, case.values = ([t.to(dtype).float() for t in tensors] for tensors in (case.keys, case.values))
    options = AttentionOptions(scale=head_dim**-0.5)
    expected = case.expected(options)
    for backend in backends.values():
        torch.testing.assert_close(case.run(options, backend).double(), expected, atol=2e-5, rtol=1e-4)
