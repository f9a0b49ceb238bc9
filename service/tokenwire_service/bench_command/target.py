"""What a load generator needs of a server, however it is spoken to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from tokenwire_service.bench_command.prompts import Job


@dataclass(slots=True, eq=False)
class Answer:
    """One request as the caller saw it. Times are on the monotonic clock, in seconds."""

    job: Job
    due: float
    """When it was to be sent: latencies count from here, so that a generator that falls behind hides nothing."""
    sent: float = 0.0
    ended: float = 0.0
    token_times: list[float] = field(default_factory=list)
    """When each event with text arrived."""
    prompt_tokens: int = 0
    """By the server's usage, like the next two."""
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    """What went wrong, in a word or two that many requests may share; empty for none."""
    message: str = ""
    """The first line of what the server said about it."""

    def arrived(self) -> None:
        """An event with text came just now."""
        self.token_times.append(time.monotonic())

    def failed(self, error: str, message: str) -> None:
        """It ended badly."""
        self.error, self.message = error, (message.splitlines() or [""])[0][:300]


class Target(Protocol):
    """One server."""

    @property
    def description(self) -> str:
        """Where it is and what model answers, once prepared."""
        ...

    async def prepare(self) -> None:
        """Reach the server, learn its model. Raises StartupError with the remedy."""
        ...

    async def count_tokens(self, text: str) -> int:
        """What the server counts for a prompt. Raises StartupError."""
        ...

    async def ask(self, answer: Answer) -> None:
        """Make the request of `answer.job` and fill the answer in; errors too. Raises nothing but cancellation."""
        ...

    async def close(self) -> None: ...
