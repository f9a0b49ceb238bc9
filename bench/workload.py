"""Prompts for benchmarks: consecutive windows of a text that ships with Python, as token ids of an exact length."""

from __future__ import annotations

import pydoc_data.topics
from dataclasses import asdict, dataclass
from typing import Protocol


class Encoder(Protocol):
    def __call__(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Workload:
    """Greedy, end tokens ignored, so that every contender does the same work."""

    prompt_tokens: int = 128
    new_tokens: int = 128
    concurrency: tuple[int, ...] = (1, 8, 16, 32)
    ttft_prompt_tokens: int = 1024
    repeats: int = 2
    seed_text: str = "pydoc_data.topics"

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def source_text(num_chars: int = 400_000) -> str:
    """The reference manual's topics in name order: real English and code."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))[:num_chars]


def make_prompts(encode: Encoder, num: int, length: int, offset: int = 0) -> list[list[int]]:
    """`num` different prompts of exactly `length` token ids; another `offset` gives other text."""
    ids = encode(source_text())
    start = offset * length
    windows = [ids[start + i * length : start + (i + 1) * length] for i in range(num)]
    if len(windows[-1]) != length:
        raise ValueError(f"the source text is too short for {num} prompts of {length} tokens at offset {offset}")
    return windows
