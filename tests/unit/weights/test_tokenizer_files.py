"""tokenizer.json from GGUF metadata: splits by kind, SentencePiece merges, added tokens; and from older files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.unit.weights.conftest import byte_vocabulary
from tokenwire_service.errors import UnsupportedModelError
from tokenwire_service.text.tokenizer import Segment, Tokenizer
from tokenwire_service.weights.directory import find_tokenizer
from tokenwire_service.weights.gguf_file import GgufFile
from tokenwire_service.weights.pre_tokenizers import PRE_TOKENIZERS
from tokenwire_service.weights.tokenizer_files import write_gguf_tokenizer

Write = Callable[..., Path]


@pytest.fixture
def write_vocabulary(tmp_path: Path) -> Write:
    """write(model, tokens, types, **more) → a .gguf file with one tiny tensor."""

    def write(
        model: str,
        tokens: list[str],
        types: list[int],
        *,
        pre: str | None = None,
        merges: list[str] | None = None,
        scores: list[float] | None = None,
        special: dict[str, int] | None = None,
        flags: dict[str, bool] | None = None,
    ) -> Path:
        path = tmp_path / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(model)
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        if merges is not None:
            writer.add_token_merges(merges)
        if scores is not None:
            writer.add_token_scores(scores)
        for name, token_id in (special or {}).items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
        for name, value in (flags or {}).items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def load(path: Path, tmp_path: Path) -> Tokenizer:
    made = tmp_path / "made"
    made.mkdir()
    write_gguf_tokenizer(GgufFile.read(path), made)
    return Tokenizer.from_dir(made)


def transformers_conversion(path: Path) -> Any:
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, metadata, _ = get_gguf_tokenizer(str(path))
    return convert_gguf_tokenizer(architecture, metadata)[0]


TRICKY = [
    "hello 123 1234567 the",
    "don't DON'T we'LL",
    "  two  spaces\n\n\nlines \t tabs\r\n",
    "x=1+2;// comment\n",
    "naïve café — “quoted” 数字123中文",
    "\u0661\u0662\u0663 ½",
]


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken", "qwen2", "default", "smaug-bpe"])
def test_splits_equal_transformers(pre: str, write_vocabulary: Write, tmp_path: Path) -> None:
    tokens, types, merges = byte_vocabulary()
    path = write_vocabulary("gpt2", tokens, types, pre=pre, merges=merges)
    theirs = transformers_conversion(path).pre_tokenizer
    for text in TRICKY:
        assert PRE_TOKENIZERS[pre].build().pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("smollm", ["a", "Ġ", "1", "2", "3", "4", "Ġb"]),
        ("default", ["a", "Ġ1234", "Ġb"]),
        ("llama-bpe", ["a", "Ġ", "123", "4", "Ġb"]),
        ("qwen2", ["a", "Ġ", "1", "2", "3", "4", "Ġb"]),
        ("tekken", ["a", "Ġ", "1", "2", "3", "4", "Ġb"]),
    ],
)
def test_digits(pre: str, words: list[str]) -> None:
    assert [word for word, _ in PRE_TOKENIZERS[pre].build().pre_tokenize_str("a 1234 b")] == words


def test_bos_follows_the_kind_unless_the_file_says_otherwise(write_vocabulary: Write, tmp_path: Path) -> None:
    tokens, types, merges = byte_vocabulary()

    def first(pre: str, name: str, flags: dict[str, bool] | None = None) -> int:
        (tmp_path / name).mkdir()
        path = write_vocabulary(
            "gpt2", tokens, types, pre=pre, merges=merges, special={"bos": 1, "eos": 2}, flags=flags
        )
        return load(path, tmp_path / name).encode("hello")[0]

    assert first("llama-bpe", "a") == 1
    assert first("llama-bpe", "b", {"add_bos_token": False}) != 1
    assert first("qwen2", "c") != 1
    assert first("qwen2", "d", {"add_bos_token": True}) == 1


def test_added_tokens_keep_their_ids_and_kinds(write_vocabulary: Write, tmp_path: Path) -> None:
    tokens, types, merges = byte_vocabulary()
    tokens, types = [*tokens, "<｜User｜>", "two  spaces"], [*types, 3, 4]
    tokenizer = load(write_vocabulary("gpt2", tokens, types, pre="qwen2", merges=merges), tmp_path)
    think = tokens.index("<think>")
    text = "hello<think><｜User｜>two  spaces"
    ids = tokenizer.encode(text)
    assert ids == [tokens.index("hello"), think, len(tokens) - 2, len(tokens) - 1]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == "hello<think>two  spaces"
    assert {0, 1, 2, len(tokens) - 2} == tokenizer.special_token_ids
    assert tokenizer.vocab_size == len(tokens)


def test_nfc_where_the_model_normalises(write_vocabulary: Write, tmp_path: Path) -> None:
    tokens, types, merges = byte_vocabulary()
    (tmp_path / "q").mkdir(), (tmp_path / "l").mkdir()
    qwen = load(write_vocabulary("gpt2", tokens, types, pre="qwen2", merges=merges), tmp_path / "q")
    llama = load(write_vocabulary("gpt2", tokens, types, pre="llama-bpe", merges=merges), tmp_path / "l")
    assert qwen.decode(qwen.encode("e\u0301")) == "\u00e9"
    assert llama.decode(llama.encode("e\u0301")) == "e\u0301"


def sentencepiece() -> tuple[list[str], list[int], list[float]]:
    words = [
        "\u2581the",
        "\u2581t",
        "he",
        "the",
        "in",
        "\u2581in",
        "ing",
        "\u2581",
        *"abcdefghinrt",
        "<s",
        "s>",
        "<",
        ">",
        "s",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, "<think>"]
    types = [2, 3, 3, *[6] * 256, *[1] * len(words), 4]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words))] + [0.0]
    return tokens, types, scores


def test_sentencepiece_equals_transformers(write_vocabulary: Write, tmp_path: Path) -> None:
    tokens, types, scores = sentencepiece()
    path = write_vocabulary("llama", tokens, types, scores=scores, special={"bos": 1, "eos": 2, "unknown": 0})
    ours, theirs = load(path, tmp_path), transformers_conversion(path)
    for text in ["the thing in there", "an  inthe 🦥\nnew", "bad cab", "  indented", "🦥", "the<think>in"]:
        ids = ours.encode(text, add_special_tokens=False)
        if "<think>" not in text and not text.startswith(" "):
            assert ids == theirs.encode(text, add_special_tokens=False).ids
        # As in llama.cpp and the published Llama 2 tokenizer, text behind an added token gets the space prefix too.
        assert ours.decode(ids) == text.replace("<think>", "<think> ")
    assert ours.encode("in")[:1] == [1]


def test_sentencepiece_control_tokens_never_come_of_merges(write_vocabulary: Write, tmp_path: Path) -> None:
    tokens, types, scores = sentencepiece()
    tokenizer = load(write_vocabulary("llama", tokens, types, scores=scores, special={"unknown": 0}), tmp_path)
    assert 1 in tokenizer.encode("<s>")
    assert 1 not in tokenizer.encode_segments([Segment("<s>", plain=True)]).ids


def test_no_space_prefix_where_the_file_says_so(write_vocabulary: Write, tmp_path: Path) -> None:
    tokens, types, scores = sentencepiece()
    path = write_vocabulary(
        "llama", tokens, types, scores=scores, flags={"add_space_prefix": False, "add_bos_token": False}
    )
    tokenizer = load(path, tmp_path)
    ids = tokenizer.encode("the in")
    assert [tokens[i] for i in ids] == ["the", "\u2581in"]
    assert tokenizer.decode(ids) == "the in"


def test_older_files_are_converted_once(tmp_path: Path) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    model.mkdir()
    tokens, _, merges = byte_vocabulary()
    (model / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (model / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"})
    )
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    made = find_tokenizer(model, cache, "model")
    assert cache in made.parents
    tokenizer = Tokenizer.from_dir(made)
    assert [tokens[i] for i in tokenizer.encode("hello the")] == ["hello", "Ġt", "he"]
    assert find_tokenizer(model, cache, "model") == made


def test_a_tokenizer_that_cannot_be_converted(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UnsupportedModelError, match=r"has no tokenizer\.json"):
        find_tokenizer(tmp_path / "model", tmp_path, "m")
    (tmp_path / "model/tokenizer.model").write_bytes(b"not a protobuf")
    with pytest.raises(UnsupportedModelError, match="cannot be converted") as caught:
        find_tokenizer(tmp_path / "model", tmp_path, "m")
    assert "\n" not in str(caught.value)
