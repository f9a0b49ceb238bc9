"""Two real kinds of tokenizer: the embedded model's (byte-level BPE) and a small SentencePiece one made here."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from tests.support.embedded import embedded_tokenizer
from tokenwire_service.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return embedded_tokenizer()


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """Letters, two merges, all byte tokens, and the usual special tokens, decoding as Llama 2's does."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", *"abcdefgh", "\u2581a", "bc", "\u2581abc", "é"]
    vocab = {word: token_id for token_id, word in enumerate(words)}
    merges = [("b", "c"), ("\u2581", "a"), ("\u2581a", "bc")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in ("<unk>", "<s>", "</s>")])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True})
