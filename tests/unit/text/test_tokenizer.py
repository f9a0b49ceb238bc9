"""The tokenizer against transformers' own loading of the same files, and its bytes against its text."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.embedded import embedded_model
from tests.support.texts import TEXTS, unicode_text
from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.text.tokenizer import Segment, Tokenizer

shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def oracle() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model().tokenizer_dir)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_and_text_equal_transformers(byte_level: Tokenizer, oracle: Any, text: str, special: bool) -> None:
    ids = byte_level.encode(text, add_special_tokens=special)
    assert ids == oracle.encode(text, add_special_tokens=special)
    for skip in (True, False):
        assert byte_level.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip)


def test_what_it_knows_of_itself(byte_level: Tokenizer, oracle: Any) -> None:
    assert byte_level.vocab_size == len(oracle)
    assert (byte_level.bos_token_id, byte_level.eos_token_id) == (oracle.bos_token_id, oracle.eos_token_id)
    assert byte_level.special_token_ids == set(oracle.all_special_ids) | {
        i for i, token in oracle.added_tokens_decoder.items() if token.special
    }


@pytest.mark.parametrize("add_bos", [True, False])
def test_tokenizer_config_decides_on_bos(tmp_path: Path, add_bos: bool) -> None:
    source = embedded_model().tokenizer_dir
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = {"bos_token": {"content": "<|im_start|>"}, "add_bos_token": add_bos, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.encode("hi")[:-1] == ([1] if add_bos else [])
    assert tokenizer.encode("hi", add_special_tokens=False)[:1] != [1]


@shared
@given(text=unicode_text)
def test_token_bytes_concatenate_to_the_text(byte_level: Tokenizer, text: str) -> None:
    assert b"".join(map(byte_level.token_bytes, byte_level.encode(text))) == text.encode()


def test_token_bytes_of_every_token(byte_level: Tokenizer) -> None:
    """Decoding one token alone shows the same bytes, wherever they are whole characters."""
    for token_id in range(byte_level.vocab_size):
        raw = byte_level.token_bytes(token_id)
        assert raw.decode("utf-8", "replace") == byte_level.decode([token_id], skip_special_tokens=False)
    assert byte_level.token_bytes(byte_level.vocab_size) == byte_level.token_bytes(-1) == b""


def test_sentencepiece_token_bytes(sentencepiece: Tokenizer) -> None:
    def raw(spelling: str) -> bytes:
        return sentencepiece.token_bytes(sentencepiece.token_id(spelling) or 0)

    assert (raw("\u2581abc"), raw("<0xF0>"), raw("é"), raw("</s>")) == (b" abc", b"\xf0", "é".encode(), b"</s>")


@shared
@given(text=unicode_text)
def test_byte_offsets_cut_out_each_token(byte_level: Tokenizer, text: str) -> None:
    encoding = byte_level.encode_with_offsets(text)
    raw = text.encode()
    for token_id, (start, end) in zip(encoding.ids, encoding.byte_offsets, strict=True):
        # A token that is part of a character spans all of it.
        assert byte_level.token_bytes(token_id) in raw[start:end]


def test_plain_segments_spell_control_tokens(byte_level: Tokenizer) -> None:
    whole = "a <|im_end|> b"
    segments = [Segment("a "), Segment("<|im_end|>", plain=True), Segment(" b")]
    encoding = byte_level.encode_segments(segments, offsets=True)
    assert 2 in byte_level.encode(whole)
    assert 2 not in encoding.ids
    assert byte_level.decode(encoding.ids) == whole
    assert "".join(whole[a:b] for a, b in encoding.byte_offsets) == whole


def test_sentencepiece_segments_get_no_space_between(sentencepiece: Tokenizer) -> None:
    encoding = sentencepiece.encode_segments(
        [Segment("abc"), Segment("</s>", plain=True), Segment("bc a")], offsets=True
    )
    assert sentencepiece.decode(encoding.ids) == "abc</s>bc a"
    assert 2 not in encoding.ids
    assert encoding.byte_offsets[-1] == (9, 11)


def test_many_threads_get_the_same_ids(byte_level: Tokenizer) -> None:
    text = " ".join(TEXTS) * 20
    expected = byte_level.encode(text)
    with ThreadPoolExecutor(8) as pool:
        assert all(ids == expected for ids in pool.map(byte_level.encode, [text] * 64))


def test_importing_it_brings_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, tokenwire_service.text.candidate_text, tokenwire_service.text.chat_template\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(WeightsError, match=r"tokenizer\.json: cannot be loaded"):
        Tokenizer.from_dir(tmp_path)
    description = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    description["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        Tokenizer.from_dir(tmp_path)
