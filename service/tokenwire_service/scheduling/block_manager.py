"""Block tables of sequences over one BlockPool, and the prefix cache."""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections import Counter
from collections.abc import Iterable

from tokenwire_service.scheduling.block_pool import BlockPool
from tokenwire_service.scheduling.sequence import Sequence

DIGEST_SIZE = 20
"""Bytes of a block's digest: at 160 bits under a secret key, equal digests mean equal content."""


class BlockManager:
    """Owns every block table.

    The prefix cache maps a digest to a block. A block's digest covers the model's name, the request's salt and every
    token up to the block's end, by chaining; its key is random per process, so that nobody can search for
    collisions. Only blocks whose KV is complete are published, so that a hit never waits for a step in flight.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        model_name: str = "",
        prefix_caching: bool = True,
        hash_key: bytes | None = None,
    ) -> None:
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.num_query_tokens = 0
        """Tokens of first tables that could have come from the cache."""
        self.num_hit_tokens = 0
        self._pool = BlockPool(num_blocks)
        self._model_name = model_name.encode()
        self._key = secrets.token_bytes(32) if hash_key is None else hash_key

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        return self._pool.num_free

    @property
    def num_cached_blocks(self) -> int:
        return self._pool.num_cached

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks the sequence could begin with. Leaves at least its last token to be computed."""
        if not (self.prefix_caching and sequence.reads_cache):
            return []
        hits: list[int] = []
        num_blocks = (len(sequence.token_ids) - 1) // self.block_size
        for idx in range(num_blocks):
            block_id = self._pool.find(self._digest(sequence, idx))
            if block_id is None:
                break
            hits.append(block_id)
        return hits

    def open_table(self, sequence: Sequence, num_spare: int) -> bool:
        """Give the sequence blocks for all its known tokens, cached ones first, and set `num_computed_tokens` to
        what those hold. False, and nothing changed, when fewer than `num_spare` blocks would stay free."""
        hits = self.find_prefix(sequence)
        num_new = self._num_blocks_for(len(sequence.token_ids)) - len(hits)
        num_free_hits = sum(self._pool.num_holders(block_id) == 0 for block_id in hits)
        if self._pool.num_free - num_free_hits - num_new < num_spare:
            return False
        for block_id in hits:
            self._pool.hold(block_id)
        sequence.block_ids = hits + [self._pool.allocate() for _ in range(num_new)]
        sequence.capacity = len(sequence.block_ids) * self.block_size
        num_cached = len(hits) * self.block_size
        sequence.num_published_tokens = sequence.num_computed_tokens = sequence.num_confirmed_tokens = num_cached
        self._count(sequence)
        return True

    def extend_table(self, sequence: Sequence, num_tokens: int, num_spare: int = 0) -> tuple[int, ...] | None:
        """Append blocks until the table holds `num_tokens`. None, and nothing changed, when fewer than `num_spare`
        blocks would stay free."""
        if num_tokens <= sequence.capacity:
            return ()
        num_new = self._num_blocks_for(num_tokens) - len(sequence.block_ids)
        if self._pool.num_free - num_new < num_spare:
            return None
        new = tuple([self._pool.allocate() for _ in range(num_new)])
        sequence.block_ids.extend(new)
        sequence.capacity += num_new * self.block_size
        return new

    def publish(self, sequence: Sequence) -> None:
        """Offer the blocks that `num_confirmed_tokens` fills to the prefix cache. Their token ids must be known."""
        num_full = sequence.num_confirmed_tokens // self.block_size
        if self.prefix_caching and not sequence.request.cache.bypass:
            for idx in range(sequence.num_published_tokens // self.block_size, num_full):
                self._pool.publish(sequence.block_ids[idx], self._digest(sequence, idx))
        sequence.num_published_tokens = num_full * self.block_size

    def close_table(self, sequence: Sequence) -> None:
        """Release every block, the last first, so that the ends of prefixes are evicted before their beginnings."""
        for block_id in reversed(sequence.block_ids):
            self._pool.release(block_id)
        sequence.block_ids = []
        sequence.capacity = sequence.num_published_tokens = 0

    def flush(self) -> None:
        """Forget every cached prefix that no sequence holds."""
        self._pool.flush()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """`sequences` are all that may hold blocks. Raises AssertionError when a count is wrong or a block that may
        still be written is shared. O(blocks)."""
        self._pool.check_integrity()
        holders: Counter[int] = Counter()
        sequences = list(sequences)
        for sequence in sequences:
            holders.update(sequence.block_ids)
            assert len(sequence.block_ids) == len(set(sequence.block_ids)), "a block is twice in one table"
        for block_id in range(self._pool.num_blocks):
            num_holders = self._pool.num_holders(block_id)
            assert num_holders == holders[block_id], f"block {block_id}: refcount differs from holders"
            assert num_holders <= 1 or self._pool.is_published(block_id), f"block {block_id}: writable and shared"
        for sequence in sequences:
            assert sequence.capacity == len(sequence.block_ids) * self.block_size, "capacity miscounted"

    def _count(self, sequence: Sequence) -> None:
        if sequence.looked_up or not (self.prefix_caching and sequence.reads_cache):
            return
        sequence.looked_up = True
        self.num_query_tokens += len(sequence.token_ids)
        self.num_hit_tokens += sequence.num_computed_tokens

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _digest(self, sequence: Sequence, idx: int) -> bytes:
        """Digest of the sequence's full block `idx`; those before it are remembered."""
        hashes = sequence.block_hashes
        size = self.block_size
        while len(hashes) <= idx:
            begin = len(hashes) * size
            parent = hashes[-1] if hashes else self._root(sequence.request.cache.salt)
            tokens = array("q", sequence.token_ids[begin : begin + size]).tobytes()
            hashes.append(self._hash(parent + tokens, b"block"))
        return hashes[idx]

    def _root(self, salt: str) -> bytes:
        name = self._model_name
        return self._hash(len(name).to_bytes(8, "little") + name + salt.encode("utf-8", "surrogatepass"), b"root")

    def _hash(self, data: bytes, kind: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=DIGEST_SIZE, person=kind).digest()
