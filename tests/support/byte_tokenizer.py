"""A tokenizer whose tokens are bytes, some pairs of bytes and four special tokens: small, exact, and able to cut any
character anywhere."""

import tokenizers

from tokenwire_service.text.chat_template import ChatTemplate
from tokenwire_service.text.pieces import pieces_of
from tokenwire_service.text.tokenizer import Tokenizer

SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
MERGED = ("he", "ll", "o ", "th", "é", "🙂", "\n\n")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Id = byte for the first 256; then merges (several bytes each), then the special tokens."""
    pieces = pieces_of({"type": "ByteLevel"})
    assert pieces is not None
    stand_in = {byte: char for char, byte in pieces.alphabet.items()}
    vocab = {stand_in[byte]: byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for text in MERGED:
        _merge([stand_in[byte] for byte in text.encode()], vocab, merges)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return Tokenizer(backend, {"eos_token": "<|end|>"})


def _merge(parts: list[str], vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    whole = parts[0]
    for part in parts[1:]:
        if whole + part not in vocab:
            merges.append((whole, part))
            vocab[whole + part] = len(vocab)
        whole += part


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(CHAT_TEMPLATE, tokenizer)
