"""What is asked for, how long, and when."""

import asyncio
import itertools
import random
import statistics
from collections.abc import Iterator

import pytest

from tokenwire_service.bench_command.prompts import Job, PromptWriter, jobs
from tokenwire_service.bench_command.runner import Run, run_load
from tokenwire_service.bench_command.settings import Endpoint, Load, Settings, Slo, Workload, loads_of
from tokenwire_service.bench_command.target import Answer
from tokenwire_service.errors import ConfigError


def some(workload: Workload, num: int) -> list[Job]:
    return list(itertools.islice(jobs(workload, PromptWriter(4.0, workload.seed)), num))


def test_the_same_seed_gives_the_same_requests() -> None:
    for kind in ("sharegpt-like", "fixed", "shared-prefix"):
        assert some(Workload(kind, seed=5), 20) == some(Workload(kind, seed=5), 20)
        assert some(Workload(kind, seed=5), 20) != some(Workload(kind, seed=6), 20)


def test_fixed_prompts_are_as_long_as_asked_and_begin_differently() -> None:
    made = some(Workload("fixed", prompt_tokens=50, output_tokens=7), 300)
    assert all(120 < len(job.prompt) <= 200 for job in made)
    assert {(job.prompt_tokens, job.output_tokens) for job in made} == {(50, 7)}
    assert len({job.prompt[:60] for job in made}) > 290


def test_conversations_lengths_spread_around_their_means() -> None:
    made = some(Workload("sharegpt-like", prompt_tokens=160, output_tokens=128), 4000)
    prompts, outputs = [job.prompt_tokens for job in made], [job.output_tokens for job in made]
    assert statistics.mean(prompts) == pytest.approx(160, rel=0.1)
    assert statistics.mean(outputs) == pytest.approx(128, rel=0.1)
    assert statistics.median(prompts) < 110
    assert min(prompts) >= 4
    assert max(prompts) <= 8 * 160


def test_a_mean_of_one_token_is_kept() -> None:
    assert {job.output_tokens for job in some(Workload(output_tokens=1), 50)} <= set(range(1, 9))


def test_nine_in_ten_share_their_beginning() -> None:
    made = some(Workload("shared-prefix", prompt_tokens=10, prefix_tokens=100, prefix_share=0.9), 1000)
    groups = {name: [job for job in made if job.group == name] for name in ("prefix", "other")}
    assert 870 <= len(groups["prefix"]) <= 930
    assert len({job.prompt[:390] for job in groups["prefix"]}) == 1
    assert len({job.prompt for job in groups["prefix"]}) == len(groups["prefix"])
    assert len({job.prompt[:390] for job in groups["other"]}) == len(groups["other"])
    assert {job.prompt_tokens for job in made} == {110}


def test_a_prompt_may_be_longer_than_the_text() -> None:
    assert len(PromptWriter(4.0, 0).write(400_000)) == pytest.approx(1_600_000, abs=5)


def test_loads_come_from_one_flag() -> None:
    assert loads_of("", "") == (Load(rate=1.0),)
    assert loads_of("0.5,2", "") == (Load(rate=0.5), Load(rate=2.0))
    assert loads_of("", "1,8") == (Load(concurrency=1), Load(concurrency=8))
    with pytest.raises(ConfigError, match="exclude each other"):
        loads_of("1", "1")
    with pytest.raises(ConfigError, match=r"--concurrency '1\.5'"):
        loads_of("", "1.5")


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"workload": Workload(kind="other")}, "--workload"),
        ({"workload": Workload(prompt_tokens=0)}, "--prompt-tokens"),
        ({"workload": Workload(output_tokens=0)}, "--output-tokens"),
        ({"workload": Workload(prefix_tokens=0)}, "--prefix-tokens"),
        ({"workload": Workload(prefix_share=1.5)}, "--prefix-share"),
        ({"endpoint": Endpoint(api="other")}, "--api"),
        ({"endpoint": Endpoint(target="ftp://x")}, "--target"),
        ({"endpoint": Endpoint(target="https://x", tls=True)}, "--tls"),
        ({"endpoint": Endpoint(timeout_s=0)}, "--timeout"),
        ({"loads": ()}, "--rate"),
        ({"loads": (Load(rate=-1),)}, "--rate"),
        ({"loads": (Load(),)}, "--rate"),
        ({"loads": (Load(rate=float("nan")),)}, "--rate"),
        ({"loads": (Load(concurrency=-1),)}, "--concurrency"),
        ({"slo": Slo(ttft_s=0)}, "--slo-ttft-ms"),
        ({"duration_s": 0}, "--duration"),
        ({"max_requests": -1}, "--requests"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_flag(change: dict[str, object], flag: str) -> None:
    good: dict[str, object] = {"endpoint": Endpoint(), "workload": Workload(), "loads": (Load(rate=1.0),)}
    Settings(**good).validate()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=flag):
        Settings(**(good | change)).validate()  # type: ignore[arg-type]


class PlainTarget:
    """Answers after a while, and knows how many were there at once."""

    description = "plain"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.now = self.most = 0

    async def prepare(self) -> None: ...

    async def count_tokens(self, text: str) -> int:
        return len(text)

    async def ask(self, answer: Answer) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self._seconds)
            answer.arrived()
        finally:
            self.now -= 1

    async def close(self) -> None: ...


def endless() -> Iterator[Job]:
    return itertools.repeat(Job("x", 1, 1))


async def test_a_closed_loop_keeps_its_number_busy() -> None:
    target, run = PlainTarget(0.005), Run(Load(concurrency=3))
    await run_load(target, run.load, endless(), 0.2, 0, 0, run)
    assert target.most == 3
    assert len(run.answers) > 6
    assert not run.running
    assert run.ending
    assert run.ended >= max(answer.ended for answer in run.answers)


async def test_a_closed_loop_stops_at_its_number_of_requests() -> None:
    run = Run(Load(concurrency=4))
    await run_load(PlainTarget(0.001), run.load, endless(), 60.0, 10, 0, run)
    assert len(run.answers) == 10


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    class Patient(PlainTarget):
        """Answers nobody before all are there."""

        async def ask(self, answer: Answer) -> None:
            self.now += 1
            if self.now == 40:
                complete.set()
            await complete.wait()

    complete = asyncio.Event()
    run = Run(Load(rate=200.0))
    await run_load(Patient(0.0), run.load, endless(), 60.0, 40, 7, run)
    assert len(run.answers) == 40


async def test_arrivals_are_poissons() -> None:
    run = Run(Load(rate=400.0))
    await run_load(PlainTarget(0.0), run.load, endless(), 60.0, 100, 7, run)
    chance, due, expected = random.Random(7), 0.0, []
    for _ in range(100):
        due += chance.expovariate(400.0)
        expected.append(due)
    dues = sorted(answer.due - run.began for answer in run.answers)
    assert dues == pytest.approx(expected, abs=1e-6)
    assert all(answer.sent >= answer.due for answer in run.answers)


async def test_an_open_loop_ends_with_its_duration() -> None:
    run = Run(Load(rate=100.0))
    await run_load(PlainTarget(0.0), run.load, endless(), 0.2, 0, 1, run)
    assert 0 < len(run.answers) < 60
    assert all(answer.due < run.began + 0.2 for answer in run.answers)
