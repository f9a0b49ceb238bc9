"""One rank: its part of the weights, its KV cache, its runner. The same code for one rank and for many."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from tokenwire_service.config import EngineConfig
from tokenwire_service.core.cores import usable_cores
from tokenwire_service.kernels.backend import Backend, select_backend
from tokenwire_service.kernels.exchange import SharedExchange
from tokenwire_service.kernels.graph import make_recorder
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.models.overlap import Overlap
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.parallel.lanes import GpuLane
from tokenwire_service.parallel.local_ranks import LocalRanks
from tokenwire_service.parallel.symmetric import make_symmetric_sum
from tokenwire_service.runner.dtypes import choose_dtype, choose_kv_dtype
from tokenwire_service.runner.kv_cache import KVCache, kv_block_bytes
from tokenwire_service.runner.launched_step import LaunchedStep
from tokenwire_service.runner.machine import choose_device, free_memory_bytes
from tokenwire_service.runner.model_runner import ModelRunner
from tokenwire_service.runner.sizing import agree_on_sizes, check_flags, choose_sizes, measure_together
from tokenwire_service.runner.small_step import SpeculationLimits
from tokenwire_service.runner.step_graphs import BucketGraphs, LazyGraphs, NoGraphs, StepGraphs, bucket_sizes
from tokenwire_service.runner.timing import StepTiming
from tokenwire_service.runner.warm_up import warm_up
from tokenwire_service.scheduling.output import SchedulerOutput
from tokenwire_service.weights.progress import Progress
from tokenwire_service.weights.resolved import ResolvedModel
from tokenwire_service.weights.stored import StoredTensor
from tokenwire_service.weights.stream import stream_tensors

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a loaded worker turned out to be."""

    dtype: str
    """What weights are held in: `int8` when they were quantized, float32 where the asked-for type has no kernels."""
    device: str
    num_parameters: int
    attention_backend: str


class Worker:
    """Loads on construction. Raises StartupError."""

    def __init__(
        self,
        resolved: ResolvedModel,
        dtype: str,
        config: EngineConfig,
        progress: Progress,
        group: TensorParallelGroup | None = None,
        local: LocalRanks | None = None,
    ) -> None:
        """`group`: those that share the model, itself alone unless given; `local`: those that share its machine."""
        spec, local = read_spec(resolved.config), local or LocalRanks()
        self.device = choose_device(config.device, local.rank)
        """Where the model runs."""
        check_flags(config, spec, self.device)
        torch.set_num_threads(max(1, (config.num_threads or usable_cores()) // local.size))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        tensors = _Counted()
        chosen = choose_dtype(dtype, self.device)
        backend = select_backend(self.device, chosen, None if config.quantize == "none" else config.quantize)
        group = _with_shortcut(group or TensorParallelGroup(), local, backend, chosen)
        decoder = load_weights(spec, tensors.count(stream_tensors(resolved, progress)), chosen, group, backend)
        self._num_parameters = tensors.num_elements
        self._held_in = _held_in(backend, chosen)
        level = logging.INFO if group.rank == 0 else logging.DEBUG
        _LOG.log(level, "weights of %d parameters held in %s on %s", self._num_parameters, self._held_in, self.device)
        kv_dtype = choose_kv_dtype(config.kv_cache_dtype, chosen, decoder.backend)
        block_bytes = kv_block_bytes(spec.num_layers, decoder.num_kv_heads, config.block_size, spec.head_dim, kv_dtype)
        free_bytes = measure_together(group, self.device, free_memory_bytes)
        free_bytes //= local.size if self.device.type == "cpu" else 1
        sizes = choose_sizes(config, spec, block_bytes, self.device, free_bytes)
        self.sizes = agree_on_sizes(sizes, free_bytes, group, self.device, asked=config.max_batch_total_tokens > 0)
        """What the scheduler must work within."""
        self._decoder = replace(
            decoder.with_positions(self.sizes.max_total_tokens), overlap=_choose_overlap(group, self.device)
        )
        self._runner = ModelRunner(
            self._decoder,
            self._make_kv_cache(kv_dtype),
            self.sizes,
            self._choose_graphs(),
            SpeculationLimits(config.speculate, min(config.speculate_max_batch, self.sizes.max_num_sequences)),
        )
        warm_up(self._runner, self.sizes, on_gpu=self.device.type == "cuda")

    def launch(self, output: SchedulerOutput) -> LaunchedStep:
        """Set one plan going; see ModelRunner.launch."""
        return self._runner.launch(output)

    @property
    def last_timing(self) -> StepTiming | None:
        """Of the step whose result was asked for last."""
        return self._runner.last_timing

    @property
    def work_done(self) -> int:
        """Grows while a step computes; always 0 where kernels are not counted, on a GPU or without native ones. From
        any thread."""
        library = self._decoder.backend.library
        return 0 if library is None else library.work_done

    @property
    def num_layers_apart(self) -> int:
        """Layers, where a step may take some of them: not on a GPU, which a few layers of a small chunk leave idle."""
        return self._decoder.spec.num_layers if self.device.type == "cpu" else 0

    @property
    def facts(self) -> WorkerFacts:
        backend = self._decoder.backend
        on_gpu = self.device.type == "cuda"
        return WorkerFacts(
            dtype=self._held_in,
            device=torch.cuda.get_device_name(self.device) if on_gpu else self.device.type,
            num_parameters=self._num_parameters,
            attention_backend="triton" if backend.triton else "native" if backend.library is not None else "torch",
        )

    def _make_kv_cache(self, dtype: torch.dtype) -> KVCache:
        spec, sizes = self._decoder.spec, self.sizes
        return KVCache(
            num_layers=spec.num_layers,
            num_blocks=sizes.num_blocks,
            num_kv_heads=self._decoder.num_kv_heads,
            block_size=sizes.block_size,
            head_dim=spec.head_dim,
            dtype=dtype,
            device=self.device,
        )

    def _choose_graphs(self) -> StepGraphs:
        recorder = make_recorder(self._decoder.backend)
        if recorder is None:
            return NoGraphs()
        if self.device.type == "cpu":
            return LazyGraphs(recorder)
        return BucketGraphs(recorder, bucket_sizes(self.sizes.max_num_sequences))


def _held_in(backend: Backend, dtype: torch.dtype) -> str:
    if backend.linear_format.is_native:
        return backend.linear_format.value
    return str(backend.compute_dtype or dtype).removeprefix("torch.")


def _with_shortcut(
    group: TensorParallelGroup, local: LocalRanks, backend: Backend, dtype: torch.dtype
) -> TensorParallelGroup:
    """The group, with the quickest collectives that every rank of it has."""
    if group.size == 1 or local.size < group.size:
        return group
    if backend.device.type == "cuda":
        return replace(group, shortcut=make_symmetric_sum(group, dtype, backend.device))
    memory, library = local.memory, backend.library
    if memory is None:
        return group
    lacking = group.all_max(torch.tensor([library is None], dtype=torch.int64))
    if library is None or bool(lacking):
        return group
    return replace(group, shortcut=SharedExchange(library, memory, group.rank, group.size))


def _choose_overlap(group: TensorParallelGroup, device: torch.device) -> Overlap | None:
    """Where sums go over links while a GPU could compute. A CPU's cores make the sums themselves."""
    if group.size == 1 or device.type != "cuda":
        return None
    return Overlap((GpuLane(device), GpuLane(device)))


class _Counted:
    """Counts the elements of the tensors that pass."""

    def __init__(self) -> None:
        self.num_elements = 0

    def count(self, tensors: Iterable[tuple[str, StoredTensor]]) -> Iterator[tuple[str, StoredTensor]]:
        for name, tensor in tensors:
            self.num_elements += tensor.numel()
            yield name, tensor
