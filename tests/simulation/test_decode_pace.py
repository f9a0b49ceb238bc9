"""Streams keep their pace while 8k-token prompts are read, on machines whose steps have a price and no clock."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.support.priced_machine import PricedMachine, Prices

SLOWDOWN = 1.8


@dataclass(frozen=True)
class Run:
    machine: PricedMachine
    decoders: list[str]
    began: float
    """When all were decoding."""
    ttfts: list[float]

    def ratio(self) -> float:
        """p99 over p50 of the times between the decoders' tokens, prompts or none."""
        gaps = self.machine.gaps(*self.decoders, since=self.began)
        return gaps[len(gaps) * 99 // 100] / gaps[len(gaps) // 2]

    def plain_share(self) -> float:
        """Of the decoders' steps, those without a prompt."""
        plain = [output for output in self.machine.outputs if output.num_tokens == len(self.decoders)]
        return len(plain) / len(self.machine.outputs)


def decode_among_prompts(
    machine: PricedMachine,
    num_decoders: int,
    *,
    num_prompts: int = 2,
    num_tokens: int = 8000,
    at_once: int = 1,
    pause_s: float = 60.0,
) -> Run:
    """Prompts arrive `pause_s` after the ones before were read."""
    decoders = [f"decoder {number}" for number in range(num_decoders)]
    for name in decoders:
        machine.add(name, 64, 60_000)
    machine.run_while(lambda: not all(machine.token_times[name] for name in decoders))
    began, ttfts = machine.now, []
    for number in range(num_prompts):
        until = machine.now + pause_s
        machine.run_while(lambda until=until: machine.now < until)
        names = [f"prompt {number}.{which}" for which in range(at_once)]
        for name in names:
            machine.add(name, num_tokens, 2)
        machine.run_while(lambda names=names: not all(machine.token_times[name] for name in names))
        ttfts.append(machine.now - machine.arrived[names[0]])
    machine.scheduler.check_integrity()
    return Run(machine, decoders, began, ttfts)


@pytest.mark.parametrize(
    ("num_decoders", "depth", "prices", "pause_s"),
    [
        (4, 1, Prices(), 50.0),
        (4, 2, Prices(noise=0.05, hiccups=0.002), 50.0),
        (32, 1, Prices(noise=0.05), 200.0),
        (32, 2, Prices(), 200.0),
    ],
)
def test_prompts_of_8k_tokens_at_most_double_the_time_between_tokens(
    num_decoders: int, depth: int, prices: Prices, pause_s: float
) -> None:
    run = decode_among_prompts(PricedMachine(SLOWDOWN, prices, depth=depth), num_decoders, pause_s=pause_s)
    assert run.plain_share() > 0.5, "most of the run has no prompt: its p50 is that of plain steps"
    assert 1.7 < run.ratio() <= 2.0
    # A prompt alone takes 8000 tokens at 2.3 ms each.
    assert max(run.ttfts) < 4 * 8000 * 0.0023


def test_chunks_too_dear_for_a_step_go_through_it_a_few_layers_at_a_time() -> None:
    """At a prompt's end a chunk of one token takes twice what the bound allows."""
    prices, plain_s = Prices(chunk_s=0.006, token_s=0.0007, mixed_s=0.0, noise=0.05), 0.014
    whole, layered = (
        decode_among_prompts(PricedMachine(SLOWDOWN, prices, by_layers=by_layers), 4, num_prompts=1, pause_s=1.0)
        for by_layers in (False, True)
    )
    dearest, bounded = (run.machine.gaps(*run.decoders, since=run.began) for run in (whole, layered))
    assert dearest[len(dearest) * 99 // 100] > 2.3 * plain_s
    assert bounded[len(bounded) * 99 // 100] < 2.0 * plain_s
    assert layered.ttfts[0] < whole.ttfts[0] / 2


def test_without_the_bound_they_would_stand_still() -> None:
    run = decode_among_prompts(PricedMachine(0.0, Prices()), 4, num_prompts=1, pause_s=5.0)
    assert run.ratio() > 20


def test_a_faster_or_slower_machine_plans_the_same_steps() -> None:
    def planned(prices: Prices) -> list[list[int]]:
        machine = PricedMachine(SLOWDOWN, prices)
        decode_among_prompts(machine, 4, num_prompts=1, num_tokens=2000, pause_s=1.0 / prices.speed)
        return [[row.num_tokens for row in output.scheduled] for output in machine.outputs]

    assert planned(Prices(speed=64.0)) == planned(Prices()) == planned(Prices(speed=1 / 64))


def test_prompts_that_never_stop_coming_share_the_bound_and_all_end() -> None:
    machine = PricedMachine(SLOWDOWN, Prices(noise=0.05))
    run = decode_among_prompts(machine, 4, num_tokens=2000, at_once=4, pause_s=0.0)
    gaps = machine.gaps(*run.decoders, since=run.began)
    plain_s = 0.014
    assert gaps[len(gaps) * 99 // 100] < 2.1 * plain_s, "though hardly a step is without a prompt"
    assert max(run.ttfts) < 4 * 4 * 2000 * 0.0014


def test_where_the_bound_cannot_be_kept_prompts_still_go_on() -> None:
    """Each mixed step costs three plain ones, however small the chunk."""
    run = decode_among_prompts(
        PricedMachine(SLOWDOWN, Prices(mixed_s=0.028)), 4, num_prompts=1, num_tokens=2000, pause_s=1.0
    )
    steps_with_prompt = [output for output in run.machine.outputs if output.num_tokens > 4]
    assert len(steps_with_prompt) <= 2000 + 2


def test_a_prompt_nobody_waits_beside_takes_whole_steps() -> None:
    machine = PricedMachine(SLOWDOWN, Prices())
    machine.add("alone", 8000, 2)
    machine.run_while(machine.scheduler.has_work)
    assert [output.num_tokens for output in machine.outputs[:15]] == [512] * 15
