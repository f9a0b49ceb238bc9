"""Bytes that are not what the contract says: which field does not parse, and which field numbers nobody knows.

Good messages cost one C-speed comparison; only bad ones are walked in Python, and at most 20,000 fields of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tokenwire_service.errors import FieldViolation

MessageType = Any
"""A message's descriptor; the stubs know two unrelated classes for it."""
MAX_FIELDS_WALKED = 20_000
MAX_DEPTH = 100
MAX_UNKNOWN_REPORTED = 64
_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_Field = FieldDescriptor
_WIRE_TYPES: Mapping[int, int] = MappingProxyType(
    {
        _Field.TYPE_DOUBLE: _FIXED64,
        _Field.TYPE_FIXED64: _FIXED64,
        _Field.TYPE_SFIXED64: _FIXED64,
        _Field.TYPE_FLOAT: _FIXED32,
        _Field.TYPE_FIXED32: _FIXED32,
        _Field.TYPE_SFIXED32: _FIXED32,
        _Field.TYPE_STRING: _BYTES,
        _Field.TYPE_BYTES: _BYTES,
        _Field.TYPE_MESSAGE: _BYTES,
    }
)
_FIXED_SIZES: Mapping[int, int] = MappingProxyType({_FIXED64: 8, _FIXED32: 4})
_REMEDY = "send a serialized protobuf message of this type, unaltered"


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a request that cannot be taken as it is; the handler turns it into a status."""

    violations: tuple[FieldViolation, ...]


def parse(raw: bytes, message_class: type[Message]) -> Message | Malformed:
    """The message, or what is wrong with its bytes: not parsable, or fields the contract does not know."""
    try:
        message = message_class.FromString(raw)
    except DecodeError:
        return Malformed((find_problem(raw, message_class.DESCRIPTOR),))
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() == size:
        return message
    return Malformed(find_unknown_fields(raw, message_class.DESCRIPTOR))


class _ProblemFound(Exception):
    def __init__(self, field: str, description: str) -> None:
        super().__init__(description)
        self.violation = FieldViolation(field, description)


def find_problem(raw: bytes, descriptor: MessageType) -> FieldViolation:
    """Name the first field that is at fault in bytes that failed to parse."""
    walker = _Walker(raw)
    try:
        walker.message(descriptor, 0, len(raw), "", 0)
    except _ProblemFound as problem:
        return problem.violation
    return FieldViolation("", f"the bytes are not a {descriptor.full_name}: {_REMEDY}")


def find_unknown_fields(raw: bytes, descriptor: MessageType) -> tuple[FieldViolation, ...]:
    """Name the field numbers, in any nested message, that the contract does not know."""
    walker = _Walker(raw)
    try:
        walker.message(descriptor, 0, len(raw), "", 0)
    except _ProblemFound as problem:
        return (problem.violation,)
    if walker.unknown:
        return tuple(FieldViolation(path, description) for path, description in walker.unknown.items())
    return (FieldViolation("", f"holds fields that {descriptor.full_name} does not have here: leave them out"),)


def _unknown(owner: MessageType, field: FieldDescriptor | None, number: int) -> str:
    if field is None:
        return f"{owner.full_name} has no field number {number} here: leave it out, or use a server that knows it"
    return f"field number {number} of {owner.full_name} is not of the type sent: generate stubs from its contract"


def _expected(field: FieldDescriptor | None, wire_type: int) -> bool:
    if field is None:
        return False
    own = _WIRE_TYPES.get(field.type, _VARINT)
    return wire_type == own or (field.is_repeated and own != _BYTES and wire_type == _BYTES)


class _Walker:
    """Reads the wire format only as far as finding a fault needs."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._fields_left = MAX_FIELDS_WALKED
        self.unknown: dict[str, str] = {}
        """Path of each field that is not the contract's → what is wrong with it."""

    def message(self, descriptor: MessageType, at: int, end: int, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _ProblemFound(path, f"nested deeper than {MAX_DEPTH} messages: send fewer levels")
        counts: dict[int, int] = {}
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                return
            tag, at = self._varint(at, end, path)
            number, wire_type = tag >> 3, tag & 7
            field = descriptor.fields_by_number.get(number)
            if number == 0 or wire_type > _FIXED32 or wire_type == _END_GROUP:
                raise _ProblemFound(path, f"the bytes are no valid protobuf here: {_REMEDY}")
            index = counts.get(number, 0)
            counts[number] = index + 1
            inside = _join(path, field, number, index)
            if not _expected(field, wire_type) and len(self.unknown) < MAX_UNKNOWN_REPORTED:
                self.unknown[inside] = _unknown(descriptor, field, number)
            at = self._value(field, wire_type, at, end, inside, depth)

    def _value(self, field: FieldDescriptor | None, wire_type: int, at: int, end: int, path: str, depth: int) -> int:
        if wire_type == _VARINT:
            return self._varint(at, end, path)[1]
        if wire_type in _FIXED_SIZES:
            return self._skip(_FIXED_SIZES[wire_type], at, end, path)
        if wire_type == _GROUP:
            raise _ProblemFound(path, f"a group, which proto3 does not have: {_REMEDY}")
        size, at = self._varint(at, end, path)
        stop = self._skip(size, at, end, path)
        if field is not None and field.message_type is not None:
            self.message(field.message_type, at, stop, path, depth + 1)
        elif field is not None and field.type == FieldDescriptor.TYPE_STRING:
            self._string(at, stop, path)
        return stop

    def _string(self, at: int, stop: int, path: str) -> None:
        try:
            self._raw[at:stop].decode()
        except UnicodeDecodeError as error:
            raise _ProblemFound(
                path, f"is not valid UTF-8 (byte {error.start}): send text as UTF-8, and raw bytes only in bytes fields"
            ) from None

    def _varint(self, at: int, end: int, path: str) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise _truncated(path)
            byte = self._raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise _ProblemFound(path, f"a number longer than 64 bits: {_REMEDY}")

    def _skip(self, size: int, at: int, end: int, path: str) -> int:
        if size > end - at:
            raise _truncated(path)
        return at + size


def _truncated(path: str) -> _ProblemFound:
    return _ProblemFound(path, f"the message ends in the middle of this field: {_REMEDY}")


def _join(path: str, field: FieldDescriptor | None, number: int, index: int) -> str:
    name = str(number) if field is None else field.name
    indexed = field is not None and field.is_repeated and not _is_map(field)
    return f"{path}.{name}".lstrip(".") + (f"[{index}]" if indexed else "")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
