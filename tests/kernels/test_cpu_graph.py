from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenwire_service.kernels._tape import CpuGraph, CpuGraphRecorder
from tokenwire_service.kernels.add_rms_norm import add_rms_norm
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.linear import LinearWeight, linear, pack_weight
from tokenwire_service.kernels.silu_mul import silu_mul

WIDTH = 64


class Net:
    """A few layers, written as the model's are."""

    def __init__(self, backend: Backend, num_layers: int = 3) -> None:
        torch.manual_seed(0)
        self._backend = backend
        self._layers: list[tuple[LinearWeight, LinearWeight]] = [
            (
                pack_weight(torch.randn(2 * WIDTH, WIDTH) / 8, backend),
                pack_weight(torch.randn(WIDTH, WIDTH) / 8, backend),
            )
            for _ in range(num_layers)
        ]
        self._norm = torch.ones(WIDTH)

    def __call__(self, residual: Tensor) -> Tensor:
        delta = None
        for up, down in self._layers:
            x = add_rms_norm(residual, delta, self._norm, 1e-5, self._backend)
            delta = linear(silu_mul(linear(x, up, None), self._backend), down, None)
        return add_rms_norm(residual, delta, self._norm, 1e-5, self._backend)


@pytest.fixture
def native(backends: dict[str, Backend]) -> list[Backend]:
    return [backend for backend in backends.values() if backend.library is not None]


def test_a_replay_computes_anew_on_new_inputs(native: list[Backend]) -> None:
    for backend in native:
        assert backend.library is not None
        check_replays(Net(backend), CpuGraphRecorder(backend.library))


def check_replays(net: Net, recorder: CpuGraphRecorder) -> None:
    outputs: dict[int, Tensor] = {}
    inputs = {tokens: torch.randn(tokens, WIDTH) for tokens in (1, 5, 40)}

    def record(tokens: int) -> CpuGraph:
        return recorder.record(lambda: outputs.update({tokens: net(inputs[tokens])}))

    graphs = {tokens: record(tokens) for tokens in inputs}
    for _ in range(2):
        for tokens, x in inputs.items():
            fresh = torch.randn(tokens, WIDTH)
            expected = net(fresh.clone())
            x.copy_(fresh)
            graphs[tokens].replay()
            assert torch.equal(outputs[tokens], expected)


def test_memory_between_kernels_is_used_again(native: list[Backend]) -> None:
    for backend in native:
        assert backend.library is not None
        recorder = CpuGraphRecorder(backend.library)
        x = torch.randn(4, WIDTH)
        shallow, deep = Net(backend, 2), Net(backend, 40)
        kept = []
        recorder.record(lambda net=shallow, kept=kept, x=x: kept.append(net(x)))
        before = recorder.num_bytes
        recorder.record(lambda net=deep, kept=kept, x=x: kept.append(net(x)))
        # One more result that is still held.
        assert recorder.num_bytes <= before + 4 * WIDTH * 4


def test_torch_work_is_refused_and_recording_ends(native: list[Backend]) -> None:
    for backend in native:
        assert backend.library is not None
        recorder, net = CpuGraphRecorder(backend.library), Net(backend)
        x = torch.randn(4, WIDTH)
        with pytest.raises(ValueError, match="mul"):
            recorder.record(lambda net=net, x=x: net(x * 2))
        assert len(recorder.record(lambda net=net, x=x: net(x.view(2, 2, WIDTH).flatten(0, 1)))) == 3 * 4 + 1
