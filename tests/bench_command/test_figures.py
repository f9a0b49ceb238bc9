"""From answers to figures, text and pictures."""

import io
import json
import math
import random
import xml.etree.ElementTree as ElementTree

import pytest

from tokenwire_service.bench_command.command import Findings, findings_json
from tokenwire_service.bench_command.plot import plot
from tokenwire_service.bench_command.progress import Progress
from tokenwire_service.bench_command.prompts import Job
from tokenwire_service.bench_command.report import bars, bins, report, seconds_text
from tokenwire_service.bench_command.runner import Run
from tokenwire_service.bench_command.settings import Endpoint, Load, Settings, Slo, Workload
from tokenwire_service.bench_command.summary import Distribution, summarise
from tokenwire_service.bench_command.target import Answer

TWO_A_SECOND, NO_SLO = Load(rate=2.0), Slo()


def answer(due: float, times: list[float], *, error: str = "", group: str = "", tokens: int = 0) -> Answer:
    """Sent 1 ms late, ended with its last event."""
    made = Answer(Job("a prompt", 10, len(times), group), due, sent=due + 0.001, ended=(times or [due + 0.5])[-1])
    made.token_times = times
    made.prompt_tokens, made.cached_tokens, made.output_tokens = 12, 6, tokens or len(times)
    if error:
        made.failed(error, f"{error} was said\nand more")
    return made


def a_run(load: Load = TWO_A_SECOND) -> Run:
    answers = [
        answer(100.0, [100.1, 100.2, 100.4], group="a"),
        answer(101.0, [103.0, 103.1, 103.2, 103.3], group="b"),
        answer(102.0, [], error="QUEUE_FULL", group="b"),
    ]
    return Run(load, began=100.0, ended=104.0, ending=True, answers=answers)


def test_percentiles_are_values_that_were_seen() -> None:
    chance = random.Random(3)
    for size in (1, 2, 3, 10, 99, 100, 101, 1000):
        values = [chance.random() for _ in range(size)]
        found = Distribution.of(values)
        for share, told in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
            assert sum(value <= told for value in values) >= share * size
            assert sum(value < told for value in values) < share * size
            assert told in values
        assert found.max == max(values)
        assert found.mean == pytest.approx(sum(values) / size)


def test_of_nothing_everything_is_zero() -> None:
    assert Distribution.of([]) == Distribution()
    assert summarise(Run(Load(rate=1.0), began=1.0, ended=2.0), Slo()).requests_per_s == 0


def test_a_summary_counts_from_when_requests_were_due() -> None:
    summary = summarise(a_run(), Slo(ttft_s=1.0, itl_s=0.2))
    assert (summary.requests, summary.completed, summary.errors) == (3, 2, {"QUEUE_FULL": 1})
    assert summary.ttft.p50 == pytest.approx(0.1)
    assert summary.ttft.max == pytest.approx(2.0)
    assert summary.itl.count == 5
    assert summary.itl.max == pytest.approx(0.2)
    assert summary.tpot.max == pytest.approx(0.15)
    assert summary.e2e.max == pytest.approx(2.3)
    assert summary.lag.mean == pytest.approx(0.001)
    assert summary.requests_per_s == pytest.approx(0.5)
    assert summary.output_tokens_per_s == pytest.approx(7 / 4)
    assert summary.prompt_tokens_per_s == pytest.approx(6.0)
    assert (summary.asked_prompt_tokens, summary.prompt_tokens, summary.cached_share) == (10, 12, 0.5)
    # One was too late for the SLO, one failed.
    assert summary.good_requests_per_s == pytest.approx(0.25)
    assert summary.good_share == pytest.approx(1 / 3)


def test_a_mean_time_for_a_token_minds_events_with_several() -> None:
    run = Run(Load(rate=1.0), began=0.0, ended=9.0, answers=[answer(0.0, [1.0, 2.0, 3.0], tokens=5)])
    assert summarise(run, Slo()).tpot.p50 == pytest.approx(0.5)
    assert summarise(run, Slo()).itl.p50 == pytest.approx(1.0)


def test_an_slo_for_tokens_counts_by_the_mean() -> None:
    assert summarise(a_run(), Slo(itl_s=0.14)).good_share == pytest.approx(1 / 3)
    assert summarise(a_run(), Slo(itl_s=0.16)).good_share == pytest.approx(2 / 3)


def test_a_group_alone() -> None:
    assert summarise(a_run(), Slo(), "b").requests == 2
    assert summarise(a_run(), Slo(), "none").requests == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "12.3 ms"), (0.25, "250 ms"), (1.234, "1.23 s"), (123.4, "123 s")]
)
def test_seconds_are_told_in_their_unit(value: float, text: str) -> None:
    assert seconds_text(value) == text


def test_bins_hold_every_value() -> None:
    counts, low, high = bins([0.001, 0.001, 0.01, 0.1], 3)
    assert counts == [2, 1, 1]
    assert (low, high) == (0.001, 0.1)
    assert sum(bins([0.0, 5.0])[0]) == 2
    assert sum(bins([2.0])[0]) == 1


def test_bars_are_as_high_as_their_values() -> None:
    assert bars([0, 1, 4, 8]) == " ▂▅█"
    assert bars([0, 0]) == "  "
    assert bars([]) == ""


def settings(*loads: Load, slo: Slo = NO_SLO) -> Settings:
    return Settings(Endpoint(api_key="a secret"), Workload(), loads, slo)


def test_a_report_of_one_load() -> None:
    asked = settings(Load(rate=2.0), slo=Slo(ttft_s=1.0))
    run = a_run()
    text = report(asked, [run], [summarise(run, asked.slo)])
    assert "2 requests/s · 3 requests in 4.00 s, 1 errors" in text
    assert "first token           100 ms" in text
    assert "QUEUE_FULL        1 times, first: QUEUE_FULL was said" in text
    assert "and more" not in text
    assert "goodput           0.25 requests/s, 33.3% of all, within 1.00 s to the first token" in text


def test_a_report_of_several_loads_ends_with_a_line_for_each() -> None:
    runs = [a_run(Load(concurrency=number)) for number in (1, 4)]
    asked = settings(*(run.load for run in runs))
    lines = report(asked, runs, [summarise(run, asked.slo) for run in runs]).splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["load", "1 at once", "4 at once"]
    assert "goodput" not in lines[-3]


def test_a_late_generator_is_told() -> None:
    late = answer(0.0, [1.0])
    late.sent = 0.5
    run = Run(Load(rate=1.0), began=0.0, ended=1.0, answers=[late])
    assert "up to 500 ms late" in report(settings(run.load), [run], [summarise(run, Slo())])


def test_findings_are_plain_json_without_the_key() -> None:
    run = a_run()
    asked = settings(run.load, slo=Slo(ttft_s=2.0))
    text = json.dumps(findings_json(asked, Findings("here", (run,), (summarise(run, asked.slo),))), allow_nan=False)
    found = json.loads(text)
    assert "a secret" not in text
    assert found["slo_ms"] == {"ttft": 2000.0, "itl": None}
    assert found["rows"][0]["ttft"]["p50"] == pytest.approx(0.1)


@pytest.mark.parametrize("loads", [[Load(rate=2.0)], [Load(rate=1.0), Load(rate=4.0), Load(rate=2.0)]])
def test_a_plot_is_a_picture_on_its_own(loads: list[Load]) -> None:
    runs = [a_run(load) for load in loads]
    text = plot("a <title>", "of & by", runs, [summarise(run, Slo()) for run in runs])
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [element.text for element in root.iter() if element.text and element.text.strip()]
    assert "a <title>" in words
    assert "of & by" in words
    assert "href" not in text
    for coordinate in (
        part for element in root.iter() for part in (element.get("points") or "").replace(",", " ").split()
    ):
        assert math.isfinite(float(coordinate))
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == (0 if len(loads) == 1 else 7)


def test_a_plot_of_nothing_says_so() -> None:
    run = Run(Load(rate=1.0), began=0.0, ended=1.0)
    assert "nothing to show" in plot("t", "s", [run], [summarise(run, Slo())])


def test_progress_tells_what_runs() -> None:
    run = a_run()
    run.ending = False
    run.ended = 0.0
    run.running.add(answer(103.0, [103.5]))
    line = Progress(run, 30.0, io.StringIO()).line()
    assert "2 requests/s" in line
    assert "1 running  3 done  1 errors" in line
    assert "TTFT 100 ms" in line
