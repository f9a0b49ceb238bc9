"""Sequences that wait for a slot."""

from __future__ import annotations

from tokenwire_service.scheduling.block_manager import BlockManager
from tokenwire_service.scheduling.lazy_heap import LazyHeap
from tokenwire_service.scheduling.sequence import Sequence, SequenceStatus


class WaitingQueue:
    """Most urgent first. A sequence that ends while it waits keeps its place, and is passed over."""

    def __init__(self, blocks: BlockManager, block_size: int) -> None:
        self._blocks = blocks
        self._block_size = block_size
        self._heap: LazyHeap[Sequence] = LazyHeap(_is_waiting)
        self.num_tokens = 0
        """Tokens of all that wait which were not in the prefix cache when they began to."""

    def push(self, sequence: Sequence) -> None:
        """`sequence` waits from now on."""
        sequence.status = SequenceStatus.WAITING
        num_cached = len(self._blocks.find_prefix(sequence)) * self._block_size
        sequence.num_waiting_tokens = len(sequence.token_ids) - num_cached
        self.num_tokens += sequence.num_waiting_tokens
        self._heap.push(sequence.rank, sequence)

    def head(self) -> Sequence | None:
        """The most urgent one."""
        head = self._heap.peek()
        return None if head is None else head[1]

    def pop(self) -> Sequence:
        """Take out the most urgent one, which the caller sets going. Raises IndexError when none waits."""
        sequence = self._heap.pop()
        self._uncount(sequence)
        return sequence

    def end(self, sequence: Sequence) -> None:
        """One that waits ends."""
        sequence.status = SequenceStatus.ENDED
        self._uncount(sequence)
        self._heap.note_stale()

    def check_integrity(self, waiting: list[Sequence]) -> None:
        """Raises AssertionError unless it holds these, and counts them right."""
        held = list(self._heap)
        assert len(held) == len(self._heap), "queue miscounted"
        assert set(held) == set(waiting), "waiting sequences lost"
        assert self.num_tokens == sum(sequence.num_waiting_tokens for sequence in held), "waiting tokens miscounted"

    def _uncount(self, sequence: Sequence) -> None:
        self.num_tokens -= sequence.num_waiting_tokens
        sequence.num_waiting_tokens = 0


def _is_waiting(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.WAITING
