"""Whether a safetensors file is whole, by its header alone. Imports no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from tokenwire_service.errors import WeightsError

_MAX_HEADER_BYTES = 100_000_000


def check_safetensors(path: Path) -> int:
    """Number of tensors in `path`. Raises WeightsError when its header is damaged or the file has another size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _damaged(path, f"{size} bytes long")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
            raise _damaged(path, f"its header needs {header_bytes} bytes, the file has {size}")
        header = _parse(path, file.read(header_bytes))
    header.pop("__metadata__", None)
    end = 0
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(x, int) for x in offsets)):
            raise _damaged(path, f"tensor {name[:200]} has no data_offsets")
        end = max(end, offsets[1])
    expected = 8 + header_bytes + end
    if size != expected:
        raise _damaged(path, f"{expected} bytes expected, {size} found")
    return len(header)


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
