"""A plan is the same after its flat array."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwire_service.core.params import LogprobsParams, SamplingParams
from tokenwire_service.runner.step_plan import decode, encode
from tokenwire_service.scheduling.output import LayerSpan, ScheduledSlot, SchedulerOutput, SlotJoin

ids = st.integers(0, 2**31 - 1)
lists = st.lists(ids, max_size=5).map(tuple)
floats = st.floats(allow_nan=False)
logprobs = st.none() | st.builds(LogprobsParams, top_n=st.integers(0, 20), token_ids=lists)
samplings = st.builds(
    SamplingParams,
    temperature=floats,
    top_k=ids,
    top_p=floats,
    min_p=floats,
    typical_p=floats,
    presence_penalty=floats,
    frequency_penalty=floats,
    context_frequency_penalty=floats,
    repetition_penalty=floats,
    seed=st.integers(0, 2**64 - 1),
    logit_bias=st.lists(st.tuples(ids, floats), max_size=3).map(tuple),
    allowed_token_ids=lists,
)
joins = st.builds(
    SlotJoin,
    slot=ids,
    token_ids=lists,
    num_prompt_tokens=ids,
    block_ids=lists,
    sampling=samplings,
    candidate_index=ids,
    end_token_ids=lists,
    min_tokens=ids,
    logprobs=logprobs,
    prompt_logprobs=logprobs,
)
rows = st.builds(
    ScheduledSlot,
    slot=ids,
    start=ids,
    num_tokens=ids,
    new_block_ids=lists,
    samples=st.booleans(),
    score_prompt=st.booleans(),
    draft_token_ids=lists,
    layers=st.none() | st.builds(LayerSpan, first=ids, end=st.integers(1, 2**31 - 1), completes=st.booleans()),
)
plans = st.builds(
    SchedulerOutput,
    step_id=st.integers(0, 2**63 - 1),
    leaves=lists,
    joins=st.lists(joins, max_size=3).map(tuple),
    scheduled=st.lists(rows, max_size=4).map(tuple),
)


@given(plans, st.lists(ids, max_size=3))
def test_a_plan_survives_its_array(plan: SchedulerOutput, beyond: list[int]) -> None:
    array = encode(plan)
    assert array.dtype == np.int32
    assert decode(array) == plan
    assert decode(np.concatenate([array, np.array(beyond, dtype=np.int32)])) == plan


@given(plans)
def test_a_cut_plan_is_refused(plan: SchedulerOutput) -> None:
    array = encode(plan)
    for size in {0, 1, 7, len(array) // 2, len(array) - 1}:
        cut = array[:size].copy()
        with pytest.raises(ValueError, match="plan"):
            decode(cut)
        if size >= 8:
            cut[0] = size
            with pytest.raises(ValueError, match="plan"):
                decode(cut)


def test_floats_keep_every_bit_and_negative_seeds_their_low_ones() -> None:
    sampling = SamplingParams(temperature=-0.0, top_p=math.inf, min_p=5e-324, seed=-5)
    join = SlotJoin(1, (2,), 1, (), sampling, 0, (), 0, None, LogprobsParams())
    (again,) = decode(encode(SchedulerOutput(3, (), (join,), ()))).joins
    assert again == dataclasses.replace(join, sampling=dataclasses.replace(sampling, seed=2**64 - 5))
    assert math.copysign(1, again.sampling.temperature) == -1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        encode(SchedulerOutput(0, (2**31,), (), ()))
