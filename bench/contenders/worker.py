"""What bench.peers and a contender's process say to each other: one JSON object a line, over stdin and stdout.

    in   {"model", "threads", "max_sequences", "max_tokens", "options"}    once
    out  {"startup_s", "versions", "settings"}
    in   {"prompts": [[token ids]], "new_tokens": n}                       any number of times
    out  {"seconds", "outputs": [{"token_ids", "first_s", "last_s"}]}      times from the hand-over of the prompts
    in   {"stop": true}

An error ends the process; its traceback goes to stderr. Whatever the engine prints goes to stderr too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Protocol


@dataclass(frozen=True)
class Setup:
    """What an engine is opened with."""

    model: str
    """A .gguf file or a directory, as the contender asks for."""
    threads: int
    max_sequences: int
    """Prompts in one call at most."""
    max_tokens: int
    """Tokens of all sequences of one call together, prompts included, at most."""
    options: dict[str, Any]


@dataclass(frozen=True)
class Output:
    """One prompt's continuation. Times are seconds since its call began."""

    token_ids: list[int]
    first_s: float
    last_s: float


class Engine(Protocol):
    """Generates greedily, end tokens ignored, nothing kept from one call to the next."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its speed and its numbers, as it was set."""
        ...

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Whatever must be settled before this call of `generate` and is not part of its time."""
        ...

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        """All prompts at once, `new_tokens` each, in the prompts' order."""
        ...

    def close(self) -> None: ...


class Stopwatch:
    """Notes when each sequence of a call got its first and its last token."""

    def __init__(self, num: int) -> None:
        self._start = time.perf_counter()
        self._outputs: list[Output | None] = [None] * num

    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    def add(self, index: int, token_ids: list[int], at_s: float | None = None) -> None:
        """Tokens that `index` just got, or got at `at_s` seconds."""
        at_s = self.elapsed() if at_s is None else at_s
        known = self._outputs[index]
        first_s, before = (at_s, []) if known is None else (known.first_s, known.token_ids)
        before.extend(token_ids)
        self._outputs[index] = Output(before, first_s, at_s)

    def outputs(self) -> list[Output]:
        """Raises RuntimeError when a sequence got nothing."""
        done = [output for output in self._outputs if output is not None]
        if len(done) != len(self._outputs):
            raise RuntimeError("a sequence got no token")
        return done


def serve(open_engine: Callable[[Setup], Engine], *packages: str) -> None:
    """Answer the parent until it says stop. `packages` are those whose versions it is told."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    start = time.perf_counter()
    engine = open_engine(Setup(**json.loads(sys.stdin.readline())))
    try:
        answer(
            {
                "startup_s": time.perf_counter() - start,
                "versions": {name: metadata.version(name) for name in packages},
                "settings": engine.settings,
            }
        )
        for line in sys.stdin:
            message = json.loads(line)
            if message.get("stop"):
                break
            prompts, new_tokens = message["prompts"], message["new_tokens"]
            engine.prepare(prompts, new_tokens)
            start = time.perf_counter()
            outputs = engine.generate(prompts, new_tokens)
            seconds = time.perf_counter() - start
            answer({"seconds": seconds, "outputs": [asdict(output) for output in outputs]})
    finally:
        engine.close()
