from __future__ import annotations

import pytest
import torch

from tests.support.attention import Case, Heads, attend
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.paged_attention import AttentionOptions, paged_attention
from tokenwire_service.layers.batch import LayerKV

RAGGED = ((1, 1), (5, 5), (1, 70), (70, 200), (33, 90), (1, 257), (1, 385))
"""(query length, sequence length): first token, prefill, decode, chunks, decode."""


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
    for backend in backends.values():
        together = case.run(options, backend)[:1]
        assert torch.equal(case.run_first_alone(options, backend), together)


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
        if dtype is torch.bfloat16 and backend.library is not None and backend.library.has_bf16_products:
            continue  # test_bf16_products.py
        torch.testing.assert_close(case.run(options, backend).double(), expected, atol=2e-5, rtol=1e-4)


def options_with(names: str) -> AttentionOptions:
    """Options for 6 heads; names: any of window, softcap, alibi, sinks."""
    torch.manual_seed(7)
    slopes, sinks = torch.rand(6), torch.randn(6) * 2
    return AttentionOptions(
        0.3,
        window=6 if "window" in names else None,
        softcap=20.0 if "softcap" in names else None,
        alibi_slopes=slopes if "alibi" in names else None,
        sinks=sinks if "sinks" in names else None,
    )


@pytest.mark.parametrize("names", ["alibi", "sinks", "window sinks", "softcap alibi", "window softcap alibi sinks"])
def test_alibi_and_sinks_on_every_backend(backends: dict[str, Backend], names: str) -> None:
    case = Case((6, 2), 32, 8, ((1, 1), (9, 9), (1, 40), (0, 3), (11, 37)))
    options = options_with(names)
    for backend in backends.values():
        torch.testing.assert_close(case.run(options, backend).double(), case.expected(options), atol=2e-5, rtol=1e-5)


def test_blocks_in_float8_are_scaled(backends: dict[str, Backend]) -> None:
    case = Case((6, 2), 32, 8, ((9, 9), (1, 40), (11, 37)), kv_dtype=torch.float8_e4m3fn)
    options = AttentionOptions(0.3, key_scale=0.7, value_scale=1.9)
    for backend in backends.values():
        torch.testing.assert_close(case.run(options, backend).double(), case.expected(options), atol=2e-5, rtol=1e-5)


def test_sinks_are_those_of_gpt_oss(backends: dict[str, Backend]) -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    case = Case((6, 2), 32, 8, ((11, 11),))
    options = options_with("sinks")
    module = torch.nn.Module()
    module.num_key_value_groups, module.sinks = 3, options.sinks
    mask = torch.full((1, 1, 11, 11), float("-inf")).triu(1)
    q = case.q.transpose(0, 1)[None]
    expected, _ = eager_attention_forward(module, q, case.keys[0][None], case.values[0][None], mask, options.scale)
    torch.testing.assert_close(case.run(options, backends["reference"]), expected[0])


def test_slopes_are_those_of_bloom(backends: dict[str, Backend]) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    case = Case((6, 6), 32, 8, ((11, 11),))
    bias = build_alibi_tensor(torch.ones(1, 11), 6, torch.float32)
    options = AttentionOptions(0.3, alibi_slopes=bias[:, 0, 1].contiguous())
    mask = torch.full((11, 11), float("-inf")).triu(1)
    weights = torch.baddbmm(bias, case.q.transpose(0, 1), case.keys[0].transpose(1, 2), alpha=0.3) + mask
    expected = (weights.softmax(dim=-1) @ case.values[0]).transpose(0, 1)
    torch.testing.assert_close(case.run(options, backends["reference"]), expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (AttentionOptions(0.0), "scale"),
        (AttentionOptions(1.0, softcap=0.0), "softcap"),
        (AttentionOptions(1.0, window=0), "window"),
        (AttentionOptions(1.0, sinks=torch.zeros(3)), "sinks"),
        (AttentionOptions(1.0, alibi_slopes=torch.zeros(4).half()), "alibi_slopes"),
        (AttentionOptions(1.0, key_scale=2.0), "float8_e4m3fn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_options_are_refused(backends: dict[str, Backend], options: AttentionOptions, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Case((4, 2), 16, 4, ((1, 6),)).run(options, backends["reference"])
