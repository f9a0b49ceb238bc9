"""How much memory loading one rank's part of a model takes, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from tokenwire_service.kernels.backend import select_backend
from tokenwire_service.kernels.linear import LinearWeight
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.weights.resolved import ResolvedModel
from tokenwire_service.weights.stream import stream_tensors


@dataclass(frozen=True)
class LoadingMemory:
    """Bytes."""

    share: int
    """Of the linear weights that the rank holds."""
    peak: int
    """Most that was resident while loading, mapped pages of the file included, beyond what was before."""


def measure_loading(resolved: ResolvedModel, dtype: torch.dtype, rank: int, size: int) -> LoadingMemory:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(resolved, dtype, rank, size, theirs))
    process.start()
    theirs.close()
    try:
        found: LoadingMemory = ours.recv()
        return found
    finally:
        process.join()


def _measure(resolved: ResolvedModel, dtype: torch.dtype, rank: int, size: int, connection: Connection) -> None:
    torch.set_num_threads(1)
    backend = select_backend(torch.device("cpu"), dtype)
    # The peak counts from here.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    tensors = stream_tensors(resolved)
    decoder = load_weights(read_spec(resolved.config), tensors, dtype, TensorParallelGroup(rank, size), backend)
    peak = _resident("VmHWM") - before
    connection.send(LoadingMemory(sum(weight.num_bytes for weight in _weights(decoder)), peak))


def _weights(decoder: Decoder) -> list[LinearWeight]:
    found = {id(decoder.embedding.table): decoder.embedding.table, id(decoder.head.weight): decoder.head.weight}
    layers = [
        (layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down) for layer in decoder.layers
    ]
    return [*found.values(), *(linear.weight for layer in layers for linear in layer)]


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
