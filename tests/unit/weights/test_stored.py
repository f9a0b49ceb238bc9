"""Parts of stored tensors, against the same parts of the whole ones."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.weights import whole_tensors
from tokenwire_service.errors import WeightsError
from tokenwire_service.quantization.gguf_types import BLOCKS, GgufType
from tokenwire_service.weights.gguf_file import GgufTensor
from tokenwire_service.weights.gguf_names import RowOrder
from tokenwire_service.weights.gguf_tensor import BlockTensor
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel
from tokenwire_service.weights.safetensors_file import TYPE_BYTES, read_safetensors
from tokenwire_service.weights.stored import EVERYTHING, HeldTensor, MappedFile, MappedTensor, StoredTensor, whole
from tokenwire_service.weights.stream import stream_tensors

ROWS = [EVERYTHING, slice(0, 0), slice(0, 1), slice(8, 40), slice(3, 29), slice(47, 48)]
COLUMNS = [EVERYTHING, slice(0, 256), slice(256, 768), slice(100, 300), slice(511, 513)]


def read(tensor: StoredTensor, *cut: slice) -> Tensor:
    pieces = [piece.clone() for piece in tensor.read(*cut)]
    return torch.cat(pieces) if pieces else whole(tensor)[:0]


def assert_parts_agree(tensor: StoredTensor) -> None:
    everything = whole(tensor)
    assert tuple(everything.shape) == tensor.shape
    assert everything.dtype == tensor.dtype
    assert tensor.numel() == everything.numel()
    for rows in ROWS:
        for columns in COLUMNS:
            expected = everything[rows, columns]
            found = read(tensor, rows, columns)
            assert found.numel() == expected.numel()
            if expected.numel():
                torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire_service.weights.stored._PIECE_BYTES", 5000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("start", [0, 8, 11])
@pytest.mark.usefixtures("small_pieces")
def test_parts_of_plain_tensors(tmp_path: Path, dtype: torch.dtype, start: int) -> None:
    """Also where the file puts them at no multiple of a number's size."""
    values = torch.randn(48, 768).to(dtype)
    path = tmp_path / "bytes"
    path.write_bytes(b"x" * start + values.view(torch.uint8).numpy().tobytes())
    tensor = MappedTensor(MappedFile(path), start, (48, 768), dtype)
    assert torch.equal(whole(tensor), values)
    assert_parts_agree(tensor)
    assert_parts_agree(HeldTensor(values))


@pytest.mark.parametrize("kind", list(GgufType))
@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"])
@pytest.mark.usefixtures("small_pieces")
def test_parts_of_blocks(tmp_path: Path, kind: GgufType, name: str) -> None:
    """Rows of queries are put in order by heads of eight."""
    length, size = BLOCKS[kind]
    num_bytes = 48 * 768 // length * size
    noise = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(int(kind)))
    path = tmp_path / "bytes"
    path.write_bytes(b"x" * 32 + noise.numpy().tobytes())
    order = RowOrder("llama", {"num_attention_heads": 6, "num_key_value_heads": 6})
    assert_parts_agree(BlockTensor(MappedFile(path), GgufTensor("t", (48, 768), kind, 32, num_bytes), name, order))


def test_vectors_and_scalars(tmp_path: Path) -> None:
    tensors = {
        "v": torch.arange(48.0),
        "s": torch.tensor(2.5),
        "e": torch.empty(0, 3),
        "d": torch.arange(24).view(2, 3, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = whole_tensors(model_of(tmp_path))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
    stored = dict(stream_tensors(model_of(tmp_path)))
    assert read(stored["v"], slice(5, 7)).tolist() == [5.0, 6.0]


def test_every_type_of_a_header_is_known(tmp_path: Path) -> None:
    """Type names and sizes are safetensors' own."""
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8]
    tensors = {str(kind): torch.ones(3, dtype=torch.int8).to(kind) for kind in [*kinds, torch.bool]}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = whole_tensors(model_of(tmp_path))
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {str(kind): kind for kind in [*kinds, torch.bool]}
    assert len({entry.type for entry in read_safetensors(tmp_path / "model.safetensors")}) == len(TYPE_BYTES)


def header(**fields: Any) -> bytes:
    """A file of one tensor [2] of F32, but for the given fields."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}
    raw = json.dumps({"t": entry}).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data_offsets": [0, 1 << 60]}, "no data_offsets"),
        ({"data_offsets": [8, 0]}, "has -8 bytes"),
        ({"data_offsets": [-8, 0]}, "no data_offsets"),
        ({"data_offsets": [0, 8, 16]}, "no data_offsets"),
        ({"data_offsets": [False, True]}, "no data_offsets"),
        ({"data_offsets": None}, "no data_offsets"),
        ({"shape": [3]}, r"of shape \[3\] has 8 bytes"),
        ({"shape": [-1, -2]}, "no shape"),
        ({"shape": [1] * 9}, "no shape"),
        ({"shape": "2"}, "no shape"),
        ({"shape": [2.0]}, "no shape"),
        ({"dtype": "F4"}, "type F4, which is not supported"),
        ({"dtype": ["F32"]}, "is not supported"),
        ({"data_offsets": [8, 16]}, "bytes expected"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(**fields))
    with pytest.raises(WeightsError, match=message):
        read_safetensors(path)


def test_random_damage_to_a_header_is_an_error_or_harmless(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "model.safetensors"
    whole_file = header()
    for _ in range(300):
        damaged = bytearray(whole_file)
        for at in torch.randint(0, len(damaged) - 8, (2,), generator=generator).tolist():
            damaged[at] = int(torch.randint(0, 256, (), generator=generator))
        path.write_bytes(damaged)
        try:
            entries = read_safetensors(path)
        except WeightsError:
            continue
        assert all(0 <= entry.offset <= entry.offset + entry.num_bytes <= len(damaged) for entry in entries)
        assert all(math.prod(entry.shape) * TYPE_BYTES[entry.type] == entry.num_bytes for entry in entries)


def model_of(directory: Path) -> ResolvedModel:
    files = (directory / "model.safetensors",)
    return ResolvedModel("m", "", ModelKind.LOCAL, {}, files, directory, GenerationDefaults())
