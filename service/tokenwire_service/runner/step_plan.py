"""A plan as one flat int32 array, which is what other ranks are sent. Loses nothing: floats travel as their bits,
64-bit numbers as two words (a seed as its low 64 bits), lists behind their length.

    size of the whole, step id (2), counts of leaves, joins, rows, new blocks, guesses
    leaves · rows (columns of slot, start, num_tokens, flags, number of new blocks, number of guesses, first layer and
    end layer, both 0 for all)
    new blocks of all rows · guesses of all rows · joins
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwire_service.core.params import LogprobsParams, SamplingParams
from tokenwire_service.scheduling.output import LayerSpan, ScheduledSlot, SchedulerOutput, SlotJoin

_NUM_COLUMNS = 8
_SAMPLES, _SCORES, _COMPLETES = 1, 2, 4
_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "context_frequency_penalty",
    "repetition_penalty",
)
_HEAD = 8


def encode(output: SchedulerOutput) -> NDArray[np.int32]:
    """The plan's array. Raises OverflowError for a number that int32, or a seed that 64 bits, cannot hold."""
    rows = output.scheduled
    table = [
        (
            row.slot,
            row.start,
            row.num_tokens,
            _flags(row),
            len(row.new_block_ids),
            len(row.draft_token_ids),
            *((row.layers.first, row.layers.end) if row.layers else (0, 0)),
        )
        for row in rows
    ]
    new_blocks = list(chain.from_iterable(row.new_block_ids for row in rows))
    guesses = list(chain.from_iterable(row.draft_token_ids for row in rows))
    joins: list[int] = []
    for join in output.joins:
        _put_join(joins, join)
    columns = np.array(table, dtype=np.int32).reshape(-1, _NUM_COLUMNS).T.ravel()
    counts = [len(output.leaves), len(output.joins), len(rows), len(new_blocks), len(guesses)]
    size = _HEAD + len(output.leaves) + len(columns) + len(new_blocks) + len(guesses) + len(joins)
    head = np.array([size, *_words("q", output.step_id), *counts], dtype=np.int32)
    rest = [np.array(part, dtype=np.int32) for part in (new_blocks, guesses, joins)]
    return np.concatenate([head, np.array(output.leaves, dtype=np.int32), columns, *rest])


def decode(array: NDArray[np.int32]) -> SchedulerOutput:
    """The plan `encode` made `array` of; what follows its end is not looked at. Raises ValueError for anything else."""
    if len(array) < _HEAD or not _HEAD <= (size := int(array[0])) <= len(array):
        raise ValueError(f"{len(array)} words are no plan")
    words = array[:size].tolist()
    step_id, (num_leaves, num_joins, num_rows, num_blocks, num_guesses) = _number("q", words[1:3]), words[3:_HEAD]
    parts = iter(words[_HEAD:])
    leaves = _take(parts, num_leaves)
    columns = [_take(parts, num_rows) for _ in range(_NUM_COLUMNS)]
    new_blocks, guesses = iter(_take(parts, num_blocks)), iter(_take(parts, num_guesses))
    scheduled = tuple(
        ScheduledSlot(
            slot,
            start,
            num_tokens,
            _take(new_blocks, row_blocks),
            bool(flags & _SAMPLES),
            bool(flags & _SCORES),
            _take(guesses, row_guesses),
            LayerSpan(first, end, bool(flags & _COMPLETES)) if end else None,
        )
        for slot, start, num_tokens, flags, row_blocks, row_guesses, first, end in zip(*columns, strict=True)
    )
    joins = tuple(_take_join(parts) for _ in range(num_joins))
    if next(parts, None) is not None:
        raise ValueError("words are left over after the plan's last part")
    return SchedulerOutput(step_id, leaves, joins, scheduled)


def _flags(row: ScheduledSlot) -> int:
    completes = row.layers is not None and row.layers.completes
    return _SAMPLES * row.samples + _SCORES * row.score_prompt + _COMPLETES * completes


def _put_join(words: list[int], join: SlotJoin) -> None:
    sampling = join.sampling
    words += (join.slot, join.num_prompt_tokens, join.candidate_index, join.min_tokens, sampling.top_k)
    words += _words("Q", sampling.seed & ((1 << 64) - 1))
    for name in _FLOATS:
        words += _words("d", getattr(sampling, name))
    _put_list(words, join.token_ids)
    _put_list(words, join.block_ids)
    _put_list(words, join.end_token_ids)
    _put_list(words, sampling.allowed_token_ids)
    _put_list(words, [token_id for token_id, _ in sampling.logit_bias])
    for _, bias in sampling.logit_bias:
        words += _words("d", bias)
    for wanted in (join.logprobs, join.prompt_logprobs):
        words.append(-1 if wanted is None else wanted.top_n)
        _put_list(words, () if wanted is None else wanted.token_ids)


def _take_join(words: Iterator[int]) -> SlotJoin:
    slot, num_prompt_tokens, candidate_index, min_tokens, top_k = _take(words, 5)
    seed = _number("Q", _take(words, 2))
    floats = {name: _number("d", _take(words, 2)) for name in _FLOATS}
    token_ids, block_ids, end_token_ids, allowed, biased = (_take_list(words) for _ in range(5))
    bias = tuple((token_id, _number("d", _take(words, 2))) for token_id in biased)
    return SlotJoin(
        slot=slot,
        token_ids=token_ids,
        num_prompt_tokens=num_prompt_tokens,
        block_ids=block_ids,
        sampling=SamplingParams(top_k=top_k, seed=seed, logit_bias=bias, allowed_token_ids=allowed, **floats),
        candidate_index=candidate_index,
        end_token_ids=end_token_ids,
        min_tokens=min_tokens,
        logprobs=_take_logprobs(words),
        prompt_logprobs=_take_logprobs(words),
    )


def _take_logprobs(words: Iterator[int]) -> LogprobsParams | None:
    (top_n,), token_ids = _take(words, 1), _take_list(words)
    return None if top_n < 0 else LogprobsParams(top_n, token_ids)


def _put_list(words: list[int], values: Sequence[int]) -> None:
    words.append(len(values))
    words += values


def _take_list(words: Iterator[int]) -> tuple[int, ...]:
    (length,) = _take(words, 1)
    return _take(words, length)


def _take(words: Iterator[int], count: int) -> tuple[int, ...]:
    taken = tuple(islice(words, count)) if count >= 0 else ()
    if len(taken) != count:
        raise ValueError("a plan ends before its last part")
    return taken


def _words(code: str, value: float) -> tuple[int, ...]:
    """A number of 64 bits, by its struct code, as two int32."""
    return struct.unpack("<2i", struct.pack(f"<{code}", value))


def _number(code: str, words: Sequence[int]) -> Any:
    """The int or float that `_words` cut in two."""
    (value,) = struct.unpack(f"<{code}", struct.pack("<2i", *words))
    return value
