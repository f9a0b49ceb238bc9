from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.triton_device import REFERENCE, TRITON
from tokenwire_service.kernels.advance import DecodeInputs, advance, gather_decode_inputs
from tokenwire_service.kernels.backend import Backend

NUM_SLOTS, MAX_LEN, MAX_BLOCKS, BLOCK_SIZE = 300, 11, 5, 3
POISON = -(2**31)

BACKENDS = {"reference": REFERENCE, "triton": TRITON}


def int32(*shape: int) -> Tensor:
    return torch.full(shape, POISON, dtype=torch.int32)


def slots_of(rows: int) -> Tensor:
    """Distinct slots, a third of them padded."""
    slots = torch.randperm(NUM_SLOTS)[:rows].int()
    slots[torch.rand(rows) < 0.3] = -1
    return slots


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("rows", [0, 1, 7, 128, 129])
def test_advance_appends_to_live_slots_only(backend: Backend, rows: int) -> None:
    torch.manual_seed(rows)
    slots, sampled = slots_of(rows), torch.randint(0, 2**31 - 1, (rows,))
    last_token, token_ids = int32(NUM_SLOTS), int32(NUM_SLOTS, MAX_LEN)
    positions, seq_lens = int32(NUM_SLOTS), int32(NUM_SLOTS)
    live = slots[slots >= 0].tolist()
    for slot in live:
        seq_lens[slot] = torch.randint(1, MAX_LEN + 1, ())
        positions[slot] = seq_lens[slot] - 1
    expected = [tensor.clone() for tensor in (last_token, positions, seq_lens, token_ids)]
    for slot, token in zip(slots.tolist(), sampled.tolist(), strict=True):
        if slot < 0:
            continue
        expected[0][slot] = token
        if expected[2][slot] < MAX_LEN:
            expected[3][slot, expected[2][slot]] = token
        expected[1][slot] += 1
        expected[2][slot] += 1
    advance(sampled, slots, last_token, positions, seq_lens, token_ids, backend)
    for ours, theirs in zip((last_token, positions, seq_lens, token_ids), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize(("rows", "max_blocks"), [(0, 5), (1, 5), (9, 5), (4, 1027)])
def test_decode_inputs_of_live_and_padded_rows(backend: Backend, rows: int, max_blocks: int) -> None:
    torch.manual_seed(rows)
    slots = slots_of(rows)
    last_token, positions, seq_lens = int32(NUM_SLOTS), int32(NUM_SLOTS), int32(NUM_SLOTS)
    tables = torch.randint(0, 2**30, (NUM_SLOTS, max_blocks), dtype=torch.int32)
    for slot in slots[slots >= 0].tolist():
        positions[slot] = torch.randint(0, max_blocks * BLOCK_SIZE, ())
        seq_lens[slot], last_token[slot] = positions[slot] + 1, slot * 7
    out = DecodeInputs(
        torch.full((rows,), POISON),
        torch.full((rows,), POISON),
        int32(rows),
        torch.full((rows,), POISON),
        int32(rows, max_blocks),
    )
    gather_decode_inputs(slots, last_token, positions, seq_lens, tables, BLOCK_SIZE, out, backend)
    for row, slot in enumerate(slots.tolist()):
        found = (out.input_ids[row], out.positions[row], out.seq_lens[row], out.slot_mapping[row])
        if slot < 0:
            assert [int(value) for value in found] == [0, 0, 0, -1]
            assert not out.block_tables[row].any()
            continue
        position = int(positions[slot])
        place = int(tables[slot, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
        assert [int(value) for value in found] == [slot * 7, position, position + 1, place]
        assert torch.equal(out.block_tables[row], tables[slot])


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_step_follows_the_last_one(backend: Backend) -> None:
    """Decode inputs, then a sampled token, twice: positions and lengths march on together."""
    slots = torch.tensor([2, -1, 0], dtype=torch.int32)
    last_token, positions = torch.tensor([5, 6, 7], dtype=torch.int32), torch.tensor([2, 0, 5], dtype=torch.int32)
    seq_lens, token_ids = positions + 1, torch.zeros(3, MAX_LEN, dtype=torch.int32)
    tables = torch.tensor([[4, 1], [9, 9], [3, 8]], dtype=torch.int32)
    out = DecodeInputs(
        torch.zeros(3).long(), torch.zeros(3).long(), int32(3), torch.zeros(3).long(), torch.zeros(3, 2).int()
    )
    places = []
    for sampled in (torch.tensor([70, 1, 50]), torch.tensor([71, 1, 51])):
        gather_decode_inputs(slots, last_token, positions, seq_lens, tables, 6, out, backend)
        places.append(out.slot_mapping.tolist())
        advance(sampled, slots, last_token, positions, seq_lens, token_ids, backend)
    assert places == [[3 * 6 + 5, -1, 4 * 6 + 2], [8 * 6 + 0, -1, 4 * 6 + 3]]
    assert token_ids[2, 6:8].tolist() == [70, 71]
    assert token_ids[0, 3:5].tolist() == [50, 51]
    assert not token_ids[1].any()
    assert seq_lens.tolist() == [5, 1, 8]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_position_beyond_the_blocks_has_no_place(backend: Backend) -> None:
    """Else its key would land in the block of another sequence."""
    slots, state = torch.tensor([0], dtype=torch.int32), torch.tensor([6, 0], dtype=torch.int32)
    out = DecodeInputs(torch.ones(1).long(), torch.ones(1).long(), int32(1), torch.ones(1).long(), int32(1, 2))
    gather_decode_inputs(slots, state, state, state, torch.tensor([[4, 1], [9, 9]]).int(), 3, out, backend)
    assert out.slot_mapping.tolist() == [-1]


def test_wrong_layouts_are_refused() -> None:
    slots, state, tokens = torch.zeros(2).int(), torch.zeros(4).int(), torch.zeros(4, 8).int()
    sampled, backend = torch.zeros(2).long(), BACKENDS["reference"]
    with pytest.raises(ValueError, match="slots"):
        advance(sampled, slots.long(), state, state, state, tokens, backend)
    with pytest.raises(ValueError, match="sampled_ids"):
        advance(sampled[:1], slots, state, state, state, tokens, backend)
    with pytest.raises(ValueError, match="token_ids"):
        advance(sampled, slots, state, state, state, tokens[:3], backend)
    out = DecodeInputs(sampled, sampled, slots, sampled, torch.zeros(2, 3).int())
    with pytest.raises(ValueError, match=r"out\.block_tables"):
        gather_decode_inputs(slots, state, state, state, torch.zeros(4, 5).int(), 4, out, backend)
