"""One rank: its part of the weights, its KV cache, its runner. The same code for one rank and for many."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from tokenwire_service.config import EngineConfig
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.models.spec import ModelSpec
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.runner.kv_cache import KVCache, kv_block_bytes
from tokenwire_service.runner.machine import free_memory_bytes, usable_cores
from tokenwire_service.runner.model_runner import ModelRunner
from tokenwire_service.runner.sizing import EngineSizes, check_flags, choose_sizes
from tokenwire_service.runner.slots import SlotState
from tokenwire_service.runner.warm_up import warm_up
from tokenwire_service.scheduling.output import SchedulerOutput, StepResult
from tokenwire_service.weights.progress import Progress
from tokenwire_service.weights.resolved import ResolvedModel
from tokenwire_service.weights.stream import stream_tensors

_LOG = logging.getLogger(__name__)
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a loaded worker turned out to be."""

    dtype: str
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
    ) -> None:
        spec = read_spec(resolved.config)
        check_flags(config, spec)
        torch.set_num_threads(config.num_threads or usable_cores())
        tensors = _Counted()
        self._dtype = choose_dtype(dtype)
        self._decoder = load_weights(
            spec, tensors.count(stream_tensors(resolved, progress)), self._dtype, group or TensorParallelGroup()
        )
        self._num_parameters = tensors.num_elements
        if self._decoder.backend.device.type == "cpu" and self._dtype is not torch.float32:
            _LOG.warning("--dtype %s has no native CPU kernels: generation will be many times slower", dtype)
        self.sizes = self._choose_sizes(config, spec)
        """What the scheduler must work within."""
        self._runner = self._make_runner(spec)
        warm_up(self._runner, self.sizes)

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Carry out one plan; see ModelRunner.execute."""
        return self._runner.execute(output)

    @property
    def facts(self) -> WorkerFacts:
        backend = self._decoder.backend
        on_gpu = backend.device.type == "cuda"
        return WorkerFacts(
            dtype=str(self._dtype).removeprefix("torch."),
            device=torch.cuda.get_device_name(backend.device) if on_gpu else backend.device.type,
            num_parameters=self._num_parameters,
            attention_backend="native" if backend.library is not None else "torch",
        )

    def _choose_sizes(self, config: EngineConfig, spec: ModelSpec) -> EngineSizes:
        device = self._decoder.backend.device
        block_bytes = kv_block_bytes(
            spec.num_layers, self._decoder.num_kv_heads, config.block_size, spec.head_dim, self._dtype
        )
        return choose_sizes(config, spec, block_bytes, device, free_memory_bytes(device))

    def _make_runner(self, spec: ModelSpec) -> ModelRunner:
        sizes = self.sizes
        kv_cache = KVCache(
            num_layers=spec.num_layers,
            num_blocks=sizes.num_blocks,
            num_kv_heads=self._decoder.num_kv_heads,
            block_size=sizes.block_size,
            head_dim=spec.head_dim,
            dtype=self._dtype,
            device=self._decoder.backend.device,
        )
        return ModelRunner(self._decoder, kv_cache, SlotState(sizes, spec.vocab_size), sizes.block_size)


def choose_dtype(name: str) -> torch.dtype:
    """'auto' is float32: what every CPU computes well."""
    return _DTYPES["float32" if name == "auto" else name]


class _Counted:
    """Counts the elements of the tensors that pass."""

    def __init__(self) -> None:
        self.num_elements = 0

    def count(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            self.num_elements += tensor.numel()
            yield name, tensor
