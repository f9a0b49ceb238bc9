"""TGI requests to tokenwire.v1 requests, with TGI's ranges, messages and rules for when it samples."""

from __future__ import annotations

import orjson

from tokenwire.v1 import text_generation_pb2 as text
from tokenwire.v1 import types_pb2 as types
from tokenwire_gateway.openai.convert import model_name
from tokenwire_gateway.tgi.errors import refused
from tokenwire_gateway.tgi.schemas import GenerateParameters, GenerateRequest, Grammar

_MAX_UINT32 = 2**32 - 1


def generate_request(body: GenerateRequest, *, stream: bool) -> text.GenerateRequest:
    """A GenerateRequest with every field of `body`. Raises GatewayError in TGI's words."""
    given = body.parameters
    check(given, stream=stream)
    if not body.inputs:
        raise refused("`inputs` cannot be empty")
    request = text.GenerateRequest(
        model=model_name(given.adapter_id),
        text=body.inputs,
        sampling=_sampling(given),
        # TGI returns the matched stop string as the end of the text.
        stopping=types.StoppingCriteria(
            max_tokens=given.max_new_tokens, stop=given.stop, include_stop=bool(given.stop) or None
        ),
        constraint=None if given.grammar is None else _constraint(given.grammar),
        truncate_prompt_tokens=given.truncate,
        add_special_tokens=body.add_special_tokens,
    )
    if stream or wants_details(given) or given.top_n_tokens:
        request.output.logprobs.top_n = given.top_n_tokens or 0
    if given.decoder_input_details:
        request.output.prompt_logprobs.SetInParent()
    _set_best_of(request, given)
    return request


def wants_details(given: GenerateParameters) -> bool:
    """Whether the answer has `details`."""
    return given.details or given.decoder_input_details


def samples(given: GenerateParameters) -> bool:
    """Whether tokens are drawn rather than the likeliest taken: TGI's rule."""
    warpers = (given.temperature, given.top_k, given.top_p, given.typical_p)
    return given.do_sample or any(value is not None for value in warpers)


def seed_to_int64(seed: int) -> int:
    """TGI's unsigned seed as the contract's signed one, bit for bit."""
    return seed - 2**64 if seed >= 2**63 else seed


def seed_to_uint64(seed: int) -> int:
    """The reverse of `seed_to_int64`."""
    return seed % 2**64


def check(given: GenerateParameters, *, stream: bool) -> None:
    """TGI's own ranges, where they differ from the service's or TGI has its own words."""
    _check_ranges(given)
    best_of = given.best_of if given.best_of is not None else 1
    if best_of < 1:
        raise refused(f"`best_of` must be > 0. Given: {best_of}")
    if best_of > 1:
        if stream:
            raise refused("`best_of` != 1 is not supported when streaming tokens")
        if not samples(given):
            raise refused("you must use sampling when `best_of` is > 1")
        if given.seed is not None:
            raise refused("`seed` must not be set when `best_of` > 1")
    if stream and given.decoder_input_details:
        raise refused("`decoder_input_details` == true is not supported when streaming tokens")


def _check_ranges(given: GenerateParameters) -> None:
    for name in ("temperature", "repetition_penalty", "top_k", "max_new_tokens"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            raise refused(f"`{name}` must be strictly positive")
    for name in ("top_p", "typical_p"):
        value = getattr(given, name)
        if value is not None and not 0.0 < value < 1.0:
            raise refused(f"`{name}` must be > 0.0 and < 1.0")
    if given.frequency_penalty is not None and not -2.0 <= given.frequency_penalty <= 2.0:
        raise refused("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if given.truncate is not None and given.truncate < 1:
        raise refused(f"`truncate` must be strictly positive. Given: {given.truncate}")
    if given.top_n_tokens is not None and given.top_n_tokens < 0:
        raise refused(f"`top_n_tokens` must be >= 0. Given: {given.top_n_tokens}")
    for name in ("best_of", "top_k", "max_new_tokens", "truncate", "top_n_tokens"):
        value = getattr(given, name)
        if value is not None and value > _MAX_UINT32:
            raise refused(f"`{name}` must be <= {_MAX_UINT32}. Given: {value}")


def _sampling(given: GenerateParameters) -> types.SamplingParams:
    # TGI does not read the model's own sampling defaults, so nothing that has one is left unset.
    return types.SamplingParams(
        temperature=(1.0 if given.temperature is None else given.temperature) if samples(given) else 0.0,
        top_k=given.top_k or 0,
        top_p=1.0 if given.top_p is None else given.top_p,
        typical_p=1.0 if given.typical_p is None else given.typical_p,
        min_p=0.0,
        repetition_penalty=1.0 if given.repetition_penalty is None else given.repetition_penalty,
        context_frequency_penalty=given.frequency_penalty,
        seed=None if given.seed is None else seed_to_int64(given.seed),
        watermark=given.watermark or None,
    )


def _set_best_of(request: text.GenerateRequest, given: GenerateParameters) -> None:
    if given.best_of is None or given.best_of == 1:
        return
    if wants_details(given):
        # All of them come back, to be told in best_of_sequences; `answers.py` picks the best.
        request.sampling.candidate_count = given.best_of
    else:
        request.sampling.best_of = given.best_of


def _constraint(grammar: Grammar) -> types.OutputConstraint:
    if grammar.type == "regex":
        if not isinstance(grammar.value, str):
            raise refused("grammar is not valid: `value` of a regex must be a string")
        return types.OutputConstraint(regex=grammar.value)
    schema, name = grammar.value, ""
    if grammar.type == "json_schema" and isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        name, schema = str(schema.get("name") or ""), schema["schema"]
    as_text = schema if isinstance(schema, str) else orjson.dumps(schema).decode()
    return types.OutputConstraint(json_schema=types.JsonSchema(schema=as_text, name=name))
