"""First steps nobody waits for, so that no caller pays for what happens once."""

from __future__ import annotations

from collections.abc import Iterator

from tokenwire_service.core.params import SamplingParams
from tokenwire_service.runner.model_runner import ModelRunner
from tokenwire_service.runner.sizing import EngineSizes
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, SlotJoin

_PROMPT_TOKENS = 16


def warm_up(runner: ModelRunner, sizes: EngineSizes, *, on_gpu: bool) -> None:
    """Prompts, each with a decode after it, in slot 0, which is empty again afterwards; then the recordings. Call
    before the first plan. On a GPU the prompts have all sorts of lengths, because kernels are compiled for some."""
    longest = min(sizes.max_batch_tokens, sizes.max_total_tokens - 1)
    lengths = {min(_PROMPT_TOKENS, longest)}
    if on_gpu:
        lengths |= {min(_PROMPT_TOKENS << shift, longest) for shift in range(1, 20)}
    for number, length in enumerate(sorted(lengths - {0})):
        for output in _prompt_and_decode(3 * number, length, sizes.block_size):
            runner.launch(output).result()
    runner.record()


def _prompt_and_decode(step_id: int, length: int, block_size: int) -> Iterator[SchedulerOutput]:
    join = SlotJoin(
        slot=0,
        token_ids=(0,) * length,
        num_prompt_tokens=length,
        block_ids=tuple(range(-(-(length + 1) // block_size))),
        sampling=SamplingParams(temperature=1.0, top_p=0.9),
        candidate_index=0,
        end_token_ids=(),
        min_tokens=0,
        logprobs=None,
        prompt_logprobs=None,
    )
    yield SchedulerOutput(step_id, (), (join,), (ScheduledSlot(0, 0, length, (), samples=True),))
    yield SchedulerOutput(step_id + 1, (), (), (ScheduledSlot(0, length, 1, (), samples=True),))
    yield SchedulerOutput(step_id + 2, (0,), (), ())
