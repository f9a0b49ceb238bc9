"""A heap whose items may be withdrawn without being searched for."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class LazyHeap(Generic[Item]):
    """Smallest key first; equal keys in the order of pushing.

    `is_current(item)` says whether an item still counts. The owner calls `note_stale` when an item ceases to, and it
    is dropped when it surfaces, or when stale ones outnumber the rest.
    """

    def __init__(self, is_current: Callable[[Item], bool]) -> None:
        self._is_current = is_current
        self._entries: list[tuple[Any, int, Item]] = []
        self._num_pushed = 0
        self._num_stale = 0

    def __len__(self) -> int:
        """Items that count."""
        return len(self._entries) - self._num_stale

    def __iter__(self) -> Iterator[Item]:
        """Items that count, in no particular order."""
        return (entry[2] for entry in self._entries if self._is_current(entry[2]))

    def push(self, key: Any, item: Item) -> None:
        heapq.heappush(self._entries, (key, self._num_pushed, item))
        self._num_pushed += 1

    def note_stale(self, count: int = 1) -> None:
        self._num_stale += count
        if self._num_stale > 16 + len(self._entries) // 2:
            self._entries = [entry for entry in self._entries if self._is_current(entry[2])]
            heapq.heapify(self._entries)
            self._num_stale = 0

    def peek(self) -> tuple[Any, Item] | None:
        """Key and item of the smallest that counts."""
        entries = self._entries
        while entries and not self._is_current(entries[0][2]):
            heapq.heappop(entries)
            self._num_stale -= 1
        return (entries[0][0], entries[0][2]) if entries else None

    def pop(self) -> Item:
        """Raises IndexError when nothing counts."""
        if self.peek() is None:
            raise IndexError("pop from an empty heap")
        return heapq.heappop(self._entries)[2]
