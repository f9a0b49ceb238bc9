"""A machine in which every step has a price, in seconds that pass on a simulated clock; it computes nothing."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from tokenwire_service.core.events import EngineEvent, TokensGenerated
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.scheduling.limits import SchedulerLimits
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, SlotResult, StepResult
from tokenwire_service.scheduling.scheduler import Scheduler

TOKEN_ID = 7
NUM_LAYERS = 30


@dataclass(frozen=True)
class Prices:
    """Of a small model on two cores; `speed` makes all of it faster."""

    step_s: float = 0.008
    row_s: float = 0.0015
    """Of a row that decodes."""
    context_s: float = 0.0
    """Of a token that a decoding row looks back on."""
    mixed_s: float = 0.002
    """Of a step that also computes prompts."""
    token_s: float = 0.001
    """Of a prompt's token at its beginning."""
    token_context: float = 3000.0
    """Tokens before it that make it cost twice as much."""
    chunk_s: float = 0.0
    """Of a chunk at a prompt's beginning, however small, and as much again for each `token_context`: what it reads."""
    tile: int = 1
    """Prompts' tokens are computed in so many at once."""
    noise: float = 0.0
    """Relative standard deviation of a step's time."""
    hiccups: float = 0.0
    """Share of steps that take five times as long."""
    speed: float = 1.0

    def of(self, output: SchedulerOutput, rng: random.Random) -> float:
        """Seconds of one step."""
        decodes = [row for row in output.scheduled if row.samples and row.num_tokens == 1]
        prompts = [row for row in output.scheduled if not (row.samples and row.num_tokens == 1)]
        seconds = self.step_s + sum(self.row_s + self.context_s * row.start for row in decodes)
        if prompts:
            seconds += self.mixed_s + sum(self._of_prompt(row) for row in prompts)
        seconds *= max(rng.gauss(1.0, self.noise), 0.5) * (5.0 if rng.random() < self.hiccups else 1.0)
        return seconds / self.speed

    def _of_prompt(self, row: ScheduledSlot) -> float:
        num_tokens = -(-row.num_tokens // self.tile) * self.tile
        share = 1.0 if row.layers is None else (row.layers.end - row.layers.first) / NUM_LAYERS
        price = self.chunk_s + self.token_s * num_tokens
        return share * price * (1 + (row.start + num_tokens / 2) / self.token_context)


class PricedMachine:
    """A scheduler and the clock; `depth` steps are in flight at most."""

    def __init__(
        self,
        max_decode_slowdown: float,
        prices: Prices,
        *,
        depth: int = 1,
        budget: int = 512,
        check_every: int = 200,
        by_layers: bool = False,
    ) -> None:
        """`by_layers`: a chunk may go through a few of NUM_LAYERS a step."""
        limits = SchedulerLimits(
            16_384,
            32,
            64,
            budget,
            65_536,
            max_decode_slowdown=max_decode_slowdown,
            num_layers=NUM_LAYERS if by_layers else 0,
        )
        self.scheduler = Scheduler(limits)
        self.prices = prices
        self.now = 0.0
        self.num_steps = 0
        self.outputs: list[SchedulerOutput] = []
        self.arrived: dict[str, float] = {}
        self.token_times: defaultdict[str, list[float]] = defaultdict(list)
        self._depth = depth
        self._check_every = check_every
        self._in_flight: deque[tuple[SchedulerOutput, float]] = deque()
        self._rng = random.Random(1)

    def add(self, name: str, num_prompt_tokens: int, max_tokens: int) -> None:
        number = len(self.arrived)
        prompt = (number + 1, *range(num_prompt_tokens - 1))
        request = Request(name, prompt, SamplingParams(), StoppingParams(max_tokens), arrival_time=self.now)
        self.scheduler.add(request, self.now)
        self.arrived[name] = self.now

    def step(self) -> None:
        output = self.scheduler.schedule(self.now)
        self.outputs.append(output)
        if output.scheduled:
            began = max(self.now, self._in_flight[-1][1] if self._in_flight else 0.0)
            self._in_flight.append((output, began + self.prices.of(output, self._rng)))
        if self._in_flight and (len(self._in_flight) == self._depth or not output.scheduled):
            self._update()
        self.num_steps += 1
        if self.num_steps % self._check_every == 0:
            self.scheduler.check_integrity()

    def run_while(self, goes_on: Callable[[], bool], max_steps: int = 200_000) -> None:
        for _ in range(max_steps):
            if not goes_on():
                return
            self.step()
        raise AssertionError("it does not end")

    def gaps(self, *names: str, since: float = 0.0) -> list[float]:
        """Times between these requests' tokens, in ascending order."""
        times = [[time for time in self.token_times[name] if time >= since] for name in names]
        return sorted(later - earlier for one in times for earlier, later in pairwise(one))

    def _update(self) -> None:
        output, self.now = self._in_flight.popleft()
        rows = tuple(SlotResult(row.slot, (TOKEN_ID,) if row.samples else ()) for row in output.scheduled)
        self._take(self.scheduler.update(output, StepResult(output.step_id, rows), self.now))

    def _take(self, events: list[EngineEvent]) -> None:
        for event in events:
            if isinstance(event, TokensGenerated):
                self.token_times[event.request_id] += [self.now] * len(event.token_ids)
