"""An engine that repeats the last token of its prompt, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from bench.contenders.worker import Output, Setup, Stopwatch, serve


class Echo:
    def __init__(self, setup: Setup) -> None:
        if setup.options.get("broken"):
            raise ValueError("this engine is broken")
        sys.stdout.write("chatter that must not reach the answers\n")
        time.sleep(setup.options["delay_s"])
        self._child = None
        if megabytes := setup.options.get("child_mb"):
            code = f"x = bytearray({megabytes} * 10**6); x[::4096] = b'1' * len(x[::4096]); input()"
            self._child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        self.settings: dict[str, Any] = setup.options

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing depends on the prompts."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        watch = Stopwatch(len(prompts))
        for _ in range(new_tokens):
            for index, prompt in enumerate(prompts):
                watch.add(index, prompt[-1:])
        return watch.outputs()

    def close(self) -> None:
        if self._child is not None:
            self._child.communicate(b"\n")


if __name__ == "__main__":
    serve(Echo)
