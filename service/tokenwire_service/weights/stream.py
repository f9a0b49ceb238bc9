"""The model's weights one tensor at a time, under Hugging Face's names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenwire_service.errors import WeightsError
from tokenwire_service.quantization.gguf import dequantize
from tokenwire_service.weights.gguf_file import GgufFile
from tokenwire_service.weights.gguf_names import RowOrder, hf_name
from tokenwire_service.weights.progress import Progress, ProgressTask, SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel


def stream_tensors(resolved: ResolvedModel, progress: Progress | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs on the CPU, in file order, each tensor once.

    Tensors keep the checkpoint's dtype; quantized GGUF tensors come as float32. Plain ones are views of the mapped
    file: copy (or convert) what is kept, never write into it. One tensor is in memory at a time. Raises WeightsError.
    """
    total = sum(path.stat().st_size for path in resolved.weight_files)
    with (progress or SilentProgress()).task("Loading weights", total) as task:
        if resolved.is_gguf:
            yield from _stream_gguf(resolved, task)
        else:
            yield from _stream_safetensors(resolved.weight_files, task)
        task.set_done(total)


def _stream_safetensors(paths: tuple[Path, ...], task: ProgressTask) -> Iterator[tuple[str, Tensor]]:
    done, owners = 0, dict[str, Path]()
    for path in paths:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in owners:
                        raise WeightsError(f"tensor {name[:200]} is in both {owners[name].name} and {path.name}")
                    owners[name] = path
                    tensor = file.get_tensor(name)
                    done += tensor.nbytes
                    yield name, tensor
                    task.set_done(done)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: damaged safetensors file ({error}); fetch it again") from error


def _stream_gguf(resolved: ResolvedModel, task: ProgressTask) -> Iterator[tuple[str, Tensor]]:
    path = resolved.weight_files[0]
    file = GgufFile.read(path)
    rows = RowOrder(file.architecture, resolved.config)
    done, seen = 0, set[str]()
    data = _map(path)
    for entry in file.tensors:
        name = hf_name(entry.name)
        if name is None:
            continue
        if name in seen:
            raise WeightsError(f"{path}: tensor {entry.name[:200]} is in the file twice")
        seen.add(name)
        values = dequantize(data[entry.offset : entry.offset + entry.num_bytes], entry.type, entry.shape)
        yield name, rows.restore(name, values)
        done += entry.num_bytes
        task.set_done(done)


def _map(path: Path) -> Tensor:
    """The file as uint8, read page by page as it is touched; writing to it would not reach the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
