"""The embedded model over the real wire against transformers, and batches against one at a time.

Greedy output is checked by teacher forcing: transformers reads prompt + our tokens in one pass, and each of our tokens
must be its argmax at that place. By induction that is what its own greedy generation would give. A place where the two
likeliest logits are closer than 1e-3 is a near-tie: counted, shown, and allowed either way.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.stack import Stack, running_stack
from tokenwire_client import AsyncClient
from tokenwire_service.config import ModelConfig
from tokenwire_service.weights.resolve import resolve_model

NEAR_TIE = 1e-3
NEW_TOKENS = 64
NEW_TOKENS_ALONE = 32
"""In the tests that also run every request by itself."""
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics state that",
    "Q: What is 17 * 23?\nA:",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8, 13,",
    "The mitochondria is",
    "SELECT name, COUNT(*) FROM orders WHERE",
    "In 1969, the first",
    "Ingredients:\n- 2 cups flour\n- 1 cup sugar\n-",
    "Roses are red, violets are",
    "Le chat est assis sur",
    "The difference between TCP and UDP is that",
    "import numpy as np\n\nx = np.",
    "To be, or not to be, that is",
)


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The embedded model as transformers itself reads its GGUF file."""
    path = resolve_model(ModelConfig()).weight_files[0]
    return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def exact_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same stack, the model in float32."""
    with running_stack(tmp_path_factory.mktemp("exact"), ("--dtype", "float32")) as running:
        yield running


@pytest.fixture
def show(capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line past pytest's capture: the count of near-ties is part of the result."""

    def line(text: str) -> None:
        with capfd.disabled():
            sys.stdout.write(f"\n{text}\n")

    return line


async def generate(
    client: AsyncClient, prompt: str | Sequence[int], max_tokens: int = NEW_TOKENS, **options: Any
) -> list[int]:
    answer = await client.generate(
        prompt, max_tokens=max_tokens, ignore_eos=True, return_token_ids=True, cache_bypass=True, **options
    )
    return list(answer.raw.candidates[0].token_ids)


async def all_at_once(stack: Stack, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[list[int]]:
    async with AsyncClient(stack.grpc) as client:
        return await asyncio.gather(*(generate(client, prompt, **options) for prompt, options in requests))


async def one_at_a_time(stack: Stack, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[list[int]]:
    async with AsyncClient(stack.grpc) as client:
        return [await generate(client, prompt, **options) for prompt, options in requests]


async def tokenized(stack: Stack, prompts: Sequence[str]) -> list[list[int]]:
    async with AsyncClient(stack.grpc) as client:
        return [list((await client.tokenize(prompt)).token_ids) for prompt in prompts]


def logits_after(oracle: Any, prompt: list[int], generated: list[int]) -> torch.Tensor:
    """[len(generated), V]: what transformers would choose each generated token from."""
    with torch.inference_mode():
        ids = torch.tensor([prompt + generated])
        return oracle(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()


async def test_greedy_equals_transformers(exact_stack: Stack, oracle: Any, show: Callable[[str], None]) -> None:
    outputs = await all_at_once(exact_stack, [(prompt, {"temperature": 0}) for prompt in PROMPTS])
    near_ties = 0
    for prompt, generated in zip(await tokenized(exact_stack, PROMPTS), outputs, strict=True):
        assert len(generated) == NEW_TOKENS
        logits = logits_after(oracle, prompt, generated)
        ours = logits[torch.arange(NEW_TOKENS), torch.tensor(generated)]
        gap = logits.max(dim=-1).values - ours
        assert gap.max() < NEAR_TIE, f"token {int(gap.argmax())} is not the likeliest: {float(gap.max())} below it"
        near_ties += int((gap > 0).sum())
    show(
        f"greedy against transformers, {len(PROMPTS)} x {NEW_TOKENS} tokens: {near_ties} near-ties taken the other way"
    )


def first_difference(a: list[int], b: list[int]) -> int | None:
    return next((at for at, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), None)


async def test_32_at_once_equal_one_at_a_time(stack: Stack, oracle: Any, show: Callable[[str], None]) -> None:
    options = {"temperature": 0, "max_tokens": NEW_TOKENS_ALONE}
    requests = [(prompt + suffix, options) for prompt in PROMPTS for suffix in ("", " not")]
    together, alone = await all_at_once(stack, requests), await one_at_a_time(stack, requests)
    near_ties = 0
    for prompt, a, b in zip(await tokenized(stack, [r[0] for r in requests]), together, alone, strict=True):
        at = first_difference(a, b)
        if at is not None:
            logits = logits_after(oracle, prompt, a[: at + 1])[at]
            assert abs(float(logits[a[at]] - logits[b[at]])) < NEAR_TIE
            near_ties += 1
    show(f"32 at once against one at a time, greedy: {near_ties} sequences part at a near-tie")


async def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(stack: Stack, show: Callable[[str], None]) -> None:
    options = {"temperature": 0.9, "top_p": 0.95, "max_tokens": NEW_TOKENS_ALONE}
    requests = [(prompt, options | {"seed": seed}) for seed, prompt in enumerate(PROMPTS)]
    crowd = [(prompt, {"temperature": 1.0, "seed": 1000, "max_tokens": NEW_TOKENS_ALONE}) for prompt in PROMPTS]
    together = (await all_at_once(stack, requests + crowd))[: len(requests)]
    alone = await one_at_a_time(stack, requests)
    parted = [at for a, b in zip(together, alone, strict=True) if (at := first_difference(a, b)) is not None]
    show(f"seeded, alone against in a batch of 32: {len(parted)} of {len(requests)} sequences part, at tokens {parted}")
    assert len(parted) <= 1, "more than near-ties can explain"
