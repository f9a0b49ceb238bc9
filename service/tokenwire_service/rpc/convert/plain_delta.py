"""The event that almost every token is, as the bytes that protobuf would make of it.

A message costs memory of its own, made and freed for each token: more than everything else that is done with it.
"""

from __future__ import annotations

from google.protobuf.message import Message

from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire_service.text.tokenizer import Tokenizer

_VARINT, _LENGTH = 0, 2
_SHORT = 128
"""Lengths and counts below this are one byte."""
MAX_READY_EVENTS = 1 << 15
"""Kept at once: a few MB, and far more than the words of a language that are in common use."""


class PlainDelta:
    """Encodes events of one type whose delta has text, a number of tokens, and nothing else."""

    def __init__(self, event: type[Message], field: str) -> None:
        """`field` of `event` is the TextDelta."""
        delta = pb.TextDelta.DESCRIPTOR.fields_by_name
        begin = _tag(event.DESCRIPTOR.fields_by_name[field].number, _LENGTH)
        text, count = _tag(delta["text"].number, _LENGTH), _tag(delta["token_count"].number, _VARINT)
        self._form = begin + b"%c" + text + b"%c%b" + count + b"%c"

    def encode(self, text: str, token_count: int) -> bytes | None:
        """The event; None when either is so long, or empty, that it takes another form."""
        raw = text.encode()
        size = len(raw)
        if not (0 < size < _SHORT - 4 and 0 < token_count < _SHORT):
            return None
        return self._form % (size + 4, size, raw, token_count)


class ReadyEvents(dict[int, bytes | None]):
    """Token id → the event that tells its own text; None for tokens that have none. Made as they are first asked for.

    A mapping, so that finding one takes no Python at all.
    """

    def __init__(self, tokenizer: Tokenizer, form: PlainDelta) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._form = form

    def __missing__(self, token_id: int) -> bytes | None:
        text = self._tokenizer.own_text(token_id)
        event = None if text is None else self._form.encode(text, 1)
        if len(self) < MAX_READY_EVENTS:
            self[token_id] = event
        return event


def _tag(number: int, kind: int) -> bytes:
    """A field's tag, doubled where it would mean something to the form; fields here have numbers below 16."""
    return bytes([number << 3 | kind]).replace(b"%", b"%%")
