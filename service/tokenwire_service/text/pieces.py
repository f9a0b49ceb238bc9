"""From a vocabulary entry's spelling to the bytes it stands for, by the decoder of tokenizer.json.

Two families cover text models: byte-level BPE (every byte has a printable stand-in) and SentencePiece ("▁" is a space,
"<0x0A>" a byte).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_STEPS = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-ins: printable Latin-1 characters are themselves, the other bytes follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


@dataclass(frozen=True, slots=True)
class Pieces:
    """How the tokens of one tokenizer are spelled."""

    alphabet: Mapping[str, int]
    """Stand-ins of byte-level BPE; empty for SentencePiece."""
    byte_fallback: bool = False
    strip_left: int = 0
    """Spaces dropped at the very start of a text."""
    drop_first_spaces: bool = False
    """All "▁" of a text's first token are dropped (the Metaspace decoder)."""

    @property
    def byte_level(self) -> bool:
        return bool(self.alphabet)

    def to_bytes(self, spelling: str) -> bytes:
        """The UTF-8 (or part of a character's UTF-8) that `spelling` stands for."""
        if self.alphabet:
            try:
                return bytes([self.alphabet[char] for char in spelling])
            except KeyError:
                # An added token such as <｜user｜>, spelled as it reads.
                return spelling.encode("utf-8")
        byte = self.byte_value(spelling)
        return spelling.replace(_SPACE, " ").encode("utf-8") if byte is None else bytes([byte])

    def byte_value(self, spelling: str) -> int | None:
        """The byte a SentencePiece byte token stands for; None for other tokens."""
        match = _BYTE_TOKEN.fullmatch(spelling) if self.byte_fallback else None
        return int(match[1], 16) if match else None


def pieces_of(decoder: Mapping[str, Any] | None) -> Pieces | None:
    """The spelling that tokenizer.json's `decoder` undoes; None for a decoder of neither family."""
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return Pieces(_byte_alphabet())
    if not kinds or not set(kinds) <= _SENTENCEPIECE_STEPS:
        return None
    strips = [step for step in steps if step["type"] == "Strip"]
    fused_before_strip = "Fuse" in kinds and kinds[-1] == "Strip"
    if strips and not (len(strips) == 1 and fused_before_strip and strips[0].get("content") == " "):
        return None
    if strips and strips[0].get("stop"):
        return None
    metaspace = next((step for step in steps if step["type"] == "Metaspace"), None)
    if metaspace is None and not any(_replaces_space(step) for step in steps):
        return None
    return Pieces(
        {},
        byte_fallback="ByteFallback" in kinds,
        strip_left=int(strips[0].get("start", 0)) if strips else 0,
        drop_first_spaces=metaspace is not None and metaspace.get("prepend_scheme", "always") != "never",
    )


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _steps(inner)]
    return [decoder]


def _replaces_space(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Replace" and step.get("pattern") == {"String": _SPACE} and step.get("content") == " "
