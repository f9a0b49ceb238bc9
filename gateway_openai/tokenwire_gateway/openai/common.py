"""Pieces that chat and legacy completions share: ids, finish reasons, usage."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

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
