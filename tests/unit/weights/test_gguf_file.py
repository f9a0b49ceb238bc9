"""The GGUF header reader: equal to gguf-py's on a real file, and one clear error for every damaged one."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.support.embedded import embedded_model
from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.weights.gguf_file import GgufFile


@pytest.fixture
def tiny(tiny_model: Callable[..., Any], state_of: Any, write_gguf: Callable[..., Path]) -> Path:
    return write_gguf("llama", state_of(tiny_model("llama")), permute=True)


def test_equals_gguf_py(tiny: Path) -> None:
    ours, theirs = GgufFile.read(tiny), gguf.GGUFReader(tiny)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert (list(a.shape), a.type.name) == (list(reversed(b.shape)), b.tensor_type.name)
        assert (a.offset, a.num_bytes) == (b.data_offset, b.n_bytes)


def test_the_embedded_file_reads_as_it_was_written() -> None:
    file = GgufFile.read(embedded_model().weight_files[0])
    assert file.architecture == "llama"
    assert len(file.tensors) == 272
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49_152
    last = max(file.tensors, key=lambda tensor: tensor.offset)
    assert last.offset + last.num_bytes <= file.path.stat().st_size


def test_truncation_anywhere_is_told(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    cut = tmp_path / "cut.gguf"
    lengths = [*range(200), *range(200, len(whole), max(1, len(whole) // 200)), len(whole) - 1]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(WeightsError) as caught:
            GgufFile.read(cut)
        assert str(cut) in str(caught.value)


def test_random_damage_never_escapes(tiny: Path, tmp_path: Path) -> None:
    """Header bytes changed at random: an error of ours, or a file that still makes sense."""
    whole = tiny.read_bytes()
    header_bytes = min(tensor.offset for tensor in GgufFile.read(tiny).tensors)
    damaged = tmp_path / "damaged.gguf"
    rng = random.Random(20260101)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(header_bytes)] = rng.choice((0, 0xFF, rng.randrange(256)))
        damaged.write_bytes(data)
        try:
            file = GgufFile.read(damaged)
        except (WeightsError, UnsupportedModelError):
            refused += 1
        else:
            assert all(t.offset + t.num_bytes <= len(data) for t in file.tensors)
    assert refused > 20


def header(*parts: bytes, version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"GGML" + bytes(40), "not a GGUF file"),
        (header(version=1), "version 1"),
        (header(version=0x03000000), "version"),
        (header(pairs=1 << 60), "more entries"),
        (header(tensors=1 << 60), "more entries"),
        (header(struct.pack("<Q", 1 << 62), bytes(40), pairs=1), "metadata key"),
        (header(text(b"k"), struct.pack("<IIQ", 9, 8, 1 << 61), bytes(40), pairs=1), "k is cut off"),
        (header(text(b"k"), struct.pack("<IIQ", 9, 4, 1 << 62), bytes(40), pairs=1), "k is cut off"),
        (header(text(b"k"), struct.pack("<IIQ", 9, 9, 1), bytes(40), pairs=1), "array of type 9"),
        (header(text(b"k"), struct.pack("<I", 77), bytes(40), pairs=1), "unknown type 77"),
        (header(text(b"\xff\xfe"), bytes(40), pairs=1), "not UTF-8"),
        (header(text(b"general.alignment"), struct.pack("<II", 4, 3), bytes(40), pairs=1), "alignment"),
        (header(text(b"t"), struct.pack("<I", 9), bytes(200), tensors=1), "9 dimensions"),
        (header(text(b"t"), struct.pack("<IQIQ", 1, 32, 99, 0), bytes(64), tensors=1), "ggml type 99"),
        (header(text(b"t"), struct.pack("<IQIQ", 1, 33, 2, 0), bytes(64), tensors=1), "do not divide"),
        (header(text(b"t"), struct.pack("<IQIQ", 1, 1 << 62, 0, 0), bytes(64), tensors=1), "ends at byte"),
        (header(text(b"t"), struct.pack("<IQIQ", 1, 4, 0, (1 << 64) - 1), bytes(64), tensors=1), "ends at byte"),
    ],
)
def test_hostile_headers(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises((WeightsError, UnsupportedModelError), match=message):
        GgufFile.read(path)


def test_a_file_without_architecture(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    path.write_bytes(header(bytes(64)))
    with pytest.raises(WeightsError, match=r"general\.architecture"):
        _ = GgufFile.read(path).architecture
