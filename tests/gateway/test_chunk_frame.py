"""Chunks put together from ready parts are the JSON they would be if encoded whole."""

from typing import Any

import orjson
import pytest

from tokenwire_gateway.openai.common import ChunkFrame

HEAD = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": 'a "model"', "usage": None}


@pytest.mark.parametrize(
    ("name", "new", "logprobs", "finish"),
    [
        ("text", "plain", None, None),
        ("text", 'quotes " and \\ and \n and \u2028 and 🙂', None, None),
        ("text", "", None, "length"),
        ("text", "x", {"tokens": ["x"], "token_logprobs": [-0.5]}, None),
        ("delta", {"content": "%d %b"}, None, None),
        ("delta", {}, None, "stop"),
        ("delta", {"role": "assistant", "content": ""}, {"content": [], "refusal": None}, "stop"),
    ],
)
def test_a_chunk_is_what_encoding_it_whole_gives(name: str, new: Any, logprobs: Any, finish: str | None) -> None:
    made = ChunkFrame(HEAD, name)(3, new, logprobs, finish)
    choice = {"index": 3, name: new, "logprobs": logprobs, "finish_reason": finish}
    assert made == b"data: " + orjson.dumps({**HEAD, "choices": [choice]}) + b"\n\n"
