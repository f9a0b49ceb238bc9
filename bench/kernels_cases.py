"""What each kernel is measured on: a model's own sizes, and what plain torch would be called instead.

A case names the bytes that must move and the products that must be summed at least; how fast they did is what counts.
Letters as in the kernels: T tokens, S sequences, H and K heads, D head_dim, E hidden, I intermediate, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenwire_service.kernels.add_layer_norm import add_layer_norm
from tokenwire_service.kernels.add_rms_norm import add_rms_norm
from tokenwire_service.kernels.advance import advance
from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.embed_gather import embed_gather
from tokenwire_service.kernels.gather_rows import gather_rows
from tokenwire_service.kernels.gelu_mul import gelu_mul
from tokenwire_service.kernels.linear import linear, pack_weight
from tokenwire_service.kernels.paged_attention import AttentionOptions, paged_attention
from tokenwire_service.kernels.qk_norm_rope_store import qk_norm_rope_store
from tokenwire_service.kernels.sample import SampleColumns, greedy, sample_rows
from tokenwire_service.kernels.silu_mul import silu_mul
from tokenwire_service.models.spec import ModelSpec

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """On what and how large."""

    spec: ModelSpec
    dtype: torch.dtype
    """Of activations."""
    kv_dtype: torch.dtype
    backends: Mapping[str, Backend]
    """By name; "reference" is among them."""
    linear_backends: Mapping[str, Backend]
    """One for each format of weights."""
    num_tokens: tuple[int, ...]
    context: int
    block_size: int = 32

    @property
    def device(self) -> torch.device:
        return self.backends["reference"].device

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(high, shape, device=self.device, dtype=dtype)


@dataclass(frozen=True, slots=True)
class Case:
    """One shape of one kernel."""

    op: str
    shape: str
    num_bytes: float
    flops: float
    """0 where arithmetic does not count."""
    runs: Mapping[str, Work]
    """By implementation; "torch" is what plain torch does."""


def _add_rms_norm(at: Setting) -> Iterator[Case]:
    weight, eps = at.random(at.spec.hidden_size), 1e-5
    for tokens in at.num_tokens:
        residual, delta = at.random(tokens, at.spec.hidden_size), at.random(tokens, at.spec.hidden_size)

        def plain(residual: Tensor = residual, delta: Tensor = delta) -> Tensor:
            return F.rms_norm(residual.add_(delta), weight.shape, weight, eps)

        def ours(backend: Backend, residual: Tensor = residual, delta: Tensor = delta) -> Tensor:
            return add_rms_norm(residual, delta, weight, eps, backend)

        yield _case(at, "add_rms_norm", f"T={tokens}", 4 * residual.nbytes, 0, ours, plain)


def _add_layer_norm(at: Setting) -> Iterator[Case]:
    weight, bias, eps = at.random(at.spec.hidden_size), at.random(at.spec.hidden_size), 1e-5
    for tokens in at.num_tokens:
        residual, delta = at.random(tokens, at.spec.hidden_size), at.random(tokens, at.spec.hidden_size)

        def plain(residual: Tensor = residual, delta: Tensor = delta) -> Tensor:
            return F.layer_norm(residual.add_(delta), weight.shape, weight, bias, eps)

        def ours(backend: Backend, residual: Tensor = residual, delta: Tensor = delta) -> Tensor:
            return add_layer_norm(residual, delta, weight, bias, eps, backend)

        yield _case(at, "add_layer_norm", f"T={tokens}", 4 * residual.nbytes, 0, ours, plain)


def _gated(
    at: Setting, op: str, ours: Callable[[Tensor, Backend], Tensor], plain: Callable[[Tensor], Tensor]
) -> Iterator[Case]:
    for tokens in at.num_tokens:
        gate_up = at.random(tokens, 2 * at.spec.intermediate_size)

        def run(backend: Backend, gate_up: Tensor = gate_up) -> Tensor:
            return ours(gate_up, backend)

        def plainly(gate_up: Tensor = gate_up) -> Tensor:
            gate, up = gate_up.chunk(2, dim=-1)
            return plain(gate) * up

        yield _case(at, op, f"T={tokens}", 1.5 * gate_up.nbytes, 0, run, plainly)


def _silu_mul(at: Setting) -> Iterator[Case]:
    yield from _gated(at, "silu_mul", silu_mul, F.silu)


def _gelu_mul(at: Setting) -> Iterator[Case]:
    yield from _gated(
        at, "gelu_mul", lambda x, backend: gelu_mul(x, True, backend), lambda x: F.gelu(x, approximate="tanh")
    )


def _embed_gather(at: Setting) -> Iterator[Case]:
    vocab, hidden = at.spec.vocab_size, at.spec.hidden_size
    table = at.random(vocab, hidden)
    for tokens in at.num_tokens:
        ids = at.integers(vocab, tokens)

        def ours(backend: Backend, ids: Tensor = ids) -> Tensor:
            return embed_gather(ids, table, 0, vocab, backend)

        def plain(ids: Tensor = ids) -> Tensor:
            return F.embedding(ids, table)

        yield _case(at, "embed_gather", f"T={tokens}", 2 * tokens * hidden * table.itemsize, 0, ours, plain)


def _gather_rows(at: Setting) -> Iterator[Case]:
    for tokens in at.num_tokens:
        x, rows = at.random(4 * tokens, at.spec.hidden_size), at.integers(4 * tokens, tokens)

        def ours(backend: Backend, x: Tensor = x, rows: Tensor = rows) -> Tensor:
            return gather_rows(x, rows, backend)

        def plain(x: Tensor = x, rows: Tensor = rows) -> Tensor:
            return x.index_select(0, rows)

        yield _case(at, "gather_rows", f"R={tokens} of {4 * tokens}", x.nbytes / 2, 0, ours, plain)


def _qk_norm_rope_store(at: Setting) -> Iterator[Case]:
    spec = at.spec
    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    for tokens in at.num_tokens:
        blocks = -(-tokens // at.block_size)
        key, value = (at.random(blocks, kv_heads, at.block_size, dim, dtype=at.kv_dtype) for _ in range(2))
        qkv = at.random(tokens, (heads + 2 * kv_heads) * dim)
        cos_sin = at.random(tokens, dim, dtype=torch.float32)
        slots = torch.arange(tokens, device=at.device)

        def ours(
            backend: Backend,
            qkv: Tensor = qkv,
            cos_sin: Tensor = cos_sin,
            slots: Tensor = slots,
            key: Tensor = key,
            value: Tensor = value,
        ) -> Tensor:
            return qk_norm_rope_store(qkv, cos_sin, slots, key, value, num_heads=heads, backend=backend)

        def plain(
            qkv: Tensor = qkv,
            cos_sin: Tensor = cos_sin,
            slots: Tensor = slots,
            key: Tensor = key,
            value: Tensor = value,
        ) -> Tensor:
            q, k, v = qkv.view(len(qkv), -1, dim).split([heads, kv_heads, kv_heads], dim=1)  # type: ignore[no-untyped-call]
            at_block, offset = slots // at.block_size, slots % at.block_size
            key[at_block, :, offset] = _rotated(k, cos_sin).to(key.dtype)
            value[at_block, :, offset] = v.to(value.dtype)
            return _rotated(q, cos_sin)

        moved = 2 * qkv.nbytes + cos_sin.nbytes
        yield _case(at, "qk_norm_rope_store", f"T={tokens} H={heads} K={kv_heads} D={dim}", moved, 0, ours, plain)


def _rotated(x: Tensor, cos_sin: Tensor) -> Tensor:
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


def _paged_attention(at: Setting) -> Iterator[Case]:
    """Decodes of each number of sequences, then one prompt. Plain torch is given keys and values in one piece."""
    for sequences in (tokens for tokens in at.num_tokens if tokens <= 256):
        yield _attention(at, sequences, 1, at.context)
    yield _attention(at, 1, at.context, at.context)


def _attention(at: Setting, sequences: int, queries: int, context: int) -> Case:
    spec = at.spec
    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    per_sequence = -(-context // at.block_size)
    blocks = sequences * per_sequence
    key, value = (at.random(blocks, kv_heads, at.block_size, dim, dtype=at.kv_dtype) for _ in range(2))
    tables = torch.randperm(blocks, device=at.device).to(torch.int32).view(sequences, per_sequence)
    lengths = torch.full((sequences,), context, dtype=torch.int32, device=at.device)
    starts = torch.arange(0, sequences * queries + 1, queries, dtype=torch.int32, device=at.device)
    q = at.random(sequences * queries, heads, dim)
    options = AttentionOptions(scale=dim**-0.5)

    def ours(backend: Backend) -> Tensor:
        return paged_attention(q, key, value, starts, lengths, tables, options=options, backend=backend)

    whole_q = q.view(sequences, queries, heads, dim).transpose(1, 2).contiguous()
    whole_k, whole_v = (at.random(sequences, kv_heads, context, dim) for _ in range(2))

    def plain() -> Tensor:
        return F.scaled_dot_product_attention(whole_q, whole_k, whole_v, is_causal=queries > 1, enable_gqa=True)

    pairs = sequences * queries * (context - (queries - 1) / 2)
    what = f"prompt of {queries}" if queries > 1 else f"S={sequences} decode at {context}"
    moved = 2 * sequences * context * kv_heads * dim * key.itemsize + 2 * q.nbytes
    return _case(at, "paged_attention", what, moved, 4 * pairs * heads * dim, ours, plain)


def _sample(at: Setting) -> Iterator[Case]:
    """Greedy, and a draw with top-k and top-p. Plain torch sorts."""
    vocab = at.spec.vocab_size
    for rows in (tokens for tokens in at.num_tokens if tokens <= 256):
        logits = at.random(rows, vocab, dtype=torch.float32)

        def ours(backend: Backend, logits: Tensor = logits) -> object:
            return greedy(logits, backend)

        def plain(logits: Tensor = logits) -> Tensor:
            return logits.argmax(dim=-1)

        yield _case(at, "sample", f"S={rows} greedy", logits.nbytes, 0, ours, plain)
        yield _draw(at, logits)


def _draw(at: Setting, logits: Tensor) -> Case:
    rows = len(logits)

    def full(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device=at.device)

    columns = SampleColumns(
        temperature=full(0.8, torch.float32),
        seed=torch.arange(rows, device=at.device),
        candidate=full(0, torch.int64),
        position=full(7, torch.int64),
        top_k=full(50, torch.int64),
        top_p=full(0.9, torch.float32),
        min_p=full(0.0, torch.float32),
    )
    chosen, valid = full(0, torch.int64), full(0, torch.bool)

    def ours(backend: Backend) -> None:
        sample_rows(logits.clone(), columns, chosen, valid, backend)

    def plain() -> Tensor:
        kept, ids = (logits / 0.8).topk(50)
        weights = kept.softmax(dim=-1)
        weights = weights.masked_fill(weights.cumsum(dim=-1) - weights > 0.9, 0.0)
        return ids.gather(-1, weights.multinomial(1))

    return _case(at, "sample", f"S={rows} top-k 50, top-p 0.9", 2 * logits.nbytes, 0, ours, plain)


def _advance(at: Setting) -> Iterator[Case]:
    for rows in (tokens for tokens in at.num_tokens if tokens <= 256):
        state = [at.integers(at.context // 2, rows, dtype=torch.int32) for _ in range(3)]
        slots = torch.arange(rows, dtype=torch.int32, device=at.device)
        token_ids = at.integers(64, rows, at.context, dtype=torch.int32)
        sampled = at.integers(64, rows)

        def ours(
            backend: Backend,
            sampled: Tensor = sampled,
            slots: Tensor = slots,
            state: list[Tensor] = state,
            token_ids: Tensor = token_ids,
        ) -> None:
            last, positions, lengths = state
            advance(sampled, slots, last, positions, lengths, token_ids, backend)

        def plain(sampled: Tensor = sampled, state: list[Tensor] = state, token_ids: Tensor = token_ids) -> None:
            last, positions, lengths = state
            token_ids.scatter_(1, lengths.long()[:, None] % token_ids.shape[1], sampled.int()[:, None])
            last.copy_(sampled)
            positions.add_(1)
            lengths.add_(1)

        yield _case(at, "advance", f"S={rows}", 8 * rows * 4, 0, ours, plain)


def _linear(at: Setting) -> Iterator[Case]:
    """Gate and up projection in one, in every format of weights; the bytes are of plain weights in all of them."""
    rows, columns = 2 * at.spec.intermediate_size, at.spec.hidden_size
    weight = at.random(rows, columns)
    packed = {name: pack_weight(weight, backend) for name, backend in at.linear_backends.items()}
    for tokens in at.num_tokens:
        x = at.random(tokens, columns)
        runs: dict[str, Work] = {name: _linear_run(x, held) for name, held in packed.items()}
        runs["torch"] = _plain_linear(x, weight)
        moved = weight.nbytes + x.nbytes + tokens * rows * x.itemsize
        yield Case("linear", f"T={tokens} [{rows}, {columns}]", moved, 2 * tokens * rows * columns, runs)


def _linear_run(x: Tensor, weight: object) -> Work:
    return lambda: linear(x, weight, None)  # type: ignore[arg-type]


def _plain_linear(x: Tensor, weight: Tensor) -> Work:
    return lambda: F.linear(x, weight)


def _case(
    at: Setting,
    op: str,
    shape: str,
    num_bytes: float,
    flops: float,
    ours: Callable[[Backend], object],
    plain: Work,
) -> Case:
    def run(backend: Backend) -> Work:
        return lambda: ours(backend)

    return Case(op, shape, num_bytes, flops, {name: run(each) for name, each in at.backends.items()} | {"torch": plain})


OPS: Mapping[str, Callable[[Setting], Iterator[Case]]] = MappingProxyType(
    {
        "add_rms_norm": _add_rms_norm,
        "add_layer_norm": _add_layer_norm,
        "silu_mul": _silu_mul,
        "gelu_mul": _gelu_mul,
        "embed_gather": _embed_gather,
        "gather_rows": _gather_rows,
        "qk_norm_rope_store": _qk_norm_rope_store,
        "paged_attention": _paged_attention,
        "linear": _linear,
        "sample": _sample,
        "advance": _advance,
    }
)
"""By the kernel's name: its cases."""

_ELEMENTWISE = "test_*elementwise.py"
TESTS: Mapping[str, str] = MappingProxyType(
    {
        "add_rms_norm": _ELEMENTWISE,
        "add_layer_norm": _ELEMENTWISE,
        "silu_mul": _ELEMENTWISE,
        "gelu_mul": _ELEMENTWISE,
        "embed_gather": _ELEMENTWISE,
        "gather_rows": _ELEMENTWISE,
        "qk_norm_rope_store": "test_*qk_norm_rope_store.py",
        "paged_attention": "test_*paged_attention*.py",
        "linear": "test_*linear*.py",
        "sample": "sample/test_*.py",
        "advance": "test_*advance.py",
    }
)
"""By the kernel's name: pattern of its test files under tests/kernels."""
