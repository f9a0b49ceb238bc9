"""tokenizer.json for models that come without one: built from GGUF metadata, or converted from older files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.weights.gguf_file import GgufFile
from tokenwire_service.weights.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

# tokenizer.ggml.token_type
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"
_SPECIAL_TOKENS = MappingProxyType(
    {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
)
_CONVERTIBLE = ("tokenizer.model", "vocab.json", "spiece.model")
_COPIED = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class GgufVocabulary:
    """The tokenizer part of a GGUF file's metadata, checked for shape."""

    def __init__(self, file: GgufFile) -> None:
        self.path = file.path
        self._metadata = file.metadata
        self.model = self._metadata.get("tokenizer.ggml.model")
        self.pre = self._metadata.get("tokenizer.ggml.pre", "default")
        self.tokens: list[str] = self._list("tokens", str)
        self.types: list[int] = self._list("token_type", int) or [_NORMAL] * len(self.tokens)
        self.scores: list[float] = self._list("scores", float) or [0.0] * len(self.tokens)
        self.merges: list[str] = self._list("merges", str)
        if not self.tokens:
            raise WeightsError(f"{self.path}: the GGUF file has no vocabulary (tokenizer.ggml.tokens)")
        if not len(self.tokens) == len(self.types) == len(self.scores):
            raise WeightsError(f"{self.path}: damaged GGUF metadata (tokens, token_type and scores differ in length)")

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._metadata.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(value, list) or (value and not isinstance(value[0], kind)):
            raise WeightsError(f"{self.path}: damaged GGUF metadata (tokenizer.ggml.{key})")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._metadata.get(f"tokenizer.ggml.{key}", default))

    def special_token(self, key: str) -> str | None:
        """Text of `tokenizer.ggml.<key>_token_id`."""
        token_id = self._metadata.get(f"tokenizer.ggml.{key}_token_id")
        if not isinstance(token_id, int):
            return None
        if not 0 <= token_id < len(self.tokens):
            raise WeightsError(f"{self.path}: damaged GGUF metadata (tokenizer.ggml.{key}_token_id is {token_id})")
        return self.tokens[token_id]

    def ids(self) -> dict[str, int]:
        """Text to id; the first of equal texts wins."""
        ids: dict[str, int] = {}
        for token_id, text in enumerate(self.tokens):
            ids.setdefault(text, token_id)
        return ids


def write_gguf_tokenizer(file: GgufFile, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for `file`. Raises UnsupportedModelError or WeightsError."""
    vocabulary = GgufVocabulary(file)
    try:
        if vocabulary.model == "gpt2":
            tokenizer, adds_bos = _byte_level(vocabulary)
        elif vocabulary.model == "llama":
            tokenizer, adds_bos = _sentencepiece(vocabulary), True
        else:
            raise UnsupportedModelError(
                f"{file.path}: GGUF tokenizer '{vocabulary.model}' is not supported; use a file with gpt2 or llama"
            )
        _add_tokens(tokenizer, vocabulary)
    except (UnsupportedModelError, WeightsError):
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        raise WeightsError(f"{file.path}: the GGUF vocabulary is damaged ({error})") from error
    special = {name: vocabulary.special_token(key) for name, key in _SPECIAL_TOKENS.items()}
    add_bos = vocabulary.flag("add_bos_token", adds_bos) and special["bos_token"] is not None
    add_eos = vocabulary.flag("add_eos_token", False) and special["eos_token"] is not None
    _surround(tokenizer, special["bos_token"] if add_bos else None, special["eos_token"] if add_eos else None)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        **{name: text for name, text in special.items() if text is not None},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2), "utf-8")


def _byte_level(vocabulary: GgufVocabulary) -> tuple[Tokenizer, bool]:
    kind = _pre_tokenizer(vocabulary)
    merges = [(left, right) for left, right in (merge.split(" ") for merge in vocabulary.merges)]
    model = models.BPE(vocab=vocabulary.ids(), merges=merges, ignore_merges=kind.ignore_merges)
    tokenizer = Tokenizer(model)
    if kind.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = kind.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, kind.adds_bos


def _pre_tokenizer(vocabulary: GgufVocabulary) -> PreTokenizer:
    if vocabulary.pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnsupportedModelError(
            f"{vocabulary.path}: GGUF pre-tokenizer '{vocabulary.pre}' is not supported; use one of {known}"
        )
    return PRE_TOKENIZERS[vocabulary.pre]


def _sentencepiece(vocabulary: GgufVocabulary) -> Tokenizer:
    ids = vocabulary.ids()
    unknown = vocabulary.special_token("unknown")
    model = models.BPE(
        vocab=ids, merges=_merges_by_score(vocabulary, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    prefix = vocabulary.flag("add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_by_score(vocabulary: GgufVocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose result scores highest: as BPE merges, best score first.

    Control, byte and user-defined tokens never come of a merge.
    """
    normal = {text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == _NORMAL}
    merges: list[tuple[float, int, int, str, str]] = []
    for text in vocabulary.tokens:
        if text not in normal:
            continue
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        pairs = [(left, right) for left, right in pairs if left in normal and right in normal]
        score = vocabulary.scores[ids[text]]
        for left, right in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]])):
            merges.append((score, len(left), len(right), left, right))
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in merges]


def _add_tokens(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> None:
    """Control tokens as special ones; user-defined tokens as added ones that are text all the same."""
    rows = [(text, kind) for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if text]
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in rows if kind == _CONTROL]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in rows if kind == _USER_DEFINED])


def _surround(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """What goes before and after every text."""
    special = [(text, tokenizer.token_to_id(text)) for text in (bos, eos) if text is not None]
    if special:
        single = [text for text in (bos, "$A", eos) if text is not None]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=None, special_tokens=special)


def convertible_file(directory: Path) -> Path | None:
    """The file of an older tokenizer in `directory` that may be converted; None when there is none."""
    return next((directory / name for name in _CONVERTIBLE if (directory / name).is_file()), None)


def convert_tokenizer(source: Path, directory: Path) -> None:
    """Write tokenizer.json for the slow-only tokenizer in `source`, by transformers' converters."""
    from transformers import AutoTokenizer

    try:
        converted = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
        converted.backend_tokenizer.save(str(directory / "tokenizer.json"))
    except Exception as error:  # each converter fails in its own way
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModelError(
            f"{source}: has no tokenizer.json, and its tokenizer cannot be converted ({line[:300]})"
        ) from error
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
