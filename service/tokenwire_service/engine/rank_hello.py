"""What a rank says of itself when it comes, and why rank 0 would not take it."""

from __future__ import annotations

import hashlib

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire.engine.v1alpha import ranks_pb2 as ranks_pb

_OWN = frozenset({"num_threads"})
"""Flags that machines may differ in."""


def make_hello(configuration: pb.Configure, version: str, *, plans: bool = False) -> ranks_pb.RankHello:
    """Of the rank with this configuration."""
    model = configuration.model
    return ranks_pb.RankHello(
        token=configuration.place.token,
        rank=configuration.place.rank,
        plans=plans,
        version=version,
        limits=configuration.limits,
        dtype=model.dtype,
        model_digest=hashlib.sha256(model.config_json.encode()).hexdigest(),
    )


def find_mismatch(theirs: ranks_pb.RankHello, ours: ranks_pb.RankHello) -> str | None:
    """The first thing in which a rank differs from rank 0, in a sentence that names it and says what to do."""
    who = f"rank {theirs.rank}"
    if theirs.version != ours.version:
        return f"{who} runs version {theirs.version}, rank 0 {ours.version}; install the same version on every machine"
    flags = [field.name for field in ours.limits.DESCRIPTOR.fields if field.name not in _OWN]
    pairs = [(name, getattr(theirs.limits, name), getattr(ours.limits, name)) for name in flags]
    for name, given, wanted in [*pairs, ("dtype", theirs.dtype, ours.dtype)]:
        if given != wanted:
            flag = f"--{name.replace('_', '-')}"
            return f"{who} was started with {flag} {given}, rank 0 with {wanted}; give every rank the same flags"
    if theirs.model_digest != ours.model_digest:
        return (
            f"{who} has another config.json than rank 0; give every rank the same --model-id and --revision, and the "
            "same files where that is a directory"
        )
    return None
