"""The event that almost every token is, read without making a message of it: that would cost more than all the rest."""

from __future__ import annotations

from typing import Generic, TypeVar

from google.protobuf.message import Message

from tokenwire.v1 import text_generation_pb2 as text

_R = TypeVar("_R", bound=Message)
_VARINT, _LENGTH = 0, 2
_FRAME = 6
"""Bytes of a plain event around its text: tag and length of the delta, tag and length of the text, tag and value of the
number of tokens."""
_SHORT = 128
"""Lengths and counts below this are one byte."""


class EventReader(Generic[_R]):
    """Reads serialized events of one type."""

    def __init__(self, event: type[_R], field: str) -> None:
        """`field` of `event` is the TextDelta."""
        delta = text.TextDelta.DESCRIPTOR.fields_by_name
        self._event = event
        self._delta = event.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH
        self._text = delta["text"].number << 3 | _LENGTH
        self._count = delta["token_count"].number << 3 | _VARINT

    def __call__(self, raw: bytes) -> _R | str:
        """The event: just its text when it is a delta of the first candidate that tells nothing else but a number of
        tokens. Raises DecodeError, UnicodeDecodeError."""
        size = len(raw)
        if (
            _FRAME < size < _SHORT + 2
            and raw[0] == self._delta
            and raw[1] == size - 2
            and raw[2] == self._text
            and raw[3] == size - _FRAME
            and raw[-2] == self._count
            and raw[-1] < _SHORT
        ):
            return raw[4:-2].decode()
        return self._event.FromString(raw)
