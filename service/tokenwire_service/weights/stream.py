"""The model's weights one tensor at a time, under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from tokenwire_service.errors import WeightsError
from tokenwire_service.weights.gguf_file import GgufFile
from tokenwire_service.weights.gguf_names import RowOrder, hf_name
from tokenwire_service.weights.gguf_tensor import BlockTensor
from tokenwire_service.weights.progress import Progress, ProgressTask, SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel
from tokenwire_service.weights.safetensors_file import read_safetensors
from tokenwire_service.weights.stored import MappedFile, MappedTensor, StoredTensor

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""Of every type in safetensors_file.TYPE_BYTES."""


def stream_tensors(resolved: ResolvedModel, progress: Progress | None = None) -> Iterator[tuple[str, StoredTensor]]:
    """(name, tensor) pairs in file order, each tensor once, to be read before the next is asked for.

    Tensors keep the checkpoint's dtype; quantized GGUF tensors come as float32. Nothing is in memory but what is being
    read. Raises WeightsError.
    """
    total = sum(path.stat().st_size for path in resolved.weight_files)
    with (progress or SilentProgress()).task("Loading weights", total) as task:
        if resolved.is_gguf:
            yield from _stream_gguf(resolved, task)
        else:
            yield from _stream_safetensors(resolved.weight_files, task)
        task.set_done(total)


def _stream_safetensors(paths: tuple[Path, ...], task: ProgressTask) -> Iterator[tuple[str, StoredTensor]]:
    done, owners = 0, dict[str, Path]()
    for path in paths:
        entries = read_safetensors(path)
        file = _map(path)
        for entry in entries:
            if entry.name in owners:
                raise WeightsError(f"tensor {entry.name[:200]} is in both {owners[entry.name].name} and {path.name}")
            owners[entry.name] = path
            yield entry.name, MappedTensor(file, entry.offset, entry.shape, _DTYPES[entry.type])
            done += entry.num_bytes
            task.set_done(done)


def _stream_gguf(resolved: ResolvedModel, task: ProgressTask) -> Iterator[tuple[str, StoredTensor]]:
    path = resolved.weight_files[0]
    header = GgufFile.read(path)
    order = RowOrder(header.architecture, resolved.config)
    done, seen = 0, set[str]()
    file = _map(path)
    for entry in header.tensors:
        name = hf_name(entry.name)
        if name is None:
            continue
        if name in seen:
            raise WeightsError(f"{path}: tensor {entry.name[:200]} is in the file twice")
        seen.add(name)
        yield name, BlockTensor(file, entry, name, order)
        done += entry.num_bytes
        task.set_done(done)


def _map(path: Path) -> MappedFile:
    try:
        return MappedFile(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
