"""Arithmetic of what one rank's steps say of all ranks."""

from __future__ import annotations

import pytest

from bench.engine_shapes import SHAPES
from bench.projection import all_reduce_s, projected


def test_larger_messages_take_longer() -> None:
    sizes = [0, 1 << 10, 1 << 19, 700_000, 1 << 20, 3 << 20, 1 << 22, 1 << 24]
    times = [all_reduce_s(size) for size in sizes]
    assert times == sorted(times)
    assert times[2] == pytest.approx(10e-6)
    assert all_reduce_s(1 << 24) == pytest.approx(4 * all_reduce_s(1 << 22))


def test_a_step_of_all_is_a_ranks_and_its_exchanges() -> None:
    row = {"kind": "decode", "batch": 32, "step_ms": 8.4}
    found = projected(row, num_layers=80, hidden_size=8192)
    assert found["all_reduce_ms"] == pytest.approx(160 * 1e3 * all_reduce_s(32 * 8192 * 2))
    assert found["tokens_per_s"] == pytest.approx(32 / (8.4e-3 + 1e-3 * found["all_reduce_ms"]))


def test_an_eighth_of_the_model_is_one() -> None:
    shape = SHAPES["llama-3.1-70b-of-8"]
    widths = (
        shape["num_attention_heads"],
        shape["num_key_value_heads"],
        shape["intermediate_size"],
        shape["vocab_size"],
    )
    assert [8 * width for width in widths] == [64, 8, 28672, 128256]
