"""Text to token ids and back, on the Rust tokenizers. Imports neither torch nor transformers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.text.pieces import Pieces, pieces_of

_MAX_FILE_BYTES = 256 << 20
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids of a text, and where in its UTF-8 bytes each token begins and ends (empty when not asked for)."""

    ids: tuple[int, ...]
    byte_offsets: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a text; in a plain one no added token is recognised: what looks like one is ordinary text."""

    text: str
    plain: bool = False


class Tokenizer:
    """One model's tokenizer. Immutable after construction, so any number of threads may use it."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any] | None = None) -> None:
        """`config` is tokenizer_config.json. Raises UnsupportedModelError for a decoder of an unknown kind."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._pieces = _pieces(backend)
        self.special_tokens = _special_tokens(config or {})
        """Texts by role: bos_token, eos_token, …"""
        _surround(backend, config or {}, self.special_tokens)
        added = backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        """Tokens that skip_special_tokens leaves out."""
        self.added_tokens = {token.content: token_id for token_id, token in added.items()}
        """Tokens recognised in a text before anything else, by their text."""
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        """Every id the tokenizer can make is less than this."""
        self._bytes: dict[int, bytes] = {}
        self._plain: tokenizers.Tokenizer | None = None
        self._plain_lock = threading.Lock()

    @classmethod
    def from_dir(cls, directory: Path) -> Tokenizer:
        """From tokenizer.json, tokenizer_config.json and special_tokens_map.json. Raises WeightsError."""
        path = directory / "tokenizer.json"
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise WeightsError(f"{path}: larger than {_MAX_FILE_BYTES >> 20} MiB; this is not a tokenizer")
            backend = tokenizers.Tokenizer.from_file(str(path))
        except WeightsError:
            raise
        except Exception as error:  # the library raises Exception itself
            raise WeightsError(f"{path}: cannot be loaded ({str(error)[:300]}); fetch it again") from error
        config = _read_json(directory / "special_tokens_map.json") | _read_json(directory / "tokenizer_config.json")
        return cls(backend, config)

    @property
    def pieces(self) -> Pieces:
        """How tokens are spelled."""
        return self._pieces

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of("eos_token")

    def _id_of(self, role: str) -> int | None:
        text = self.special_tokens.get(role)
        return None if text is None else self.token_id(text)

    def token_id(self, spelling: str) -> int | None:
        """The id of a vocabulary entry; None when there is none of that spelling."""
        token_id: int | None = self._backend.token_to_id(spelling)
        return token_id

    def spelling(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token; None for an id that is not in it."""
        spelling: str | None = self._backend.id_to_token(token_id)
        return spelling

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids. `add_special_tokens` puts the tokenizer's own tokens (begin of text) around them."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_with_offsets(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """Token ids and byte offsets. A token that is part of a character spans that whole character."""
        encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return Encoding(tuple(encoding.ids), _to_bytes(encoding.offsets, text))

    def encode_segments(self, segments: Sequence[Segment], *, offsets: bool = False) -> Encoding:
        """Token ids of the segments' concatenation, adding no special tokens; no token spans two segments."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        start = 0
        for index, segment in enumerate(segments):
            encoding, skip, shift = self._encode_segment(segment, follows=index > 0)
            ids += encoding.ids[skip:]
            if offsets:
                spans += [(max(a - shift, 0) + start, max(b - shift, 0) + start) for a, b in encoding.offsets[skip:]]
                start += len(segment.text)
        text = "".join(segment.text for segment in segments) if offsets else ""
        return Encoding(tuple(ids), _to_bytes(spans, text))

    def _encode_segment(self, segment: Segment, *, follows: bool) -> tuple[tokenizers.Encoding, int, int]:
        """The encoding, and how many tokens and characters at its front are not the segment's.

        SentencePiece puts a space before a text; a segment that follows another goes behind a newline to be spared it.
        """
        backend = self._plain_backend() if segment.plain else self._backend
        if follows and not self._pieces.byte_level:
            newline = backend.encode("\n", add_special_tokens=False).ids
            encoding = backend.encode("\n" + segment.text, add_special_tokens=False)
            if encoding.ids[: len(newline)] == newline:
                return encoding, len(newline), 1
        return backend.encode(segment.text, add_special_tokens=False), 0, 0

    def _plain_backend(self) -> tokenizers.Tokenizer:
        """The tokenizer without its added tokens, made when first needed."""
        with self._plain_lock:
            if self._plain is None:
                description = json.loads(self._backend.to_str())
                description |= {"added_tokens": [], "post_processor": None}
                self._plain = tokenizers.Tokenizer.from_str(json.dumps(description))
            return self._plain

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that make no character become U+FFFD. Ids outside the vocabulary are left out."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Exactly the bytes a token adds to a text (not at its start); empty for an id outside the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            spelling = self.spelling(token_id) if token_id >= 0 else None
            known = b"" if spelling is None else self._pieces.to_bytes(spelling)
            if spelling is not None:
                self._bytes[token_id] = known
        return known

    def own_text(self, token_id: int) -> str | None:
        """What a token adds wherever it stands between whole characters (not at the start of a text).

        None when its bytes are no whole characters, and for special tokens, whose text may have to be left out.
        """
        spelling = self.spelling(token_id)
        if spelling is None or token_id in self.special_token_ids or self._pieces.byte_value(spelling) is not None:
            return None
        try:
            return self.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            return None


def _pieces(backend: tokenizers.Tokenizer) -> Pieces:
    description = None if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    pieces = pieces_of(description)
    if pieces is None:
        kind = None if description is None else description.get("type")
        raise UnsupportedModelError(f"tokenizer.json: decoder {kind} is neither byte-level BPE's nor SentencePiece's")
    return pieces


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Texts by role; a value is a string or a serialized AddedToken."""
    tokens: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens


def _surround(backend: tokenizers.Tokenizer, config: dict[str, Any], special_tokens: dict[str, str]) -> None:
    """Honour tokenizer_config.json's add_bos_token and add_eos_token, which overrule tokenizer.json where set."""
    if config.get("add_bos_token") is None and config.get("add_eos_token") is None:
        return
    bos = special_tokens.get("bos_token") if config.get("add_bos_token") else None
    eos = special_tokens.get("eos_token") if config.get("add_eos_token") else None
    special = [(text, backend.token_to_id(text)) for text in (bos, eos) if text is not None]
    if any(token_id is None for _, token_id in special):
        raise WeightsError("tokenizer_config.json: bos_token or eos_token is not in tokenizer.json's vocabulary")
    single = [text for text in (bos, "$A", eos) if text is not None]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=None, special_tokens=special)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty when there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: not a JSON object; fetch it again")
    return value


def _to_bytes(spans: Sequence[tuple[int, int]], text: str) -> tuple[tuple[int, int], ...]:
    """Character spans of `text` as spans of its UTF-8 bytes."""
    if text.isascii():
        return tuple(spans)
    position, positions = 0, [0]
    for char in text:
        code = ord(char)
        position += 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
        positions.append(position)
    return tuple((positions[start], positions[end]) for start, end in spans)
