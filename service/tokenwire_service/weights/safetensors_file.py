"""Reads a safetensors file's header: names, types, shapes, and where each tensor's bytes lie. Imports no torch.

The file is hostile until proven otherwise: a tensor that is not as long as its shape says, or that reaches past the end
of the file, is an error here. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from tokenwire_service.errors import WeightsError

_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMS = 8
_MAX_DIM = 1 << 48
TYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U64": 8,
        "U32": 4,
        "U16": 2,
        "U8": 1,
        "BOOL": 1,
    }
)
"""The types that can be read, and the bytes of a number."""


@dataclass(frozen=True, slots=True)
class SafetensorsEntry:
    """One tensor of the header."""

    name: str
    type: str
    """One of TYPE_BYTES."""
    shape: tuple[int, ...]
    offset: int
    """From the start of the file, in bytes."""
    num_bytes: int


def read_safetensors(path: Path) -> list[SafetensorsEntry]:
    """The tensors of `path` in the order of their bytes. Raises WeightsError when its header is damaged or the file has
    another size."""
    try:
        size, start, header = _read_header(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    header.pop("__metadata__", None)
    entries = [_read_entry(path, name, fields, start) for name, fields in header.items()]
    expected = max((entry.offset + entry.num_bytes for entry in entries), default=start)
    if size != expected:
        raise _damaged(path, f"{expected} bytes expected, {size} found")
    return sorted(entries, key=lambda entry: entry.offset)


def _read_header(path: Path) -> tuple[int, int, dict[str, object]]:
    """Size of the file, where the tensors' bytes begin, and what the header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _damaged(path, f"{size} bytes long")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
            raise _damaged(path, f"its header needs {header_bytes} bytes, the file has {size}")
        return size, 8 + header_bytes, _parse(path, file.read(header_bytes))


def _read_entry(path: Path, name: str, fields: Any, start: int) -> SafetensorsEntry:
    known = fields if isinstance(fields, dict) else {}
    offsets, shape, kind = known.get("data_offsets"), known.get("shape"), known.get("dtype")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name[:200]} has no data_offsets")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        raise _damaged(path, f"tensor {name[:200]} has no shape")
    if not isinstance(kind, str) or kind not in TYPE_BYTES:
        raise WeightsError(
            f"{path}: tensor {name[:200]} has type {str(kind)[:20]}, which is not supported; "
            f"use one of {', '.join(TYPE_BYTES)}"
        )
    begin, end = offsets
    if end - begin != math.prod(shape) * TYPE_BYTES[kind]:
        raise _damaged(path, f"tensor {name[:200]} of shape {shape} has {end - begin} bytes")
    return SafetensorsEntry(name, kind, tuple(shape), start + begin, end - begin)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    # bool is an int to Python.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_DIM for value in values)


def _parse(path: Path, raw: bytes) -> dict[str, object]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    return header


def _damaged(path: Path, what: str) -> WeightsError:
    return WeightsError(f"{path}: damaged or truncated safetensors file ({what}); fetch it again")
