"""Reads a GGUF file's header: metadata, tensor table, and where each tensor's bytes lie.

The file is hostile until proven otherwise: every count and length is checked against what the file can hold before it
is used, and a tensor that reaches past the end of the file is an error here, not a crash later. The `gguf` package's
own reader needs two seconds for a 49k-token vocabulary; this one needs a tenth.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.quantization.gguf_types import GgufType, byte_size

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_NAME_BYTES = 65_535
_MAX_ALIGNMENT = 1 << 20
_STRING, _ARRAY = 8, 9
_SCALARS = MappingProxyType({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"})
# A metadata pair is at least a key length, a type and one byte; a table row two counts, one dimension, type, offset.
_MIN_PAIR_BYTES = 13
_MIN_ROW_BYTES = 24


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table. `shape` is in torch's order (rows first)."""

    name: str
    shape: tuple[int, ...]
    type: GgufType
    offset: int
    """From the start of the file, in bytes."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A parsed header. Holds no file handle."""

    path: Path
    metadata: dict[str, Any]
    """Scalars, strings, and lists of either, by their GGUF keys."""
    tensors: tuple[GgufTensor, ...]

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Parse `path`. Raises WeightsError (damaged, truncated) or UnsupportedModelError (version, tensor type)."""
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_header(path, data)
        except (OSError, ValueError) as error:
            # mmap refuses an empty file with ValueError.
            raise WeightsError(f"{path}: cannot be read as a GGUF file ({error})") from error

    @property
    def architecture(self) -> str:
        """`general.architecture`: llama, qwen2, …"""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise WeightsError(f"{self.path}: damaged GGUF file (no general.architecture)")
        return value


class _Cursor:
    """A position in the header that never leaves the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self.path, self.position = data, path, 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self.position

    def damaged(self, what: str) -> WeightsError:
        return WeightsError(f"{self.path}: damaged or truncated GGUF file ({what}); fetch it again")

    def take(self, num_bytes: int, what: str) -> bytes:
        if num_bytes > self.remaining:
            raise self.damaged(f"{what} needs {num_bytes} bytes, the file ends after {self.remaining}")
        start, self.position = self.position, self.position + num_bytes
        return self._data[start : self.position]

    def unpack(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        return struct.unpack("<" + code, self.take(size, what))[0]

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.unpack("Q", what)
        if limit is not None and length > limit:
            raise self.damaged(f"{what} is {length} bytes long")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings in a row: the vocabulary and the merges, so the loop is kept tight."""
        data, position, end = self._data, self.position, len(self._data)
        unpack, out = struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            if position + 8 > end:
                raise self.damaged(f"{what} is cut off")
            start = position + 8
            position = start + unpack(data, position)[0]
            if position > end:
                raise self.damaged(f"{what} is cut off")
            try:
                out.append(data[start:position].decode("utf-8"))
            except UnicodeDecodeError as error:
                raise self.damaged(f"{what} holds what is not UTF-8") from error
        self.position = position
        return out


def _read_header(path: Path, data: mmap.mmap) -> GgufFile:
    cursor = _Cursor(data, path)
    if data[:4] != _MAGIC:
        raise WeightsError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
    cursor.position = 4
    version = cursor.unpack("I", "version")
    if version not in _VERSIONS:
        raise UnsupportedModelError(f"{path}: GGUF version {version} is not supported; use a file of version 2 or 3")
    num_tensors, num_pairs = cursor.unpack("Q", "tensor count"), cursor.unpack("Q", "metadata count")
    if num_pairs * _MIN_PAIR_BYTES + num_tensors * _MIN_ROW_BYTES > cursor.remaining:
        raise cursor.damaged("more entries than the file can hold")
    metadata: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = cursor.string("a metadata key", _MAX_NAME_BYTES)
        metadata[key] = _read_value(cursor, cursor.unpack("I", key), key)
    rows = [_read_row(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    return GgufFile(path, metadata, tuple(_place(row, data_start, len(data), cursor) for row in rows))


def _read_value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind in _SCALARS:
        return cursor.unpack(_SCALARS[kind], key)
    if kind == _STRING:
        return cursor.string(key)
    if kind != _ARRAY:
        raise cursor.damaged(f"{key} has unknown type {kind}")
    element, count = cursor.unpack("I", key), cursor.unpack("Q", key)
    if element == _STRING:
        return cursor.strings(count, key)
    if element not in _SCALARS:
        raise cursor.damaged(f"{key} is an array of type {element}")
    width = struct.calcsize("<" + _SCALARS[element])
    if count * width > cursor.remaining:
        raise cursor.damaged(f"{key} is cut off")
    return list(struct.unpack(f"<{count}{_SCALARS[element]}", cursor.take(count * width, key)))


def _read_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("a tensor name", _MAX_NAME_BYTES)
    num_dims = cursor.unpack("I", name)
    if not 1 <= num_dims <= _MAX_DIMS:
        raise cursor.damaged(f"tensor {name} has {num_dims} dimensions")
    dims = struct.unpack(f"<{num_dims}Q", cursor.take(8 * num_dims, name))
    return name, tuple(reversed(dims)), cursor.unpack("I", name), cursor.unpack("Q", name)


def _place(row: tuple[str, tuple[int, ...], int, int], data_start: int, size: int, cursor: _Cursor) -> GgufTensor:
    name, shape, type_id, offset = row
    try:
        kind = GgufType(type_id)
    except ValueError:
        names = ", ".join(member.name for member in GgufType)
        raise UnsupportedModelError(
            f"{cursor.path}: tensor {name} has ggml type {type_id}, which is not supported; use one of {names}"
        ) from None
    num_bytes = byte_size(kind, math.prod(shape), shape[-1])
    if num_bytes is None:
        raise cursor.damaged(f"tensor {name} has shape {shape}, which {kind.name} blocks do not divide")
    if data_start + offset + num_bytes > size:
        raise cursor.damaged(f"tensor {name} ends at byte {data_start + offset + num_bytes} of {size}")
    return GgufTensor(name, shape, kind, data_start + offset, num_bytes)
