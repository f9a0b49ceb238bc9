"""What is asked of contenders, what their answers become, and the table of ratios."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.contenders.worker import Stopwatch
from bench.peers_list import OURS, contenders
from bench.peers_measure import ENOUGH_S, max_tokens, measure
from bench.peers_process import WorkerProcess
from bench.peers_table import Measure, measures, table
from bench.peers_venv import peer_python
from bench.workload import Workload

ROOT = Path(__file__).parents[2]
WORKLOAD = Workload(prompt_tokens=4, new_tokens=5, concurrency=(1, 2), ttft_prompt_tokens=6, repeats=2)
SETUP = {"model": "none", "threads": 1, "max_sequences": 2, "max_tokens": 64, "options": {"delay_s": 0.0}}


class FakeMemory:
    peak_mb = 10.0
    restarts = 0

    def restart_peak(self) -> None:
        self.restarts += 1
        self.peak_mb = 7.0


class FakeWorker:
    """Answers at once; its clock says what the test wants."""

    def __init__(self, seconds: Iterator[float], missing: int = 0) -> None:
        self.memory = FakeMemory()
        self.asked: list[tuple[int, int]] = []
        self._seconds, self._missing = seconds, missing

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if "prompts" not in message:
            return {"startup_s": 1.5, "versions": {"fake": "1"}, "settings": {}}
        prompts, new_tokens = message["prompts"], message["new_tokens"]
        self.asked.append((len(prompts), new_tokens))
        took = next(self._seconds)
        ids = list(range(new_tokens - self._missing))
        return {"outputs": [{"token_ids": ids, "first_s": took / 5, "last_s": took} for _ in prompts]}


def prompts(num: int, length: int, offset: int) -> list[list[int]]:
    return [[offset] * length for _ in range(num)]


def test_each_figure_is_the_best_of_its_repeats() -> None:
    # Warm-up; 1 stream twice; 2 streams twice; first token twice.
    worker = FakeWorker(iter([9.0, 2.0, 1.0, 4.0, 5.0, 3.0, 2.0]))
    measured = measure(contenders(())[0], worker, SETUP, WORKLOAD, prompts)
    one, two = measured["rows"]
    assert worker.asked == [(2, 8), (1, 5), (1, 5), (2, 5), (2, 5), (1, 1), (1, 1)]
    assert (one["tokens_per_s"], two["tokens_per_s"]) == (5.0, 2.5)
    assert one["decode_tokens_per_s"] == pytest.approx(4 / 0.8)
    assert one["ttft_s"] == two["ttft_s"] == pytest.approx(2.0 / 5)
    assert (one["rss_mb"], one["rss_after_load_mb"], worker.memory.restarts) == (10.0, 7.0, 1)
    assert one["engine"] == OURS
    assert measured["first_output"] == [0, 1, 2, 3, 4]


def test_a_figure_that_took_long_is_not_measured_again() -> None:
    worker = FakeWorker(iter([1.0, ENOUGH_S + 1, 1.0, 1.0, 1.0, 1.0]))
    measured = measure(contenders(())[0], worker, SETUP, WORKLOAD, prompts)
    assert [len(row["runs_s"]) for row in measured["rows"]] == [1, 2]


def test_work_that_was_not_done_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="8 each asked for"):
        measure(contenders(())[0], FakeWorker(iter([1.0]), missing=1), SETUP, WORKLOAD, prompts)


def test_room_for_every_token() -> None:
    assert max_tokens(Workload()) >= 32 * (128 + 128) + 1024


def fake_process(log_dir: Path) -> WorkerProcess:
    """tests/bench/fake_contender.py, run as bench.peers runs bench/contenders."""
    return WorkerProcess(Path(sys.executable), "tests.bench.fake_contender", ROOT, log_dir / "fake.log", 1)


def test_a_contender_in_its_own_process(tmp_path: Path) -> None:
    prompts = [[1, 2], [3, 4, 5]]
    with fake_process(tmp_path) as worker:
        opened = worker.ask(SETUP)
        answer = worker.ask({"prompts": prompts, "new_tokens": 3})
        assert opened["settings"] == {"delay_s": 0.0}
        assert [output["token_ids"] for output in answer["outputs"]] == [[2, 2, 2], [5, 5, 5]]
        assert all(0 <= output["first_s"] <= output["last_s"] <= answer["seconds"] for output in answer["outputs"])
        process = worker._process
    assert process.returncode == 0


def test_the_memory_of_a_process_and_its_children_is_seen(tmp_path: Path) -> None:
    with fake_process(tmp_path) as worker:
        worker.ask(SETUP | {"options": {"delay_s": 0.0, "child_mb": 200}})
        while worker.memory.peak_mb < 200:
            worker.ask({"prompts": [[1]], "new_tokens": 1})
        before = worker.memory.peak_mb
        worker.memory.restart_peak()
    assert before >= 200


def test_a_contender_that_breaks_says_why(tmp_path: Path) -> None:
    with fake_process(tmp_path) as worker, pytest.raises(RuntimeError, match="ValueError: this engine is broken"):
        worker.ask(SETUP | {"options": {"broken": True}})
    assert worker._process.returncode != 0


def test_a_contender_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no answer in 0 s"), fake_process(tmp_path) as worker:
        worker.ask(SETUP | {"options": {"delay_s": 600.0}}, timeout_s=0.3)
    assert worker._process.returncode is not None


def test_stopwatch_keeps_the_first_and_the_last_time() -> None:
    watch = Stopwatch(2)
    watch.add(0, [5], 1.0)
    watch.add(1, [8, 9], 1.5)
    watch.add(0, [6, 7], 3.0)
    first, second = watch.outputs()
    assert (first.token_ids, first.first_s, first.last_s) == ([5, 6, 7], 1.0, 3.0)
    assert (second.token_ids, second.first_s, second.last_s) == ([8, 9], 1.5, 1.5)


def test_a_sequence_without_tokens_is_an_error() -> None:
    watch = Stopwatch(2)
    watch.add(0, [5], 1.0)
    with pytest.raises(RuntimeError, match="no token"):
        watch.outputs()


def row(engine: str, variant: str, concurrency: int, speed: float, **more: Any) -> dict[str, Any]:
    return {
        "engine": engine,
        "variant": variant,
        "precision_class": "full",
        "concurrency": concurrency,
        "tokens_per_s": speed,
        "decode_tokens_per_s": speed,
        "ttft_1024_s": 2.0,
        "rss_mb": 100.0,
    } | more


ROWS = [
    row(OURS, "tokenwire-a", 8, 115.0, rss_mb=90.0, ttft_1024_s=1.9),
    row("openvino", "openvino-a", 8, 100.0, ttft_1024_s=2.0),
    row("llama.cpp", "llamacpp-a", 8, 40.0, ttft_1024_s=4.0, rss_mb=50.0),
]


def test_the_table_takes_the_best_peer_and_says_what_was_met() -> None:
    lines = {line.split("  ")[0]: line for line in table(ROWS).splitlines()}
    assert "115.00 (1.15x) met" in lines["tok/s at 8"]
    assert "100.00 openvino-a" in lines["tok/s at 8"]
    assert "1.90 (0.95x) missed" in lines["TTFT s, long prompt"]
    assert "90.00 (0.90x) met" in lines["RSS MB"], "memory is compared with OpenVINO's alone"


def test_a_class_without_peers_has_no_ratio() -> None:
    assert "no pair to compare" in table([row(OURS, "tokenwire-a", 8, 1.0)])


def test_classes_are_not_mixed() -> None:
    text = table([*ROWS, row("openvino", "openvino-q4", 8, 500.0, precision_class="4bit")])
    assert "115.00 (1.15x) met" in text
    assert "other classes" in text


def test_single_stream_figures_come_from_the_single_stream() -> None:
    rows = [row(OURS, "a", 1, 10.0), row(OURS, "a", 8, 80.0)]
    alone = next(measure for measure in measures(rows) if measure.field == "decode_tokens_per_s")
    assert alone.value(rows) == 10.0


def test_lower_is_better_where_it_is() -> None:
    ttft = Measure("TTFT", "ttft_1024_s", 1, True, 0.9)
    assert ttft.best({"a": 2.0, "b": 1.0}) == ("b", 1.0)
    assert ttft.met(0.9)
    assert not ttft.met(0.91)


def test_every_contender_is_its_own() -> None:
    known = contenders(("int8",))
    assert len({contender.name for contender in known}) == len(known)
    assert {contender.precision_class for contender in known} == {"full", "8bit", "4bit", "bf16"}
    for contender in known:
        assert (ROOT / "bench" / "contenders" / f"{contender.worker}.py").exists()
        assert not contender.venv or (ROOT / "requirements" / f"bench-{contender.venv}.txt").exists()


def test_int8_is_run_once_the_engine_takes_it() -> None:
    assert "tokenwire-int8" in {contender.name for contender in contenders(("int8",))}
    assert "tokenwire-int8" not in {contender.name for contender in contenders(())}


def test_an_environment_that_is_not_there_is_not_made_unasked(tmp_path: Path) -> None:
    (tmp_path / "bench-thing.txt").write_text("thing==1\n")
    with pytest.raises(RuntimeError, match="run without --skip-install"):
        peer_python("thing", tmp_path / "venvs", tmp_path, install=False)
