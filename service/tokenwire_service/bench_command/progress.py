"""How a benchmark goes on, while it does: one line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import time
from typing import TextIO

from tokenwire_service.bench_command.report import bars, seconds_text
from tokenwire_service.bench_command.runner import Run
from tokenwire_service.bench_command.summary import Distribution, ttft_of

TERMINAL_INTERVAL_S, LOG_INTERVAL_S = 0.25, 10.0
NUM_SAMPLES = 24
RECENT = 100


class Progress:
    """Tells about a run until it is cancelled."""

    def __init__(self, run: Run, duration_s: float, out: TextIO) -> None:
        self._run = run
        self._duration_s = duration_s
        self._out = out
        self._live = out.isatty()
        self._rates: list[float] = []
        self._last = (time.monotonic(), 0)

    async def follow(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(TERMINAL_INTERVAL_S if self._live else LOG_INTERVAL_S)
            line = self.line()
            self._out.write(f"\r\x1b[2K{line}" if self._live else f"{line}\n")
            self._out.flush()

    def clear(self) -> None:
        """Leave the terminal's line empty."""
        if self._live:
            self._out.write("\r\x1b[2K")
            self._out.flush()

    def line(self) -> str:
        """What there is to say now."""
        run = self._run
        errors = sum(1 for answer in run.answers if answer.error)
        recent = [answer for answer in run.answers[-RECENT:] if answer.token_times]
        ttft = Distribution.of(ttft_of(answer) for answer in recent)
        self._sample()
        phase = "waiting for the last" if run.ending else f"{min(run.seconds / self._duration_s, 1):4.0%}"
        told = f"{run.load.label}  {phase}  {len(run.running)} running  {len(run.answers)} done"
        told += f"  {errors} errors" if errors else ""
        told += f"  TTFT {seconds_text(ttft.p50)}" if ttft.count else ""
        return f"{told}  {bars(self._rates)} {self._rates[-1]:.0f} events/s"

    def _sample(self) -> None:
        """Events with text since the last sample; those of requests under way too."""
        run, (then, before) = self._run, self._last
        num = sum(len(answer.token_times) for answer in (*run.answers, *run.running))
        now = time.monotonic()
        self._last = (now, num)
        self._rates = [*self._rates, (num - before) / max(now - then, 1e-6)][-NUM_SAMPLES:]
