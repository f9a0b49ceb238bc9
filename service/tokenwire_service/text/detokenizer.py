"""Token ids to text as they come, never cutting a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol

from tokenwire_service.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# A character is at most four bytes and a token at least one.
_MAX_PROMPT_TAIL = 4


class IncrementalDetokenizer:
    """The text of one candidate, token by token; the work per token does not depend on how many came before.

    The concatenation of all deltas and `flush()` equals `Tokenizer.decode` of all ids. One exception, for SentencePiece
    only: in a run of byte tokens that is not UTF-8 as a whole, characters that are whole stay characters (decode would
    have to see the end of the run before it could show its beginning).
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        """`prompt_ids`: what the text continues. A character it leaves unfinished is completed here."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._assembler: _Assembler
        if tokenizer.pieces.byte_level:
            self._assembler = _ByteLevel(tokenizer)
        else:
            starts = not any(i not in self._skipped and tokenizer.token_bytes(i) for i in reversed(prompt_ids))
            self._assembler = _SentencePiece(tokenizer, at_start=starts)
        for token_id in prompt_ids[-_MAX_PROMPT_TAIL:]:
            if token_id not in self._skipped:
                self._assembler.push(token_id)

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished character are held back."""
        return self._assembler.pending

    @property
    def plain(self) -> bool:
        """Whether a token that has a `Tokenizer.own_text` adds just that, and may as well not be pushed."""
        return self._assembler.plain

    def push_whole(self, token_id: int) -> str | None:
        """As `push_one`, when the token's text is whole by itself; else None, and nothing is taken."""
        if token_id in self._skipped:
            return None if self._assembler.pending else ""
        return self._assembler.push_whole(token_id)

    def push_one(self, token_id: int) -> str:
        """The text this token completes."""
        return "" if token_id in self._skipped else self._assembler.push(token_id)

    def push(self, token_ids: Iterable[int]) -> str:
        """The text these tokens complete."""
        return "".join([self._assembler.push(i) for i in token_ids if i not in self._skipped])

    def flush(self) -> str:
        """The end: what was held back, as U+FFFD."""
        return self._assembler.flush()


class _Assembler(Protocol):
    @property
    def pending(self) -> bool: ...

    @property
    def plain(self) -> bool: ...

    def push_whole(self, token_id: int) -> str | None: ...

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class _ByteLevel:
    """All tokens are bytes; ill-formed ones become U+FFFD per maximal subpart (Unicode's recommended practice)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending = False

    @property
    def plain(self) -> bool:
        return not self.pending

    def push_whole(self, token_id: int) -> str | None:
        if self.pending:
            return None
        try:
            return self._tokenizer.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            return None

    def push(self, token_id: int) -> str:
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        self.pending = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        self.pending = False
        return self._decoder.decode(b"", final=True)


class _SentencePiece:
    """Tokens are text except for byte tokens; a byte that belongs to no character becomes one U+FFFD."""

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool) -> None:
        self._tokenizer = tokenizer
        pieces = tokenizer.pieces
        self._to_strip = pieces.strip_left if at_start else 0
        self._drop_spaces = pieces.drop_first_spaces and at_start
        self._bytes = b""

    @property
    def pending(self) -> bool:
        return bool(self._bytes)

    @property
    def plain(self) -> bool:
        return not (self._bytes or self._to_strip or self._drop_spaces)

    def push_whole(self, token_id: int) -> str | None:
        return None

    def push(self, token_id: int) -> str:
        raw = self._tokenizer.token_bytes(token_id)
        spelling = self._tokenizer.spelling(token_id)
        if spelling is not None and self._tokenizer.pieces.byte_value(spelling) is not None:
            text = self._push_byte(raw)
        else:
            text = self._end_bytes() + self._drop(raw.decode("utf-8"))
        if spelling is not None:
            self._drop_spaces = False
        return self._strip(text)

    def flush(self) -> str:
        return self._strip(self._end_bytes())

    def _push_byte(self, byte: bytes) -> str:
        self._bytes += byte
        try:
            text, self._bytes = self._bytes.decode("utf-8"), b""
            return text
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
        if len(self._bytes) == 1:
            return self._end_bytes()
        # The new byte continues nothing: what was pending is lost, the byte may begin a character.
        broken, self._bytes = self._bytes[:-1], b""
        return _REPLACEMENT * len(broken) + self._push_byte(byte)

    def _end_bytes(self) -> str:
        lost, self._bytes = len(self._bytes), b""
        return _REPLACEMENT * lost

    def _drop(self, text: str) -> str:
        return text.replace(" ", "") if self._drop_spaces else text

    def _strip(self, text: str) -> str:
        if not self._to_strip or not text:
            return text
        kept = text
        while self._to_strip and kept.startswith(" "):
            kept, self._to_strip = kept[1:], self._to_strip - 1
        if kept:
            self._to_strip = 0
        return kept
