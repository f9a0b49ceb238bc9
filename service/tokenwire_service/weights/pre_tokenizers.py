"""How byte-level BPE vocabularies split text before merging, by the name GGUF gives the kind (`tokenizer.ggml.pre`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex, pre_tokenizers


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One kind. `pattern` empty means GPT-2's own split."""

    pattern: str = ""
    individual_digits: bool = False
    nfc: bool = False
    """Text is normalised to NFC first."""
    ignore_merges: bool = False
    """A whole word in the vocabulary is taken as it is, before any merge."""
    adds_bos: bool = False
    """A begin-of-text token goes before every text unless the file says otherwise."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The `tokenizers` component."""
        if self.pattern:
            split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated")
            return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if self.individual_digits:
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        return byte_level


_LLAMA3 = PreTokenizer(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ignore_merges=True,
    adds_bos=True,
)
_TEKKEN = PreTokenizer(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ignore_merges=True,
    adds_bos=True,
)
_QWEN2 = PreTokenizer(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    nfc=True,
)
_DIGITS = PreTokenizer(individual_digits=True)
_GPT2 = PreTokenizer()

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "default": _GPT2,
        "gpt-2": _GPT2,
        "mpt": _GPT2,
        "olmo": _GPT2,
        "smollm": _DIGITS,
        "starcoder": _DIGITS,
        "refact": _DIGITS,
        "codeshell": _DIGITS,
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "llama-bpe": _LLAMA3,
        "falcon3": _LLAMA3,
        "pixtral": _LLAMA3,
        "smaug-bpe": PreTokenizer(_LLAMA3.pattern),
        "tekken": _TEKKEN,
        "qwen2": _QWEN2,
        "deepseek-r1-qwen": _QWEN2,
        "megrez": _QWEN2,
    }
)
"""Kinds by name. An unknown one is refused: a wrong split gives wrong tokens without any error."""
