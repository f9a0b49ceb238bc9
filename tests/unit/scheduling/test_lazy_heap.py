from __future__ import annotations

import random

import pytest

from tokenwire_service.scheduling.lazy_heap import LazyHeap


def test_pops_in_order_of_key_then_of_pushing() -> None:
    heap: LazyHeap[str] = LazyHeap(lambda item: True)
    for key, item in ((2, "c"), (1, "a"), (2, "d"), (1, "b")):
        heap.push(key, item)
    assert [heap.pop() for _ in range(4)] == ["a", "b", "c", "d"]
    assert heap.peek() is None
    with pytest.raises(IndexError, match="empty"):
        heap.pop()


def test_withdrawn_items_are_never_seen_and_do_not_pile_up() -> None:
    live: set[int] = set()
    heap: LazyHeap[int] = LazyHeap(live.__contains__)
    rng = random.Random(1)
    for number in range(5000):
        heap.push(rng.random(), number)
        live.add(number)
        if len(live) > 20:
            live.remove(rng.choice(sorted(live)))
            heap.note_stale()
        assert len(heap) == len(live)
    assert set(heap) == live
    assert len(heap._entries) < 100
    assert {heap.pop() for _ in range(len(heap))} == live
    assert len(heap) == 0
