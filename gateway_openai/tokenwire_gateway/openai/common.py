"""Pieces that chat and legacy completions share: ids, finish reasons, usage."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from tokenwire.v1 import types_pb2 as types

_FINISH: Mapping[types.FinishReason.ValueType, str] = MappingProxyType(
    {
        types.FINISH_REASON_STOP: "stop",
        types.FINISH_REASON_MAX_TOKENS: "length",
        types.FINISH_REASON_CONTEXT_LENGTH: "length",
        types.FINISH_REASON_TIME_LIMIT: "length",
        types.FINISH_REASON_TOOL_CALLS: "tool_calls",
        types.FINISH_REASON_CONTENT_FILTER: "content_filter",
    }
)


def finish_reason(finish: types.Finish) -> str:
    """OpenAI's word for the end of a candidate."""
    return _FINISH.get(finish.reason, "stop")


def head(prefix: str, object_name: str, info: types.ResponseInfo) -> dict[str, Any]:
    """The fields every response and chunk begins with. The id is the service's own, behind OpenAI's prefix."""
    return {
        "id": f"{prefix}-{info.response_id}",
        "object": object_name,
        "created": info.create_time.seconds,
        "model": info.model,
        "system_fingerprint": info.fingerprint or None,
    }


class ChunkFrame:
    """Server-sent events that are alike but for one choice: what is the same in all of them is encoded once.

    `shared`: the fields every chunk begins with. `name`: of the choice's field that holds what is new.
    """

    def __init__(self, shared: dict[str, Any], name: str) -> None:
        self._head = b"data: " + orjson.dumps(shared)[:-1] + b',"choices":[{"index":'
        self._name = b',"' + name.encode() + b'":'

    def __call__(self, index: int, new: Any, logprobs: Any, finish: str | None) -> bytes:
        """The event of one choice. `new` and `logprobs` are anything JSON."""
        if logprobs is None and finish is None:
            tail = b',"logprobs":null,"finish_reason":null}]}\n\n'
        else:
            tail = b',"logprobs":%b,"finish_reason":%b}]}\n\n' % (orjson.dumps(logprobs), orjson.dumps(finish))
        return b"%b%d%b%b%b" % (self._head, index, self._name, orjson.dumps(new), tail)


def usage_body(usage: types.Usage) -> dict[str, Any]:
    """OpenAI's usage. Predictions are the service's own, made by speculation."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": usage.accepted_draft_tokens,
            "rejected_prediction_tokens": usage.draft_tokens - usage.accepted_draft_tokens,
        },
    }
