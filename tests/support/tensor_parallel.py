"""Runs one small model over several gloo ranks, one process each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.paged import PagedModel
from tokenwire_service.kernels.backend import reference_backend
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import checkpoint_tensors, load_weights
from tokenwire_service.parallel.group import TensorParallelGroup


def run_ranks(config: dict[str, Any], size: int, tokens: Tensor, directory: Path) -> list[Tensor]:
    """The logits [L, V] that each of `size` ranks computes for `tokens` with weights drawn from one seed."""
    if size == 1:
        return [_logits(config, TensorParallelGroup(), tokens)]
    mp.spawn(_rank, args=(config, size, tokens, str(directory)), nprocs=size)
    return [load_file(directory / f"logits-{rank}.safetensors")["logits"] for rank in range(size)]


def _rank(rank: int, config: dict[str, Any], size: int, tokens: Tensor, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=size)
    try:
        logits = _logits(config, TensorParallelGroup(rank, size), tokens)
        save_file({"logits": logits.contiguous()}, Path(directory) / f"logits-{rank}.safetensors")
    finally:
        dist.destroy_process_group()


def _logits(config: dict[str, Any], group: TensorParallelGroup, tokens: Tensor) -> Tensor:
    spec = read_spec(config)
    generator = torch.Generator().manual_seed(0)
    tensors = ((name, torch.randn(shape, generator=generator) * 0.3) for name, shape in checkpoint_tensors(spec))
    decoder = load_weights(spec, tensors, torch.float32, group, reference_backend())
    first, second = tokens.split([len(tokens) - 1, 1])
    model = PagedModel(decoder, block_size=4)
    logits = torch.cat([model.step([(0, first)])[0], model.step([(0, second)])[0]])
    assert logits.shape[1] == -(-spec.vocab_size // group.size)
    gathered = group.all_gather(logits)
    assert (gathered[:, spec.vocab_size :] == -torch.inf).all()
    return gathered[:, : spec.vocab_size]
