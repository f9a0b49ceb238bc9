"""The engine's benchmark: roofline arithmetic, random models, and a dry run of everything it does on a GPU."""

from pathlib import Path

import pytest
import torch

from bench.engine import EngineWorkload, add_fractions, measure_ours, measure_transformers
from bench.engine_limits import H200, DeviceLimits, ModelCost, device_limits
from bench.engine_offline import BatchRun, OfflineEngine, StepRecord
from bench.engine_shapes import SHAPES, random_tensors, without_work
from bench.kernels import red_tests
from bench.kernels_cases import OPS, TESTS, Setting
from bench.transformers_contenders import Continuation, steady_rate
from tokenwire_service.config import EngineConfig
from tokenwire_service.kernels.backend import reference_backend
from tokenwire_service.models.families import read_spec

LLAMA = ModelCost.of(read_spec(SHAPES["llama-3.1-8b"]), 2, 2)


@pytest.mark.parametrize(("batch", "limit"), [(1, 284), (32, 7130), (128, 17100), (256, 19900)])
def test_decode_limits_are_the_designs(batch: int, limit: float) -> None:
    assert LLAMA.decode_limit(batch, 1024, H200) == pytest.approx(limit, rel=0.005)


def test_the_prefill_limit_is_the_designs() -> None:
    assert LLAMA.prefill_limit(1024, H200) == pytest.approx(55_500, rel=0.005)
    assert LLAMA.prefill_limit(8192, H200) < LLAMA.prefill_limit(4096, H200)


def test_a_tied_head_is_read_like_any_other() -> None:
    spec = read_spec(SHAPES["smollm2-135m"])
    cost = ModelCost.of(spec, 4, 4)
    assert cost.body_parameters + cost.head_parameters == pytest.approx(134.5e6, rel=0.001)


def test_limits_of_an_unknown_device_are_measured() -> None:
    limits = device_limits(torch.device("cpu"), torch.float32, probe_bytes=1 << 20)
    assert limits.bytes_per_s > 1e8
    assert limits.flops_per_s > 1e7


def test_random_tensors_are_a_checkpoint_of_the_shape() -> None:
    tensors = dict(random_tensors(SHAPES["tiny"], torch.device("cpu"), torch.float32))
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (64, 128)
    assert tensors["model.norm.weight"].eq(1).all()
    assert "lm_head.weight" in tensors
    assert 0.8 < tensors["lm_head.weight"].std() * 128**0.5 < 1.2


def test_a_model_without_work_keeps_its_layers() -> None:
    spec, least = (read_spec(config) for config in (SHAPES["smollm2-135m"], without_work(SHAPES["smollm2-135m"])))
    assert least.num_layers == spec.num_layers
    assert least.hidden_size < spec.hidden_size


@pytest.mark.parametrize("sharded_path", [False, True])
def test_the_offline_engine_generates_what_is_asked(sharded_path: bool) -> None:
    config = EngineConfig(
        device="cpu", max_batch_size=2, max_total_tokens=64, max_batch_total_tokens=256, num_threads=1
    )
    engine = OfflineEngine.random("tiny", SHAPES["tiny"], "float32", config, sharded_path=sharded_path)
    for prompts in ([[1, 2, 3]], [[4] * 20, [5]]):
        run = engine.run(prompts, 6)
        assert run.num_tokens == sum(step.num_tokens for step in run.steps) == 6 * len(prompts)
        assert len(run.first_token_s) == len(prompts)
        assert all(0 < at <= run.seconds for at in run.first_token_s)


def test_steady_steps_are_those_of_the_full_batch() -> None:
    steps = tuple(StepRecord(1.0, num, 0.5, 0.0, 0.0) for num in (0, 1, *(2,) * 12, 1))
    assert len(BatchRun(1.0, 25, (), steps).steady(2)) == 8


def test_the_rate_of_continuations_is_that_of_full_overlap() -> None:
    early, late = Continuation((0.0, 1.0, 2.0, 3.0)), Continuation((2.0, 3.0, 4.0))
    assert steady_rate([early, late]) == pytest.approx(2.0)
    assert steady_rate([Continuation((0.5, 1.0))]) == pytest.approx(2.0)


def test_a_dry_run_on_the_cpu() -> None:
    work = EngineWorkload("tiny", "float32", "cpu", 16, 6, (1, 2), (32,), 32, 1)
    config = SHAPES["tiny"]
    rows = measure_ours(work, config) + measure_transformers(work, config)
    add_fractions(rows, work, config, DeviceLimits(1e10, 1e11, "made up"))
    kinds = [(row["engine"].split()[0], row["kind"], row.get("batch", row.get("length"))) for row in rows]
    each = [("decode", 1), ("decode", 2), ("prefill", 32)]
    assert kinds == [(engine, *one) for engine in ("tokenwire", "transformers") for one in each]
    assert all(row["tokens_per_s"] > 0 and row["fraction_of_limit"] > 0 for row in rows)
    assert all(row["without_work_ms"] > 0 for row in rows[:2])


@pytest.mark.parametrize("op", OPS)
def test_every_case_of_a_kernel_runs(op: str) -> None:
    setting = Setting(
        spec=read_spec(SHAPES["tiny"]),
        dtype=torch.float32,
        kv_dtype=torch.float32,
        backends={"reference": reference_backend()},
        linear_backends={"reference": reference_backend()},
        num_tokens=(1, 3),
        context=40,
        block_size=16,
    )
    for case in OPS[op](setting):
        assert case.op == op
        assert set(case.runs) == {"reference", "torch"}
        assert case.num_bytes > 0
        for run in case.runs.values():
            run()


def test_every_kernel_names_its_tests() -> None:
    assert set(TESTS) == set(OPS)


def test_a_kernel_with_red_tests_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.kernels._ROOT", tmp_path)
    folder = tmp_path / "tests" / "kernels"
    folder.mkdir(parents=True)
    assert red_tests(["advance"]) == ["advance has no tests that match tests/kernels/test_*advance.py"]
    (folder / "test_advance.py").write_text("def test_good():\n    pass\n")
    assert red_tests(["advance"]) == []
    (folder / "test_advance.py").write_text("def test_bad():\n    assert False\n")
    assert red_tests(["advance"]) == ["tests/kernels/test_advance.py::test_bad"]
