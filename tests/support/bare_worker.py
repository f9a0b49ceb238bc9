"""A worker over any backend and any way of recording, which the real one would not choose on this machine."""

from __future__ import annotations

import torch

from tests.support.checkpoints import stored_tensors
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.graph import Graph
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.runner.kv_cache import KVCache
from tokenwire_service.runner.launched_step import LaunchedStep
from tokenwire_service.runner.model_runner import ModelRunner
from tokenwire_service.runner.sizing import EngineSizes
from tokenwire_service.runner.small_step import SpeculationLimits
from tokenwire_service.runner.step_graphs import StepGraphs
from tokenwire_service.scheduling.output import SchedulerOutput
from tokenwire_service.weights.resolved import ResolvedModel

BARE_SIZES = EngineSizes(
    num_blocks=128, block_size=16, max_num_sequences=16, max_batch_tokens=48, max_total_tokens=256, vocab_size=97
)


class BareWorker:
    """As much of a Worker as LocalEngine asks for. Float32, on the CPU; every unused KV entry is NaN."""

    def __init__(
        self,
        resolved: ResolvedModel,
        backend: Backend,
        graphs: StepGraphs | None = None,
        sizes: EngineSizes = BARE_SIZES,
        speculation: SpeculationLimits | None = None,
    ) -> None:
        self.sizes = sizes
        self.device = backend.device
        spec = read_spec(resolved.config)
        tensors = stored_tensors(resolved.tokenizer_dir)
        decoder = load_weights(spec, tensors, torch.float32, TensorParallelGroup(), backend)
        kv_cache = KVCache(
            num_layers=spec.num_layers,
            num_blocks=sizes.num_blocks,
            num_kv_heads=decoder.num_kv_heads,
            block_size=sizes.block_size,
            head_dim=spec.head_dim,
            dtype=torch.float32,
            device=self.device,
        )
        for layer in kv_cache.layers:
            layer.key.fill_(float("nan"))
            layer.value.fill_(float("nan"))
        decoder = decoder.with_positions(sizes.max_total_tokens)
        self.runner = ModelRunner(decoder, kv_cache, sizes, graphs, speculation)
        self.runner.record()

    def launch(self, output: SchedulerOutput) -> LaunchedStep:
        return self.runner.launch(output)


class CallRecorder:
    """Replays work by calling it again."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replays = 0

    def record(self, work: object) -> Graph:
        self.num_recorded += 1
        assert callable(work)
        work()
        return _Call(self, work)


class _Call:
    def __init__(self, recorder: CallRecorder, work: object) -> None:
        self._recorder, self._work = recorder, work

    def replay(self) -> None:
        self._recorder.num_replays += 1
        assert callable(self._work)
        self._work()
