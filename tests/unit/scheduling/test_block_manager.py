from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.scheduling import HASH_KEY, make_request
from tokenwire_service.scheduling.block_manager import BlockManager
from tokenwire_service.scheduling.sequence import Sequence, make_request_state


def make_manager(num_blocks: int = 10, block_size: int = 4, **options: Any) -> BlockManager:
    return BlockManager(num_blocks, block_size, hash_key=HASH_KEY, **options)


def make_sequence(prompt: tuple[int, ...], max_tokens: int = 50, **options: Any) -> Sequence:
    return make_request_state(make_request("r", prompt, max_tokens, **options), 0, 5.0).sequences[0]


def compute(manager: BlockManager, sequence: Sequence) -> None:
    """As if a step computed every known token."""
    sequence.num_computed_tokens = sequence.num_confirmed_tokens = len(sequence.token_ids)
    manager.publish(sequence)


def prime(manager: BlockManager, prompt: tuple[int, ...], **options: Any) -> list[int]:
    """Leave the prompt in the cache; returns the blocks it took."""
    sequence = make_sequence(prompt, **options)
    assert manager.open_table(sequence, num_spare=0)
    compute(manager, sequence)
    blocks = list(sequence.block_ids)
    manager.close_table(sequence)
    return blocks


PROMPT = tuple(range(10))


def test_a_table_covers_the_prompt_and_grows_by_blocks() -> None:
    manager = make_manager()
    sequence = make_sequence(PROMPT)
    assert manager.open_table(sequence, num_spare=0)
    assert len(sequence.block_ids) == 3
    assert manager.extend_table(sequence, 12) == ()
    new = manager.extend_table(sequence, 13)
    assert new is not None
    assert sequence.block_ids[3:] == list(new)
    manager.check_integrity([sequence])
    manager.close_table(sequence)
    assert manager.num_free_blocks == 10
    manager.check_integrity([])


def test_an_equal_prefix_is_found_and_shared() -> None:
    manager = make_manager()
    first = make_sequence(PROMPT)
    manager.open_table(first, num_spare=0)
    compute(manager, first)
    second = make_sequence((*PROMPT[:9], 99, 98))
    manager.open_table(second, num_spare=0)
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]
    assert second.num_computed_tokens == second.num_confirmed_tokens == 8
    manager.check_integrity([first, second])
    assert (manager.num_query_tokens, manager.num_hit_tokens) == (21, 8)


def test_at_least_the_last_token_is_computed() -> None:
    manager = make_manager()
    prime(manager, PROMPT[:8])
    assert len(manager.find_prefix(make_sequence(PROMPT[:8]))) == 1
    assert len(manager.find_prefix(make_sequence(PROMPT[:9]))) == 2


def test_a_difference_hides_every_block_after_it() -> None:
    manager = make_manager()
    prime(manager, PROMPT)
    assert manager.find_prefix(make_sequence((99, *PROMPT[1:]))) == []
    assert len(manager.find_prefix(make_sequence((*PROMPT[:4], 99, *PROMPT[5:])))) == 1


def test_a_hit_never_crosses_a_salt_or_a_model() -> None:
    manager = make_manager()
    prime(manager, PROMPT, salt="alice")
    assert manager.find_prefix(make_sequence(PROMPT)) == []
    assert manager.find_prefix(make_sequence(PROMPT, salt="bob")) == []
    assert len(manager.find_prefix(make_sequence(PROMPT, salt="alice"))) == 2
    sequence = make_sequence(PROMPT, salt="y")
    one, other = (make_manager(model_name=name)._digest(make_sequence(PROMPT), 0) for name in ("one", "other"))
    assert one != other
    # Names and salts that only concatenate alike stay apart.
    assert make_manager(model_name="x")._digest(sequence, 0) != make_manager(model_name="xy")._digest(
        make_sequence(PROMPT), 0
    )


def test_the_key_is_secret_and_digests_are_long() -> None:
    digests = {BlockManager(4, 4)._digest(make_sequence(PROMPT), 0) for _ in range(3)}
    assert len(digests) == 3
    assert min(map(len, digests)) >= 16


def test_bypass_neither_reads_nor_writes() -> None:
    manager = make_manager()
    prime(manager, PROMPT, bypass=True)
    assert manager.num_cached_blocks == 0
    prime(manager, PROMPT)
    assert manager.find_prefix(make_sequence(PROMPT, bypass=True)) == []


def test_prompt_logprobs_are_computed_not_read_but_written() -> None:
    manager = make_manager()
    prime(manager, PROMPT, prompt_logprobs=True)
    sequence = make_sequence(PROMPT, prompt_logprobs=True)
    assert manager.find_prefix(sequence) == []
    sequence.num_scored_tokens = len(PROMPT)
    assert len(manager.find_prefix(sequence)) == 2, "after a preemption nothing is owed any more"


def test_generated_tokens_enter_the_cache() -> None:
    manager = make_manager()
    sequence = make_sequence(PROMPT)
    manager.open_table(sequence, num_spare=0)
    sequence.token_ids.extend((50, 51, 52))
    manager.extend_table(sequence, 13)
    compute(manager, sequence)
    manager.close_table(sequence)
    assert len(manager.find_prefix(make_sequence((*PROMPT, 50, 51, 52)))) == 3


def test_only_confirmed_full_blocks_are_published() -> None:
    manager = make_manager()
    sequence = make_sequence(PROMPT)
    manager.open_table(sequence, num_spare=0)
    sequence.num_computed_tokens = 10
    sequence.num_confirmed_tokens = 7
    manager.publish(sequence)
    assert manager.num_cached_blocks == 1


def test_without_prefix_caching_nothing_is_kept() -> None:
    manager = make_manager(prefix_caching=False)
    prime(manager, PROMPT)
    assert manager.num_cached_blocks == 0
    assert manager.num_query_tokens == 0


def test_no_room_changes_nothing() -> None:
    manager = make_manager(num_blocks=3)
    first = make_sequence(PROMPT[:5])
    manager.open_table(first, num_spare=0)
    second = make_sequence(PROMPT[5:])
    assert not manager.open_table(second, num_spare=0)
    assert second.block_ids == []
    third = make_sequence(PROMPT[:3])
    assert not manager.open_table(third, num_spare=1)
    assert manager.open_table(third, num_spare=0)
    assert manager.extend_table(third, 5) is None
    manager.check_integrity([first, third])


def test_cached_blocks_about_to_be_hit_do_not_count_as_room() -> None:
    manager = make_manager(num_blocks=3)
    prime(manager, PROMPT)
    sequence = make_sequence((*PROMPT, 1, 2, 3))
    assert len(manager.find_prefix(sequence)) == 2
    assert manager.num_free_blocks == 3
    assert not manager.open_table(sequence, num_spare=0), "2 hits and 2 new blocks do not fit in 3"
    manager.check_integrity([])


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    manager = make_manager(num_blocks=3)
    prime(manager, (*PROMPT, 1, 2))
    small = make_sequence((60,))
    manager.open_table(small, num_spare=0)
    assert len(manager.find_prefix(make_sequence((*PROMPT, 1, 2, 3)))) == 2


def test_flush_forgets_what_no_sequence_holds() -> None:
    manager = make_manager()
    prime(manager, PROMPT)
    manager.flush()
    assert manager.find_prefix(make_sequence(PROMPT)) == []
    manager.check_integrity([])


def test_check_integrity_notices_a_shared_writable_block_and_a_lost_holder() -> None:
    manager = make_manager()
    first, second = make_sequence(PROMPT), make_sequence(PROMPT[:2])
    manager.open_table(first, num_spare=0)
    manager.open_table(second, num_spare=0)
    with pytest.raises(AssertionError, match="refcount"):
        manager.check_integrity([first])
    manager._pool.hold(first.block_ids[2])
    second.block_ids.append(first.block_ids[2])
    with pytest.raises(AssertionError, match="writable"):
        manager.check_integrity([first, second])


class ManagerMachine(RuleBasedStateMachine):
    """Sequences open, grow, publish and close; what each reads through its table is always what it wrote there."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = make_manager(num_blocks=8, block_size=2)
        self.sequences: list[Sequence] = []
        self.written: dict[tuple[int, int], tuple[object, ...]] = {}

    def write(self, sequence: Sequence, begin: int) -> None:
        for position in range(begin, len(sequence.token_ids)):
            key = (sequence.block_ids[position // 2], position % 2)
            self.written[key] = (sequence.request.cache.salt, *sequence.token_ids[: position + 1])

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        salt=st.sampled_from(["", "s"]),
        bypass=st.booleans(),
        num_spare=st.integers(0, 2),
    )
    def open(self, prompt: list[int], salt: str, bypass: bool, num_spare: int) -> None:
        sequence = make_sequence(tuple(prompt), salt=salt, bypass=bypass)
        free = self.manager.num_free_blocks
        if not self.manager.open_table(sequence, num_spare):
            assert self.manager.num_free_blocks == free
            return
        assert self.manager.num_free_blocks >= num_spare
        assert sequence.num_computed_tokens < len(prompt)
        self.sequences.append(sequence)
        self.write(sequence, sequence.num_computed_tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), token_id=st.integers(0, 1))
    def append(self, data: st.DataObject, token_id: int) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        num_tokens = len(sequence.token_ids)
        if self.manager.extend_table(sequence, num_tokens + 1) is not None:
            sequence.token_ids.append(token_id)
            self.write(sequence, num_tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        compute(self.manager, sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        self.manager.close_table(sequence)

    @rule()
    def flush(self) -> None:
        self.manager.flush()

    @invariant()
    def tables_hold_what_was_written(self) -> None:
        self.manager.check_integrity(self.sequences)
        for sequence in self.sequences:
            for position in range(len(sequence.token_ids)):
                content = self.written[sequence.block_ids[position // 2], position % 2]
                assert content == (sequence.request.cache.salt, *sequence.token_ids[: position + 1])


ManagerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
TestManagerMachine = ManagerMachine.TestCase
