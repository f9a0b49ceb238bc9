"""A batch in two halves gives what it gives as a whole, and its second half waits for what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.checkpoints import random_model, save, stored_tensors
from tests.support.paged import BlockTables, poisoned_blocks
from tests.support.thread_ranks import on_ranks
from tokenwire_service.kernels.backend import Backend, reference_backend
from tokenwire_service.layers.attention import Attention
from tokenwire_service.layers.batch import KeptTokens
from tokenwire_service.layers.mlp import GatedMLP
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.models.overlap import Overlap
from tokenwire_service.models.passing import split_batch
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.parallel.lanes import HostLane

PROMPTS = [(0, 6, 6), (1, 9, 9)]
STEPS = {
    "within a chunk": [(0, 1, 7), (1, 9, 18), (2, 3, 3)],
    "between two": [(0, 4, 10), (1, 4, 13)],
    "one token each": [(0, 1, 7), (1, 1, 10)],
}
"""(sequence, query length, sequence length) after the prompts."""


NOTHING = KeptTokens(torch.tensor([], dtype=torch.int64), torch.zeros(4, dtype=torch.int32))


def computed(decoder: Decoder, rows: list[tuple[int, int, int]], kept: KeptTokens | None = None) -> Tensor:
    """Hidden states of a step after the prompts, and all keys and values."""
    spec, tables = decoder.spec, BlockTables(32, 4)
    kv = [poisoned_blocks(32, decoder.num_kv_heads, 4, spec.head_dim) for _ in range(spec.num_layers)]
    for step in (PROMPTS, rows):
        batch, positions = tables.batch(step)
        ids = (7 * positions + torch.arange(len(positions))) % spec.vocab_size
        hidden = decoder.forward(ids, positions, batch, kv, kept if step is rows else None)
    stored = [part.nan_to_num(7.0).flatten() for layer in kv for part in (layer.key, layer.value)]
    return torch.cat([hidden.flatten(), *stored])


def halved(decoder: Decoder) -> Decoder:
    return replace(decoder, overlap=Overlap((HostLane(), HostLane()), least_bytes=0))


@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
@torch.inference_mode()
def test_halves_give_what_the_whole_gives(
    model_type: str, rows: list[tuple[int, int, int]], backends: dict[str, Backend], tmp_path: Path
) -> None:
    variant = {"sliding_window": 5} if model_type == "mistral" else {}
    spec = read_spec(save(random_model(model_type, num_hidden_layers=3, **variant), tmp_path))
    last = KeptTokens(torch.tensor([rows[0][1] - 1]), torch.tensor([0, 1, *[1] * (len(rows) - 1)], dtype=torch.int32))
    for backend in backends.values():
        decoder = load_weights(spec, stored_tensors(tmp_path), torch.float32, TensorParallelGroup(), backend)
        for kept in (None, last, NOTHING):
            expected, found = computed(decoder, rows, kept), computed(halved(decoder), rows, kept)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_ranks_sum_each_half(tmp_path: Path) -> None:
    spec = read_spec(save(random_model("llama", num_hidden_layers=3), tmp_path))

    def on_rank(group: TensorParallelGroup) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            decoder = load_weights(spec, stored_tensors(tmp_path), torch.float32, group, reference_backend())
            return computed(decoder, STEPS["within a chunk"]), computed(halved(decoder), STEPS["within a chunk"])

    for whole, halves in on_ranks(2, on_rank):
        torch.testing.assert_close(halves, whole, atol=1e-5, rtol=1e-5)


def test_rows_are_split_by_tokens() -> None:
    batch, _ = BlockTables(32, 4).batch([(0, 2, 9), (1, 5, 8), (2, 1, 4)])
    first, second = split_batch(batch, 4)
    assert first.query_start_loc.tolist() == [0, 2, 4, 4]
    assert first.seq_lens.tolist() == [9, 5, 3], "as long as what the half knows"
    assert second.query_start_loc.tolist() == [0, 0, 3, 4]
    assert second.seq_lens.tolist() == [9, 8, 4]
    assert torch.equal(torch.cat([first.slot_mapping, second.slot_mapping]), batch.slot_mapping)


class ToldLane(HostLane):
    """Notes what it is told, and what happens in it."""

    def __init__(self, name: str, told: list[str]) -> None:
        self._name, self._told = name, told

    @contextmanager
    def on(self) -> Iterator[None]:
        self._told.append(f"on {self._name}")
        yield
        self._told.append(f"off {self._name}")

    def fork(self) -> None:
        self._told.append(f"{self._name} forks")

    def join(self) -> None:
        self._told.append(f"{self._name} joins")

    def mark(self) -> None:
        self._told.append("mark")

    def wait(self, mark: torch.cuda.Event | None) -> None:
        self._told.append("wait")


def told_by(monkeypatch: pytest.MonkeyPatch, directory: Path, **options: int) -> list[str]:
    """What happens in a step of one token each, two layers of three in halves, of which nobody wants anything."""
    spec = read_spec(save(random_model("llama", num_hidden_layers=3), directory))
    decoder = load_weights(spec, stored_tensors(directory), torch.float32, TensorParallelGroup(), reference_backend())
    told: list[str] = []
    store, mix, mlp = Attention.store, Attention.mix, GatedMLP.__call__
    monkeypatch.setattr(Attention, "store", lambda *args: (told.append("store"), store(*args))[1])
    monkeypatch.setattr(Attention, "mix", lambda *args: (told.append("mix"), mix(*args))[1])
    monkeypatch.setattr(GatedMLP, "__call__", lambda *args: (told.append("mlp"), mlp(*args))[1])
    lanes = (ToldLane("first", told), ToldLane("second", told))
    batch, positions = BlockTables(32, 4).batch([(0, 1, 1), (1, 1, 1)])
    kv = [poisoned_blocks(32, decoder.num_kv_heads, 4, spec.head_dim) for _ in range(spec.num_layers)]
    replace(decoder, overlap=Overlap(lanes, **options)).forward(positions + 5, positions, batch, kv, NOTHING)
    return told


@torch.inference_mode()
def test_the_second_half_waits_for_the_keys_of_the_first_in_every_layer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attend = ["on first", "store", "mark", "mix", "off first", "on second", "store", "wait", "mix", "off second"]
    layer = [*attend, "on first", "mlp", "off first", "on second", "mlp", "off second"]
    expected = ["first forks", "second forks", *layer, *layer, "first joins", "second joins", "store"]
    assert told_by(monkeypatch, tmp_path, least_bytes=0) == expected


@torch.inference_mode()
def test_small_batches_are_left_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer = ["store", "mix", "mlp"]
    assert told_by(monkeypatch, tmp_path) == [*layer, *layer, "store"]
