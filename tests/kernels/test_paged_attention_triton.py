"""The Triton kernels, interpreted, against the reference. Few programs and small tiles: the interpreter is slow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.attention import Case, Heads, attend
from tests.support.paged import UNUSED_BLOCK_ID
from tests.support.triton_device import TRITON
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.paged_attention import AttentionOptions, _triton, reference
from tokenwire_service.kernels.paged_attention._config import LaunchConfig, Sizes, launch_config
from tokenwire_service.layers.batch import AttentionBatch

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton.*")
"""The interpreter takes loop bounds from arrays."""

MIXED = ((1, 1), (3, 3), (1, 33), (9, 40))
"""(query length, sequence length): first token, prefill, decode, chunk."""

REFERENCE = Backend(torch.device("cpu"))

DECODE = LaunchConfig(16, 8, 16, splits=4, min_split=16, one_loop=True, num_warps=4, num_stages=1)
PREFILL = LaunchConfig(16, 8, 16, splits=1, min_split=16, one_loop=False, num_warps=4, num_stages=1)
"""Small tiles for two query heads a KV head."""


def run(case: Case, options: AttentionOptions, config: LaunchConfig | None = None) -> Tensor:
    return _triton.paged_attention(case.q, case.kv.key, case.kv.value, *tensors(case.batch), options, config)


def tensors(batch: AttentionBatch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.query_start_loc, batch.seq_lens, batch.block_tables


def options_with(names: str, num_heads: int = 4) -> AttentionOptions:
    torch.manual_seed(7)
    slopes, sinks = torch.rand(num_heads), torch.randn(num_heads) * 2
    return AttentionOptions(
        0.2,
        window=20 if "window" in names else None,
        softcap=20.0 if "softcap" in names else None,
        alibi_slopes=slopes if "alibi" in names else None,
        sinks=sinks if "sinks" in names else None,
    )


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN: an output that was not written shows, a partial result that was not, too."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *size, **kwargs: empty(*size, **kwargs).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda like, **kwargs: empty_like(like, **kwargs).fill_(float("nan")))


@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size"),
    [((3, 3), 64, 16), ((9, 3), 80, 32), ((4, 1), 96, 16), ((8, 1), 128, 64), ((4, 2), 256, 128), ((14, 2), 20, 5)],
)
def test_heads_and_dimensions(heads: Heads, head_dim: int, block_size: int) -> None:
    case = Case(heads, head_dim, block_size, MIXED)
    options = AttentionOptions(head_dim**-0.5)
    config = replace(PREFILL, block_q=16 // (heads[0] // heads[1]), block_n=32)
    torch.testing.assert_close(run(case, options, config), case.run(options, REFERENCE), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize(("rows", "block_size"), [(((1, 37), (1, 5)), 16), (((20, 37),), 64), (MIXED, 32)])
def test_what_the_table_chooses(rows: tuple[tuple[int, int], ...], block_size: int) -> None:
    case = Case((8, 1), 64, block_size, rows)
    options = AttentionOptions(0.125)
    torch.testing.assert_close(case.run(options, TRITON), case.run(options, REFERENCE), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("one_loop", [True, False])
def test_lengths_around_the_borders_of_blocks_and_tiles(block_size: int, one_loop: bool) -> None:
    lengths = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65)
    case = Case((2, 1), 16, block_size, tuple((min(length, 1 + length % 3), length) for length in lengths))
    options = AttentionOptions(0.25)
    config = replace(PREFILL, block_n=32, one_loop=one_loop)
    torch.testing.assert_close(run(case, options, config), case.run(options, REFERENCE), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("tokens", [15, 16, 17, 33])
def test_prompts_around_the_borders_of_tiles(tokens: int) -> None:
    case = Case((2, 1), 16, 16, ((tokens, tokens), (2, 2), (tokens, tokens + 21)))
    options = AttentionOptions(0.25)
    torch.testing.assert_close(run(case, options, PREFILL), case.run(options, REFERENCE), atol=2e-6, rtol=1e-5)


EVERYTHING = "window softcap alibi sinks"


@pytest.mark.parametrize(
    ("names", "config"),
    [
        *((names, DECODE) for names in ("window", "softcap", "alibi", "sinks", EVERYTHING)),
        *((names, PREFILL) for names in ("window", "softcap", "alibi", "window sinks", EVERYTHING)),
        (EVERYTHING, replace(PREFILL, splits=2)),
    ],
)
def test_options(poisoned_memory: None, names: str, config: LaunchConfig) -> None:
    case = Case((4, 2), 32, 16, ((1, 50), (3, 3), (11, 70)))
    options = options_with(names)
    torch.testing.assert_close(run(case, options, config).double(), case.expected(options), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("splits", "min_split"), [(1, 16), (2, 16), (4, 32), (8, 16), (4, 64)])
def test_splits_with_and_without_keys(poisoned_memory: None, splits: int, min_split: int) -> None:
    case = Case((2, 1), 32, 16, ((1, 1), (1, 17), (2, 70), (1, 130)))
    options = AttentionOptions(0.2)
    config = replace(DECODE, splits=splits, min_split=min_split)
    torch.testing.assert_close(run(case, options, config), case.run(options, REFERENCE), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_float16(kv_dtype: torch.dtype) -> None:
    case = Case((4, 2), 64, 16, MIXED, dtype=torch.float16, kv_dtype=kv_dtype)
    scale = 1.5 if kv_dtype == torch.float8_e4m3fn else 1.0
    options = AttentionOptions(0.125, key_scale=scale, value_scale=scale)
    for config in (None, DECODE):
        torch.testing.assert_close(run(case, options, config).double(), case.expected(options), atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_bfloat16(exact_bf16: None, kv_dtype: torch.dtype) -> None:
    case = Case((4, 2), 64, 16, MIXED, dtype=torch.bfloat16, kv_dtype=kv_dtype)
    scale = 0.75 if kv_dtype == torch.float8_e4m3fn else 1.0
    options = AttentionOptions(0.125, key_scale=scale, value_scale=scale)
    for config in (None, DECODE):
        torch.testing.assert_close(run(case, options, config).double(), case.expected(options), atol=2e-2, rtol=2e-2)


def test_float8_in_one_block_a_tile(exact_bf16: None) -> None:
    case = Case((2, 1), 128, 32, ((1, 70),), kv_dtype=torch.float8_e4m3fn)
    options = AttentionOptions(0.1, sinks=torch.randn(2), key_scale=0.5, value_scale=3.0)
    torch.testing.assert_close(run(case, options, DECODE).double(), case.expected(options), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [DECODE, replace(DECODE, block_q=1), PREFILL], ids=["verify", "decode", "prefill"])
def test_padding_of_a_graph_is_harmless(poisoned_memory: None, config: LaunchConfig) -> None:
    case = Case((4, 2), 32, 16, ((1, 40), (2, 5)))
    options = options_with("window sinks")
    expected = case.run(options, REFERENCE)
    start, lengths, tables = tensors(case.batch)
    # Two rows without queries, one of them with a length that no block holds, and four tokens of no row.
    start = torch.cat((start, start[-1:].expand(2)))
    lengths = torch.cat((lengths, torch.tensor([0, 77], dtype=torch.int32)))
    tables = torch.cat((tables, torch.full_like(tables, UNUSED_BLOCK_ID)))
    q = torch.cat((case.q, torch.full((4, 4, 32), float("nan"))))
    out = _triton.paged_attention(q, case.kv.key, case.kv.value, start, lengths, tables, options, config)
    torch.testing.assert_close(out[:3], expected, atol=2e-6, rtol=1e-5)
    assert out[3:].isnan().all()


@pytest.mark.parametrize("config", [DECODE, PREFILL], ids=["split", "whole"])
def test_a_query_of_an_empty_sequence_gets_zeros(poisoned_memory: None, config: LaunchConfig) -> None:
    case = Case((2, 1), 16, 16, ((1, 20), (1, 1)))
    case.batch.seq_lens[1] = 0
    case.batch.block_tables[1] = UNUSED_BLOCK_ID
    out = run(case, AttentionOptions(0.25), config)
    assert out[0].isfinite().all()
    assert out[1].eq(0).all()


@pytest.mark.parametrize(("block_size", "block_n"), [(16, 16), (16, 32), (32, 16), (8, 32)])
def test_blocks_before_the_window_may_be_gone(block_size: int, block_n: int) -> None:
    case = Case((2, 1), 16, block_size, ((1, 90), (12, 80)))
    options = AttentionOptions(0.25, window=21)
    expected = case.run(options, REFERENCE)
    for row, (query_len, length) in enumerate(((1, 90), (12, 80))):
        gone = (length - query_len - 21 + 1) // block_size
        assert gone > 0
        case.kv.key[case.batch.block_tables[row, :gone].long()] = float("nan")
        case.kv.value[case.batch.block_tables[row, :gone].long()] = float("nan")
        case.batch.block_tables[row, :gone] = UNUSED_BLOCK_ID
    for config in (DECODE, PREFILL):
        got = run(case, options, replace(config, block_n=block_n))
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("config", [DECODE, PREFILL], ids=["split", "whole"])
def test_nan_in_a_visible_key_is_not_hidden(config: LaunchConfig) -> None:
    case = Case((4, 2), 16, 16, ((1, 40),))
    case.kv.key[int(case.batch.block_tables[0, 0]), 0, 1] = float("nan")
    out = run(case, AttentionOptions(0.25), config)
    assert out[0, :2].isnan().all()
    assert out[0, 2:].isfinite().all()


@pytest.mark.parametrize("config", [DECODE, PREFILL], ids=["split", "whole"])
def test_large_scores_neither_overflow_nor_vanish(config: LaunchConfig) -> None:
    case = Case((4, 2), 64, 16, ((3, 40), (1, 70)))
    options = AttentionOptions(40.0)
    torch.testing.assert_close(run(case, options, config).double(), case.expected(options), atol=2e-3, rtol=1e-3)


def test_a_row_is_the_same_bit_by_bit_whoever_is_beside_it() -> None:
    one = Case((4, 2), 32, 16, ((1, 70), (1, 5), (1, 33)), seed=1)
    other = Case((4, 2), 32, 16, ((1, 2), (1, 70), (1, 40)), seed=2)
    other.q[1] = one.q[0]
    for mine, theirs in ((one.kv.key, other.kv.key), (one.kv.value, other.kv.value)):
        theirs[other.batch.block_tables[1, :5].long()] = mine[one.batch.block_tables[0, :5].long()]
    options = options_with("sinks")
    assert torch.equal(run(one, options)[0], run(other, options)[1])


def test_more_sequences_than_are_looked_at_together() -> None:
    rows = tuple((1, 20) if row in (0, 127, 128, 130) else (0, 4) for row in range(131))
    case = Case((4, 1), 16, 16, rows)
    options = AttentionOptions(0.25)
    torch.testing.assert_close(case.run(options, TRITON), case.run(options, REFERENCE), atol=2e-6, rtol=1e-5)


def test_nothing_to_do() -> None:
    case = Case((4, 2), 16, 16, ((0, 4),))
    assert run(case, AttentionOptions(0.25)).shape == (0, 4, 16)
    assert reference.paged_attention(
        case.q, case.kv.key, case.kv.value, *tensors(case.batch), AttentionOptions(0.25)
    ).shape == (0, 4, 16)


def test_wrong_layouts_are_refused_before_the_launch() -> None:
    case = Case((4, 2), 16, 16, ((1, 6),))
    with pytest.raises(ValueError, match="q must be contiguous"):
        attend(case.q[..., :8], case.kv, case.batch, AttentionOptions(0.25), TRITON)
    with pytest.raises(ValueError, match="sinks"):
        case.run(AttentionOptions(0.25, sinks=torch.zeros(2)), TRITON)


def sizes(seqs: int, tokens: int, heads: Heads, head_dim: int = 128, max_len: int = 8192, size: int = 2) -> Sizes:
    return Sizes(seqs * tokens, seqs, *heads, head_dim, 64, max_len // 64, size, size)


@pytest.mark.parametrize("heads", [(32, 8), (9, 3), (8, 8), (71, 1), (128, 1)])
@pytest.mark.parametrize("seqs", [1, 3, 32, 256])
@pytest.mark.parametrize("tokens", [1, 2, 5, 40, 4096])
@pytest.mark.parametrize("size", [2, 4])
def test_the_table_fits_all_sizes(heads: Heads, seqs: int, tokens: int, size: int) -> None:
    for head_dim, max_len in ((64, 64), (256, 131072)):
        shape = sizes(seqs, tokens, heads, head_dim, max_len, size)
        config = launch_config(shape)
        assert 1 <= config.block_q * shape.group <= config.block_m
        assert config.splits in (1, 2, 4, 8, 16, 32)
        assert config.splits * config.min_split < 2 * max(max_len, config.min_split)
        assert config.min_split % config.block_n == 0
        assert config.num_tiles(shape) >= shape.num_tokens / config.block_q


def test_the_table_fills_the_machine_and_uses_its_matrix_units() -> None:
    alone = launch_config(sizes(1, 1, (32, 8)))
    assert alone.num_tiles(sizes(1, 1, (32, 8))) * 8 * alone.splits >= 132
    assert launch_config(sizes(64, 1, (32, 8), max_len=4096)).splits == 1
    assert launch_config(sizes(64, 1, (32, 8), max_len=65536)).splits == 16
    assert launch_config(sizes(64, 4, (32, 8))).block_m == 16
    assert launch_config(sizes(1, 128, (32, 8), max_len=32768)).splits == 2
    assert launch_config(sizes(1, 256, (32, 8))).block_m == 64
    assert launch_config(sizes(2, 4096, (32, 8))).block_m == 128


def test_too_many_query_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 128"):
        launch_config(sizes(1, 1, (129, 1)))
