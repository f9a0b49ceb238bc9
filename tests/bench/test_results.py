"""Result files: what they say, how two are compared, and what is drawn of them."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench import record
from bench.compare import changes, differences, only_in_one
from bench.plot import charts
from bench.plot_svg import Bar, Chart, Group, draw

SVG = "{http://www.w3.org/2000/svg}"


def row(**more: Any) -> dict[str, Any]:
    return {"engine": "tokenwire", "concurrency": 8, "tokens_per_s": 100.0} | more


def test_a_result_says_where_and_of_what_it_is(tmp_path: Path) -> None:
    path = record.write("thing", {"prompts": 3}, [row()], ("torch",), more={"device": "cpu"}, path=tmp_path / "a" / "b")
    said = json.loads(path.read_text())
    assert set(said) == {"kind", "date", "commit", "machine", "versions", "workload", "device", "rows"}
    assert said["rows"] == [row()]
    assert said["machine"]["cores"] >= 1
    assert said["versions"]["torch"]


def verdicts(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    return {change.figure: change.verdict for change in changes([before], [after], 0.05)}


def test_a_change_within_the_band_says_nothing() -> None:
    assert verdicts(row(), row(tokens_per_s=104.0)) == {"tokens_per_s": "same"}
    assert verdicts(row(), row(tokens_per_s=106.0)) == {"tokens_per_s": "better"}
    assert verdicts(row(), row(tokens_per_s=94.0)) == {"tokens_per_s": "worse"}


def test_the_runs_of_either_side_widen_the_band() -> None:
    noisy = row(tokens_per_s=110.0, runs_s=[1.0, 1.2])
    assert verdicts(row(), noisy) == {"tokens_per_s": "same"}
    assert verdicts(noisy, row()) == {"tokens_per_s": "same"}
    assert verdicts(row(), row(tokens_per_s=110.0, runs_s=[1.0, 1.01])) == {"tokens_per_s": "better"}


def test_less_is_better_of_times_and_memory() -> None:
    assert verdicts(row(rss_mb=100.0), row(rss_mb=50.0))["rss_mb"] == "better"
    assert verdicts(row(ttft_1024_s=1.0), row(ttft_1024_s=2.0))["ttft_1024_s"] == "worse"


def test_rows_are_matched_by_what_they_are_of() -> None:
    before, after = [row(), row(concurrency=16)], [row(), row(concurrency=32)]
    assert [change.row for change in changes(before, after, 0.05)] == ["tokenwire 8"]
    assert only_in_one(before, after) == ["tokenwire 16", "tokenwire 32"]


def test_doubtful_comparisons_are_named() -> None:
    one = {"kind": "peers", "machine": {"cpu": "a"}, "workload": {}}
    assert list(differences(one, one)) == []
    assert next(differences(one, one | {"machine": {"cpu": "b"}})).startswith("machine differs")


PEERS = {
    "kind": "peers",
    "machine": {"cores": 2},
    "workload": {"prompt_tokens": 128, "new_tokens": 128},
    "rows": [
        {
            "engine": engine,
            "variant": f"{engine}-<f32>",
            "precision_class": "full",
            "concurrency": num,
            "tokens_per_s": 10.0 * num,
            "decode_tokens_per_s": 5.0,
            "ttft_1024_s": 1.0,
            "rss_mb": 700.0,
        }
        for engine in ("tokenwire", "other")
        for num in (1, 8)
    ],
}


def test_charts_of_peers() -> None:
    drawn = dict(charts(PEERS))
    assert set(drawn) == {"peers-full-throughput", "peers-full-alone"}
    assert [group.label for group in drawn["peers-full-throughput"].groups] == ["1 at once", "8 at once"]
    for chart in drawn.values():
        ET.fromstring(draw(chart))


def test_charts_of_the_engine() -> None:
    row = {"engine": "tokenwire", "kind": "decode", "batch": 32, "fraction_of_limit": 0.8}
    result = {
        "kind": "engine-x",
        "device": "cpu",
        "limits": {},
        "workload": {"model": "x", "context": 4},
        "rows": [row],
    }
    ((name, chart),) = charts(result)
    assert (name, chart.groups[0].bars[0].value) == ("engine-x", 80.0)


def test_results_without_a_chart_have_none() -> None:
    assert list(charts({"kind": "frontend", "rows": []})) == []


@pytest.mark.parametrize(("own_scale", "expected"), [(False, [480.0, 240.0]), (True, [480.0, 480.0])])
def test_bars_are_as_long_as_their_values(own_scale: bool, expected: list[float]) -> None:
    groups = tuple(Group(str(value), (Bar("a", value, True),), own_scale) for value in (10.0, 5.0))
    widths = [float(rect.get("width", "")) for rect in ET.fromstring(draw(Chart("t", "u", groups))).iter(f"{SVG}rect")]
    assert [width / widths[0] for width in widths] == [each / 480.0 for each in expected]


def test_text_in_charts_is_escaped() -> None:
    svg = draw(Chart("a < b & c", "u", (Group("<g>", (Bar("x", 0.0, False),)),)))
    assert "a < b" not in "".join(svg.splitlines()[0:1])
    assert [title.text for title in ET.fromstring(svg).iter(f"{SVG}title")] == ["a < b & c"]
