"""TGI's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tokenwire.v1 import tokenization_pb2
from tokenwire_gateway import names
from tokenwire_gateway.facts import facts_of
from tokenwire_gateway.openai.convert import chat_messages, chat_tools, model_name, template_args
from tokenwire_gateway.openai.schemas import ChatCompletionRequest
from tokenwire_gateway.openapi import takes
from tokenwire_gateway.serving import body_of, cost_headers, event_stream, frames, gateway_of, json_response
from tokenwire_gateway.shapes import parse
from tokenwire_gateway.sse import unless_gone
from tokenwire_gateway.tgi.answers import TokenEvents, generate_body
from tokenwire_gateway.tgi.convert import generate_request
from tokenwire_gateway.tgi.errors import error_frame
from tokenwire_gateway.tgi.schemas import CompatGenerateRequest, GenerateRequest, TokenizeRequest


def tgi_routes() -> APIRouter:
    """The router of TGI's own paths."""
    router = APIRouter(tags=["TGI"])
    add = router.add_api_route
    add("/", compat_generate, methods=["POST"], openapi_extra=takes(CompatGenerateRequest))
    add("/generate", generate, methods=["POST"], openapi_extra=takes(GenerateRequest))
    add("/generate_stream", generate_stream, methods=["POST"], openapi_extra=takes(GenerateRequest))
    add("/tokenize", tokenize, methods=["POST"], openapi_extra=takes(TokenizeRequest))
    add("/chat_tokenize", chat_tokenize, methods=["POST"], openapi_extra=takes(ChatCompletionRequest))
    add("/info", info, methods=["GET"])
    return router


async def compat_generate(request: Request) -> Response:
    """As /generate_stream with `stream`, else as /generate in a list of one; return_full_text is true unless given."""
    body = parse(CompatGenerateRequest, await body_of(request))
    full = body.parameters.return_full_text is not False
    if body.stream:
        return await _stream(request, body, full)
    answer, headers = await _generate(request, body, full)
    return json_response([answer], headers)


async def generate(request: Request) -> Response:
    """Continues a prompt."""
    body = parse(GenerateRequest, await body_of(request))
    answer, headers = await _generate(request, body, bool(body.parameters.return_full_text))
    return json_response(answer, headers)


async def generate_stream(request: Request) -> Response:
    """Continues a prompt, one server-sent event for each token."""
    body = parse(GenerateRequest, await body_of(request))
    return await _stream(request, body, bool(body.parameters.return_full_text))


async def _generate(request: Request, body: GenerateRequest, full: bool) -> tuple[dict[str, Any], dict[str, str]]:
    facts, backend = facts_of(request.scope), gateway_of(request).backend
    asked = generate_request(body, stream=False)
    answer = await unless_gone(request.receive, backend.unary(backend.text.Generate, asked, facts))
    facts.model = answer.info.model
    facts.completed(answer.usage, answer.timing)
    headers = await cost_headers(request, facts, len(body.inputs))
    return generate_body(answer, body.parameters, body.inputs if full else ""), headers


async def _stream(request: Request, body: GenerateRequest, full: bool) -> Response:
    facts, backend = facts_of(request.scope), gateway_of(request).backend
    asked = generate_request(body, stream=True)
    told = TokenEvents(facts, body.parameters, body.inputs if full else "")
    events = backend.stream(backend.text.GenerateStream, asked, facts)
    return await event_stream(request, frames(events, told.on, b""), error_frame)


async def tokenize(request: Request) -> Response:
    """The tokens of a text and where they stand in its UTF-8 bytes."""
    body = parse(TokenizeRequest, await body_of(request))
    asked = tokenization_pb2.TokenizeRequest(text=body.inputs, add_special_tokens=body.add_special_tokens, offsets=True)
    backend = gateway_of(request).backend
    answer = await unless_gone(request.receive, backend.unary(backend.tokens.Tokenize, asked, facts_of(request.scope)))
    return json_response(_tokens(answer))


async def chat_tokenize(request: Request) -> Response:
    """The tokens of a conversation, rendered by the model's chat template."""
    body = parse(ChatCompletionRequest, await body_of(request))
    chat = tokenization_pb2.ChatPrompt(
        messages=chat_messages(body),
        tools=chat_tools(body),
        continue_final_message=body.continue_final_message,
        template_args_json=template_args(body),
    )
    asked = tokenization_pb2.TokenizeRequest(model=model_name(body.model), chat=chat, offsets=True)
    backend, facts = gateway_of(request).backend, facts_of(request.scope)
    facts.names = names.CHAT
    answer = await unless_gone(request.receive, backend.unary(backend.tokens.Tokenize, asked, facts))
    return json_response({"tokenize_response": _tokens(answer), "templated_text": answer.text})


def _tokens(answer: tokenization_pb2.TokenizeResponse) -> list[dict[str, Any]]:
    whole_text = answer.text.encode()
    return [
        {"id": token_id, "text": whole_text[start:stop].decode("utf-8", "replace"), "start": start, "stop": stop}
        for token_id, start, stop in zip(answer.token_ids, answer.starts, answer.ends, strict=True)
    ]


async def info(request: Request) -> Response:
    """The model and the server's limits. What the gateway cannot know is null."""
    gateway, facts = gateway_of(request), facts_of(request.scope)
    model = await gateway.backend.get_model("", facts)
    server = await gateway.backend.server_info(facts)
    limits = model.limits
    body = {
        "model_id": model.name,
        "model_sha": model.revision or None,
        "model_pipeline_tag": "text-generation",
        "model_dtype": model.dtype,
        "model_device_type": server.device,
        "max_concurrent_requests": server.max_concurrent_requests,
        "max_best_of": limits.max_candidates,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": limits.max_prompt_tokens,
        "max_total_tokens": limits.max_context_tokens,
        "max_batch_prefill_tokens": server.max_batch_prefill_tokens,
        "max_batch_size": server.max_batch_size,
        "validation_workers": None,
        "max_client_batch_size": gateway.config.max_client_batch_size,
        "router": "tokenwire-gateway",
        "version": server.version,
        "sha": None,
        "docker_label": None,
    }
    return json_response(body)
