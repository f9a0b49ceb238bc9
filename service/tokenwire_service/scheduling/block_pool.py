"""Blocks of the KV cache: who holds which, and which free ones still hold content worth finding."""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """Reference-counted blocks 0..num_blocks-1, every operation O(1).

    A block is owned (held by one or more sequences), cached (held by nobody, its content findable by digest) or
    free. Allocation takes free blocks first, then evicts the cached block that was released longest ago.
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_holders = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._by_digest: dict[bytes, int] = {}

    @property
    def num_blocks(self) -> int:
        return len(self._num_holders)

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Published blocks, held or not."""
        return len(self._by_digest)

    def num_holders(self, block_id: int) -> int:
        return self._num_holders[block_id]

    def is_published(self, block_id: int) -> bool:
        return self._digests[block_id] is not None

    def find(self, digest: bytes) -> int | None:
        """The block published under `digest`. Changes nothing, the order of eviction included."""
        return self._by_digest.get(digest)

    def allocate(self) -> int:
        """A block with one holder and no content. Raises IndexError when `num_free` is 0."""
        if self._free:
            block_id = self._free.pop()
        elif self._cached:
            block_id, _ = self._cached.popitem(last=False)
            self._unpublish(block_id)
        else:
            raise IndexError("no free block")
        self._num_holders[block_id] = 1
        return block_id

    def hold(self, block_id: int) -> None:
        """One more holder of a published block."""
        if self._num_holders[block_id] == 0:
            del self._cached[block_id]
        self._num_holders[block_id] += 1

    def release(self, block_id: int) -> None:
        """One holder less; the last one leaves the block cached if published, else free."""
        if self._num_holders[block_id] < 1:
            raise ValueError(f"block {block_id} has no holder")
        self._num_holders[block_id] -= 1
        if self._num_holders[block_id]:
            return
        if self._digests[block_id] is None:
            self._free.append(block_id)
        else:
            self._cached[block_id] = None

    def publish(self, block_id: int, digest: bytes) -> None:
        """Make a held, full block findable. The first block published under a digest stays the one found."""
        if self._digests[block_id] is None and digest not in self._by_digest:
            self._digests[block_id] = digest
            self._by_digest[digest] = block_id

    def flush(self) -> None:
        """Forget the content of every block that nobody holds."""
        for block_id in self._cached:
            self._unpublish(block_id)
        self._free.extend(self._cached)
        self._cached.clear()

    def check_integrity(self) -> None:
        """Raises AssertionError unless free + cached + owned = total and each is consistent. O(num_blocks)."""
        owned = {block_id for block_id, count in enumerate(self._num_holders) if count > 0}
        free = set(self._free)
        cached = set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert len(free) + len(cached) + len(owned) == self.num_blocks, "blocks lost or counted twice"
        assert free | cached | owned == set(range(self.num_blocks)), "blocks lost"
        assert min(self._num_holders, default=0) >= 0, "negative number of holders"
        assert not any(self.is_published(block_id) for block_id in free), "a free block is published"
        assert all(self.is_published(block_id) for block_id in cached), "a cached block is not published"
        published = {digest: block_id for block_id, digest in enumerate(self._digests) if digest is not None}
        assert published == self._by_digest, "digests and blocks disagree"

    def _unpublish(self, block_id: int) -> None:
        digest = self._digests[block_id]
        if digest is not None:
            del self._by_digest[digest]
            self._digests[block_id] = None
