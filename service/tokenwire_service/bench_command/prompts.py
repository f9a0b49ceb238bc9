"""Prompts of asked-for lengths, out of a text that ships with Python: real English and code, the same everywhere."""

from __future__ import annotations

import math
import pydoc_data.topics
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tokenwire_service.bench_command.settings import Workload

# Lengths in ShareGPT's conversations are about log-normal: most are short, a few very long.
PROMPT_SPREAD, OUTPUT_SPREAD = 1.1, 0.8
LEAST_TOKENS, MOST_TIMES_MEAN = 4, 8


@dataclass(frozen=True, slots=True)
class Job:
    """One request to make."""

    prompt: str
    prompt_tokens: int
    """As asked for; what the server counts may differ a little."""
    output_tokens: int
    group: str = ""
    """Which part of a mixed load it belongs to."""


def source_text() -> str:
    """The reference manual's topics in name order."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


class PromptWriter:
    """Cuts prompts out of the text, each from another place, so that no two begin alike."""

    def __init__(self, chars_per_token: float, seed: int) -> None:
        """`chars_per_token` is the server's own measure of the text."""
        self._text = source_text()
        self._chars_per_token = chars_per_token
        self._chance = random.Random(seed)
        self._starts = [match.start() for match in re.finditer(r"\S+", self._text)]
        self._chance.shuffle(self._starts)
        self._num_taken = 0

    def write(self, num_tokens: int) -> str:
        """A text of about `num_tokens` tokens, at least one word long."""
        size = max(round(num_tokens * self._chars_per_token), 1)
        start = self._starts[self._num_taken % len(self._starts)]
        self._num_taken += 1
        # A long text goes on from the beginning.
        whole = self._text[start : start + size]
        while len(whole) < size:
            whole += self._text[: size - len(whole)]
        return whole.rstrip() or whole


def jobs(workload: Workload, writer: PromptWriter) -> Iterator[Job]:
    """Requests without end; the same ones for the same seed."""
    chance = random.Random(workload.seed + 1)
    prefix = writer.write(workload.prefix_tokens) if workload.kind == "shared-prefix" else ""
    while True:
        if workload.kind == "sharegpt-like":
            prompt_tokens = _drawn(chance, workload.prompt_tokens, PROMPT_SPREAD)
            output_tokens = _drawn(chance, workload.output_tokens, OUTPUT_SPREAD)
            yield Job(writer.write(prompt_tokens), prompt_tokens, output_tokens)
        elif workload.kind == "fixed":
            yield Job(writer.write(workload.prompt_tokens), workload.prompt_tokens, workload.output_tokens)
        else:
            hit = chance.random() < workload.prefix_share
            before = prefix if hit else writer.write(workload.prefix_tokens)
            yield Job(
                f"{before}\n\n{writer.write(workload.prompt_tokens)}",
                workload.prefix_tokens + workload.prompt_tokens,
                workload.output_tokens,
                "prefix" if hit else "other",
            )


def _drawn(chance: random.Random, mean: int, spread: float) -> int:
    """Log-normal around the mean, cut at the ends."""
    drawn = chance.lognormvariate(math.log(mean) - spread * spread / 2, spread)
    return max(min(round(drawn), mean * MOST_TIMES_MEAN), min(LEAST_TOKENS, mean))
