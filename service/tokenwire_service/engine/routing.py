"""Which of several engines takes a request: the one that has the least to do, counting what it need not compute."""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tokenwire_service.core.params import CacheParams, Request

BLOCK_TOKENS = 64
"""Prefixes are told apart at multiples of this."""
MAX_BLOCKS = 128
"""Prompts are looked at up to this many blocks: hashing is the event loop's time."""
MAX_REMEMBERED = 16_384
"""Prefixes, and sessions, at most."""
EXPECTED_TOKENS = 256
"""What an answer is taken for when it may be longer: most end long before what they may have."""
SESSION_TOKENS = 1024
"""What staying where its session is is worth to a request beyond its own prompt."""
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and the tokens of work it means there."""

    replica: int
    weight: int


class Router:
    """Weighs replicas by the tokens of work they have: of each request that has not ended, the prompt's tokens that
    were not taken for cached, and the answer's, `EXPECTED_TOKENS` at most for each candidate. A request goes to the
    replica with the least of that, less the prompt tokens that replica is taken to hold in its prefix cache. So
    affinity outweighs load only up to the work it saves: no request goes to a replica that has more to do than the
    least loaded one has, and the shared prefix together.

    What a replica holds is known by what was sent there: each multiple of `BLOCK_TOKENS` of a prompt leaves a digest,
    and the least recently used are forgotten. Digests are keyed and salted as the engine's own are, so that callers
    can neither search for collisions nor find each other's prefixes by where they are sent.

    Sources: the cost of prefill and decode blocks in NVIDIA Dynamo's KV router; SGLang's cache-aware router has the
    same two wishes with a threshold between them.
    """

    def __init__(self, num_replicas: int, *, key: bytes | None = None) -> None:
        """`key` is random unless given."""
        self._max_prefixes = MAX_REMEMBERED
        self._key = secrets.token_bytes(32) if key is None else key
        self._holders: OrderedDict[bytes, int] = OrderedDict()
        """Replicas, as bits, that a prefix was sent to."""
        self._sessions: OrderedDict[bytes, int] = OrderedDict()
        self._turns = [0] * num_replicas
        """When each was last chosen: among equals it is the turn of the one that waited longest."""
        self._num_chosen = 0

    def choose(self, request: Request, weights: Mapping[int, int]) -> Route:
        """Choose among the replicas of `weights`, at least one, each with the tokens of work it has. It is remembered
        as a holder of the prompt."""
        digests = list(self._digests(request))
        cached = self._cached_tokens(digests, weights)
        session = self._session(request.cache)
        saved = dict(cached)
        home = None if session is None else self._sessions.get(session)
        if home in saved:
            saved[home] = len(request.prompt_token_ids) + SESSION_TOKENS
        replica = min(weights, key=lambda each: (weights[each] - saved[each], weights[each], self._turns[each]))
        self._remember(replica, digests, session)
        answers = request.num_candidates * min(request.stopping.max_tokens, EXPECTED_TOKENS)
        return Route(replica, len(request.prompt_token_ids) - cached[replica] + answers)

    def limit(self, num_tokens: int) -> None:
        """The replicas' caches hold so many tokens together: more than that is not remembered of prefixes."""
        self._max_prefixes = min(MAX_REMEMBERED, num_tokens // BLOCK_TOKENS)
        _trim(self._holders, self._max_prefixes)

    def forget(self, replica: int) -> None:
        """Its engine went down, and its cache with it."""
        bit = 1 << replica
        holders = ((digest, mask & ~bit) for digest, mask in self._holders.items())
        self._holders = OrderedDict((digest, mask) for digest, mask in holders if mask)
        self._sessions = OrderedDict((name, home) for name, home in self._sessions.items() if home != replica)

    def forget_prefixes(self) -> None:
        """Every cache was flushed."""
        self._holders.clear()

    def _cached_tokens(self, digests: list[bytes], weights: Mapping[int, int]) -> dict[int, int]:
        """Tokens at the prompt's beginning that each replica is taken to hold."""
        cached = dict.fromkeys(weights, 0)
        matching = sum(1 << replica for replica in weights)
        for count, digest in enumerate(digests, 1):
            matching &= self._holders.get(digest, 0)
            if not matching:
                break
            for replica in cached:
                if matching >> replica & 1:
                    cached[replica] = count * BLOCK_TOKENS
        return cached

    def _remember(self, replica: int, digests: list[bytes], session: bytes | None) -> None:
        self._num_chosen += 1
        self._turns[replica] = self._num_chosen
        # The last first, so that the ends of prefixes are forgotten before their beginnings.
        for digest in reversed(digests):
            self._holders[digest] = self._holders.get(digest, 0) | 1 << replica
            self._holders.move_to_end(digest)
        if session is not None:
            self._sessions[session] = replica
            self._sessions.move_to_end(session)
        _trim(self._holders, self._max_prefixes)
        _trim(self._sessions, MAX_REMEMBERED)

    def _digests(self, request: Request) -> Iterator[bytes]:
        """Of the prompt's leading blocks, each covering all before it; none when it leaves the cache alone."""
        if request.cache.bypass:
            return
        tokens = request.prompt_token_ids
        digest = self._hash(request.cache.salt.encode("utf-8", "surrogatepass"), b"root")
        # The last token is computed in any case.
        for idx in range(min((len(tokens) - 1) // BLOCK_TOKENS, MAX_BLOCKS)):
            block = array("q", tokens[idx * BLOCK_TOKENS : (idx + 1) * BLOCK_TOKENS])
            digest = self._hash(digest + block.tobytes(), b"block")
            yield digest

    def _session(self, cache: CacheParams) -> bytes | None:
        """Under its tenant's salt, so that tenants may use the same names."""
        if not cache.session_id:
            return None
        salt = cache.salt.encode("utf-8", "surrogatepass")
        return self._hash(
            len(salt).to_bytes(8, "little") + salt + cache.session_id.encode("utf-8", "surrogatepass"), b"session"
        )

    def _hash(self, data: bytes, kind: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=_DIGEST_BYTES, person=kind).digest()


def _trim(memory: OrderedDict[bytes, int], num_entries: int) -> None:
    """Forget what was used the longest ago."""
    while len(memory) > num_entries:
        memory.popitem(last=False)
