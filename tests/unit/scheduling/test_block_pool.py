from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenwire_service.scheduling.block_pool import BlockPool


def test_every_block_is_given_once_then_none() -> None:
    pool = BlockPool(3)
    assert sorted(pool.allocate() for _ in range(3)) == [0, 1, 2]
    assert pool.num_free == 0
    with pytest.raises(IndexError, match="no free block"):
        pool.allocate()


def test_a_published_block_stays_findable_after_its_last_release_until_evicted() -> None:
    pool = BlockPool(2)
    block_id = pool.allocate()
    pool.publish(block_id, b"x")
    pool.release(block_id)
    assert pool.find(b"x") == block_id
    assert (pool.num_free, pool.num_cached) == (2, 1)
    assert pool.allocate() != block_id, "free blocks go before cached ones"
    assert pool.find(b"x") == block_id
    assert pool.allocate() == block_id
    assert pool.find(b"x") is None
    pool.check_integrity()


def test_eviction_takes_the_block_released_longest_ago() -> None:
    pool = BlockPool(3)
    blocks = [pool.allocate() for _ in range(3)]
    for block_id in blocks:
        pool.publish(block_id, bytes([block_id]))
    for block_id in (blocks[1], blocks[2], blocks[0]):
        pool.release(block_id)
    pool.hold(blocks[1])
    pool.release(blocks[1])
    assert [pool.allocate() for _ in range(3)] == [blocks[2], blocks[0], blocks[1]]


def test_holders_are_counted() -> None:
    pool = BlockPool(1)
    block_id = pool.allocate()
    pool.publish(block_id, b"x")
    pool.hold(block_id)
    pool.release(block_id)
    assert (pool.num_holders(block_id), pool.num_free) == (1, 0)
    pool.release(block_id)
    assert (pool.num_holders(block_id), pool.num_free) == (0, 1)
    with pytest.raises(ValueError, match="no holder"):
        pool.release(block_id)


def test_the_first_block_published_under_a_digest_stays_the_one_found() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, b"x")
    pool.publish(second, b"x")
    assert pool.find(b"x") == first
    assert not pool.is_published(second)
    pool.check_integrity()


def test_flush_forgets_what_nobody_holds() -> None:
    pool = BlockPool(2)
    held, cached = pool.allocate(), pool.allocate()
    pool.publish(held, b"held")
    pool.publish(cached, b"cached")
    pool.release(cached)
    pool.flush()
    assert pool.find(b"cached") is None
    assert pool.find(b"held") == held
    assert (pool.num_free, pool.num_cached) == (1, 1)
    pool.check_integrity()


def test_check_integrity_notices_a_lost_block() -> None:
    pool = BlockPool(2)
    pool._free.pop()
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity()


class PoolMachine(RuleBasedStateMachine):
    """Against the plainest model: a list of holders per block and a list of cached digests, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(5)
        self.held: dict[int, int] = {}
        self.published: dict[bytes, int] = {}
        self.cached: list[int] = []

    @rule()
    def allocate(self) -> None:
        num_plain = 5 - len(self.held) - len(self.cached)
        if num_plain + len(self.cached) == 0:
            with pytest.raises(IndexError):
                self.pool.allocate()
            return
        block_id = self.pool.allocate()
        assert block_id not in self.held
        if num_plain:
            assert block_id not in self.cached
        else:
            assert block_id == self.cached.pop(0)
            self.published = {digest: other for digest, other in self.published.items() if other != block_id}
        self.held[block_id] = 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.held)))
        self.pool.release(block_id)
        self.held[block_id] -= 1
        if self.held[block_id] == 0:
            del self.held[block_id]
            if block_id in self.published.values():
                self.cached.append(block_id)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), digest=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def publish(self, data: st.DataObject, digest: bytes) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.held)))
        self.pool.publish(block_id, digest)
        if block_id not in self.published.values():
            self.published.setdefault(digest, block_id)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.published)))
        block_id = self.pool.find(digest)
        assert block_id == self.published[digest]
        self.pool.hold(block_id)
        self.held[block_id] = self.held.get(block_id, 0) + 1
        if block_id in self.cached:
            self.cached.remove(block_id)

    @rule()
    def flush(self) -> None:
        self.pool.flush()
        self.published = {digest: other for digest, other in self.published.items() if other in self.held}
        self.cached = []

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_free == 5 - len(self.held)
        assert self.pool.num_cached == len(self.published)
        assert all(self.pool.num_holders(block_id) == count for block_id, count in self.held.items())
        for digest in (b"a", b"b", b"c", b"d"):
            assert self.pool.find(digest) == self.published.get(digest)


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
TestPoolMachine = PoolMachine.TestCase
