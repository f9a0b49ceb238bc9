"""Tokens as REST shows them: text that never splits a character, log-probabilities that JSON can say."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from dataclasses import dataclass

from tokenwire.v1.types_pb2 import Alternatives, TokenLogprobs

# What OpenAI's API shows where the probability is zero.
LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the tokens that could have stood at a position."""

    id: int
    logprob: float
    bytes: bytes


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `logprob` is None for a prompt's first token, which has none."""

    id: int
    logprob: float | None
    bytes: bytes
    special: bool
    alternatives: tuple[Alternative, ...]


def tokens_of(columns: TokenLogprobs) -> Iterator[Token]:
    """The tokens of a columnar list, one by one."""
    has_alternatives, has_special = bool(columns.alternatives), bool(columns.special)
    for index, token_id in enumerate(columns.token_ids):
        yield Token(
            id=token_id,
            logprob=finite(columns.logprobs[index]),
            bytes=columns.token_bytes[index],
            special=columns.special[index] if has_special else False,
            alternatives=tuple(_alternatives(columns.alternatives[index])) if has_alternatives else (),
        )


def finite(logprob: float) -> float | None:
    """`logprob` for JSON: None when there is none, a very low number for minus infinity."""
    return None if math.isnan(logprob) else max(logprob, LOWEST_LOGPROB)


def _alternatives(columns: Alternatives) -> Iterator[Alternative]:
    for index, token_id in enumerate(columns.token_ids):
        yield Alternative(token_id, max(columns.logprobs[index], LOWEST_LOGPROB), columns.token_bytes[index])


class TokenText:
    """Text of consecutive tokens: bytes of an unfinished character are held until the token that ends it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token: bytes) -> str:
        """What `token` adds to the text."""
        return self._decoder.decode(token)


def lossy(token: bytes) -> str:
    """A token by itself; bytes that are not UTF-8 become U+FFFD."""
    return token.decode("utf-8", "replace")


def spelled(token: bytes) -> str:
    """A token by itself as OpenAI's legacy completions spell it: `bytes:\\xe2\\x80` when it is not UTF-8."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
