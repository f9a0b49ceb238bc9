"""First steps nobody waits for, so that no caller pays for what happens once."""

from __future__ import annotations

from tokenwire_service.core.params import SamplingParams
from tokenwire_service.runner.model_runner import ModelRunner
from tokenwire_service.runner.sizing import EngineSizes
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, SlotJoin

_PROMPT_TOKENS = 16


def warm_up(runner: ModelRunner, sizes: EngineSizes) -> None:
    """A short prompt and one decode in slot 0, which is empty again afterwards. Call before the first plan."""
    length = min(_PROMPT_TOKENS, sizes.max_batch_tokens, sizes.max_total_tokens - 1)
    if length < 1:
        return
    blocks = tuple(range(-(-(length + 1) // sizes.block_size)))
    join = SlotJoin(
        slot=0,
        token_ids=(0,) * length,
        num_prompt_tokens=length,
        block_ids=blocks,
        sampling=SamplingParams(temperature=1.0, top_p=0.9),
        candidate_index=0,
        end_token_ids=(),
        min_tokens=0,
        logprobs=None,
        prompt_logprobs=None,
    )
    runner.execute(SchedulerOutput(0, (), (join,), (ScheduledSlot(0, 0, length, (), samples=True),)))
    runner.execute(SchedulerOutput(1, (), (), (ScheduledSlot(0, length, 1, (), samples=True),)))
    runner.execute(SchedulerOutput(2, (0,), (), ()))
