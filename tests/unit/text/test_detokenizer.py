"""Deltas concatenate to the whole text, byte for byte, however the tokens are cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.embedded import embedded_tokenizer
from tests.support.texts import TEXTS, unicode_text
from tokenwire_service.text.detokenizer import IncrementalDetokenizer
from tokenwire_service.text.tokenizer import Tokenizer

# The fixtures are immutable, so sharing them between examples is sound.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)


def pieces_of(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    bounds = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[a:b] for a, b in pairwise(bounds)]


def incrementally(tokenizer: Tokenizer, pieces: Sequence[Sequence[int]], **options: bool) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    return "".join([detokenizer.push(piece) for piece in pieces]) + detokenizer.flush()


def token_ids() -> st.SearchStrategy[list[int]]:
    """Any ids, with those that are parts of characters, or special, made as likely as all the rest."""
    tokenizer = embedded_tokenizer()
    partial = [i for i in range(tokenizer.vocab_size) if _is_partial(tokenizer.token_bytes(i))]
    kinds = [st.integers(0, tokenizer.vocab_size - 1), st.sampled_from(partial), st.integers(0, 16)]
    kinds.append(st.integers(tokenizer.vocab_size, tokenizer.vocab_size + 5))
    return st.lists(st.one_of(kinds), max_size=40)


def _is_partial(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return True
    return False


@shared
@given(data=st.data(), skip=st.booleans())
def test_any_ids_in_any_pieces_equal_decode(byte_level: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(token_ids())
    pieces = pieces_of(ids, data.draw(st.lists(st.integers(0, 40), max_size=8)))
    expected = byte_level.decode(ids, skip_special_tokens=skip)
    assert incrementally(byte_level, pieces, skip_special_tokens=skip).encode() == expected.encode()


@shared
@given(text=unicode_text)
def test_any_text_comes_back(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text, add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(byte_level, skip_special_tokens=False)
    deltas = [detokenizer.push([token_id]) for token_id in ids]
    # Nothing is left for the end, and no character was cut to get there.
    assert detokenizer.flush() == ""
    assert "".join(deltas) == text


@pytest.mark.parametrize("text", TEXTS)
def test_real_text_token_by_token(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text, add_special_tokens=False)
    assert incrementally(byte_level, [[i] for i in ids], skip_special_tokens=False) == text


def test_an_unfinished_character_is_held_then_replaced(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("🦥", add_special_tokens=False)
    assert len(ids) > 1, "the character must be spread over several tokens for this test"
    detokenizer = IncrementalDetokenizer(byte_level)
    assert [detokenizer.push([i]) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert detokenizer.pending
    assert detokenizer.flush() == byte_level.decode(ids[:-1])
    assert not detokenizer.pending


def test_a_character_begun_in_the_prompt_is_completed(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("so 🦥", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(byte_level, ids[:-1])
    assert detokenizer.push(ids[-1:]) + detokenizer.flush() == "🦥"


def test_work_per_token_does_not_grow(byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Tokenizer.token_bytes

    def count(self: Tokenizer, token_id: int) -> bytes:
        seen.append(token_id)
        return original(self, token_id)

    monkeypatch.setattr(Tokenizer, "token_bytes", count)
    monkeypatch.setattr(Tokenizer, "decode", lambda *_, **__: pytest.fail("decoded again"))
    ids = list(range(100, 5100))
    incrementally(byte_level, [[i] for i in ids])
    assert seen == ids


@shared
@given(text=st.text(alphabet="abc é🦥ñ\u2028 <>", max_size=30), data=st.data())
def test_sentencepiece_equals_decode(sentencepiece: Tokenizer, text: str, data: st.DataObject) -> None:
    ids = sentencepiece.encode(text)
    pieces = pieces_of(ids, data.draw(st.lists(st.integers(0, 60), max_size=5)))
    assert incrementally(sentencepiece, pieces) == sentencepiece.decode(ids)


@shared
@given(
    words=st.lists(st.sampled_from(["\u2581abc", "\u2581", "h", "<0x41>", "</s>", "<s>", "é"]), max_size=8),
    cut=st.binary(max_size=3),
    skip=st.booleans(),
)
def test_sentencepiece_ends_like_decode(sentencepiece: Tokenizer, words: list[str], cut: bytes, skip: bool) -> None:
    """Any tokens, then bytes that make no character at all."""
    broken = [*words, "h", *(f"<0x{byte | 0x80:02X}>" for byte in cut[:1])]
    ids = [i for i in map(sentencepiece.token_id, broken) if i is not None]
    expected = sentencepiece.decode(ids, skip_special_tokens=skip)
    assert incrementally(sentencepiece, [[i] for i in ids], skip_special_tokens=skip) == expected


def test_sentencepiece_keeps_the_space_after_a_prompt(sentencepiece: Tokenizer) -> None:
    word = [sentencepiece.token_id("\u2581abc") or 0]
    assert IncrementalDetokenizer(sentencepiece).push(word) == "abc"
    assert IncrementalDetokenizer(sentencepiece, word).push(word) == " abc"
    # Begin-of-text alone is not yet text, unless it is shown.
    bos = [sentencepiece.bos_token_id or 0]
    assert IncrementalDetokenizer(sentencepiece, bos).push(word) == "abc"
    assert IncrementalDetokenizer(sentencepiece, bos, skip_special_tokens=False).push(word) == " abc"


def test_sentencepiece_bytes_that_are_no_character(sentencepiece: Tokenizer) -> None:
    def ids(raw: bytes) -> list[int]:
        return [sentencepiece.token_id(f"<0x{byte:02X}>") or 0 for byte in raw]

    sloth = "🦥".encode()
    assert incrementally(sentencepiece, [[i] for i in ids(sloth * 2)]) == "🦥🦥"
    # One U+FFFD per lost byte, as the tokenizers library does; whole characters beside them stay.
    assert (
        incrementally(sentencepiece, [[i] for i in ids(sloth[:3] + sloth + b"\xff!")]) == "\ufffd\ufffd\ufffd🦥\ufffd!"
    )
    assert incrementally(sentencepiece, [[i] for i in ids(sloth[:3])]) == sentencepiece.decode(ids(sloth[:3]))
