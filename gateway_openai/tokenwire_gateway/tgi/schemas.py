"""Requests of TGI's API."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tokenwire_gateway.shapes import Shape, only


class Grammar(Shape):
    """A form the output must have."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: dict[str, Any] | str


class GenerateParameters(Shape):
    """`parameters` of a request. Ranges are checked with TGI's own messages."""

    adapter_id: str | None = None
    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] = Field(default_factory=list)
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = Field(default=None, ge=0, le=2**64 - 1)
    top_n_tokens: int | None = None
    grammar: Grammar | None = None


class GenerateRequest(Shape):
    """Body of POST /generate and /generate_stream."""

    inputs: str
    # Without `parameters` TGI samples; with `parameters: {}` it is greedy.
    parameters: GenerateParameters = Field(default_factory=lambda: GenerateParameters(do_sample=True))
    add_special_tokens: bool = True


class CompatGenerateRequest(GenerateRequest):
    """Body of POST /."""

    stream: bool = False


class TokenizeRequest(Shape):
    """Body of POST /tokenize."""

    inputs: str
    add_special_tokens: bool = True
    parameters: only("they do not bear on tokens; leave them out", {}) = None  # type: ignore[valid-type]
