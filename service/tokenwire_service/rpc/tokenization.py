"""Tokenize and Detokenize: the model's tokenizer as the engine uses it, never through the generation queue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tokenwire.v1 import tokenization_pb2 as pb
from tokenwire_service.rpc.call import Call
from tokenwire_service.rpc.convert.chat import tokenize_chat
from tokenwire_service.rpc.convert.checks import Checks
from tokenwire_service.rpc.convert.generate import check_model
from tokenwire_service.rpc.endpoint import Method, Service
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.plan import ChatPrompt
from tokenwire_service.rpc.prompts import PromptReader, render
from tokenwire_service.rpc.serving import Serving

NAME = "tokenwire.v1.TokenizationService"
MAX_DETOKENIZED = 1_048_576
"""Token ids in one Detokenize."""


@dataclass(frozen=True, slots=True)
class _Tokens:
    text: str
    token_ids: tuple[int, ...]
    byte_offsets: tuple[tuple[int, int], ...]


class TokenizationMethods:
    """Text to tokens and back."""

    def __init__(self, serving: Serving, prompts: PromptReader) -> None:
        self._serving = serving
        self._prompts = prompts

    def service(self) -> Service:
        return Service(
            NAME,
            (
                Method("Tokenize", pb.TokenizeRequest, pb.TokenizeResponse, self.tokenize),
                Method("Detokenize", pb.DetokenizeRequest, pb.DetokenizeResponse, self.detokenize),
            ),
        )

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        model = self._serving.require_model()
        check_model(request.model, model)
        chat = _checked(request, model)
        return await self._prompts.run(partial(_tokenize, request, chat, model))

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        model = self._serving.require_model()
        check_model(request.model, model)
        checks = Checks()
        checks.require(len(request.token_ids) > 0, "token_ids", "is empty; give at least one token")
        if checks.count(request.token_ids, "token_ids", MAX_DETOKENIZED):
            checks.token_ids(request.token_ids, "token_ids", model.vocab_size)
        checks.raise_if_any()
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        decode = partial(model.tokenizer.decode, tuple(request.token_ids), skip_special_tokens=skip)
        return pb.DetokenizeResponse(model=model.name, text=await self._prompts.run(decode))


def _checked(request: pb.TokenizeRequest, model: ServedModel) -> ChatPrompt | None:
    """The conversation, when there is one. Raises InvalidParameterError or FeatureNotEnabledError."""
    checks, kind = Checks(), request.WhichOneof("input")
    checks.require(kind is not None, "input", "is missing; set text or chat")
    checks.require(
        not (request.offsets and request.count_only), "offsets", "cannot come with count_only; leave out one"
    )
    only_text = kind == "text" or not request.HasField("add_special_tokens")
    checks.require(only_text, "add_special_tokens", "is for a text only; leave it out")
    checks.raise_if_any()
    return tokenize_chat(request.chat, model) if kind == "chat" else None


def _tokenize(request: pb.TokenizeRequest, chat: ChatPrompt | None, model: ServedModel) -> pb.TokenizeResponse:
    found = _chat_tokens(request, chat, model) if chat is not None else _text_tokens(request, model)
    response = pb.TokenizeResponse(model=model.name, token_count=len(found.token_ids))
    if request.count_only:
        return response
    response.text = found.text
    response.token_ids.extend(found.token_ids)
    response.token_bytes.extend(model.tokenizer.token_bytes(token_id) for token_id in found.token_ids)
    response.starts.extend(start for start, _ in found.byte_offsets)
    response.ends.extend(end for _, end in found.byte_offsets)
    return response


def _chat_tokens(request: pb.TokenizeRequest, chat: ChatPrompt, model: ServedModel) -> _Tokens:
    rendered = render(chat, model, offsets=request.offsets)
    return _Tokens(rendered.text, rendered.token_ids, rendered.byte_offsets)


def _text_tokens(request: pb.TokenizeRequest, model: ServedModel) -> _Tokens:
    special = request.add_special_tokens if request.HasField("add_special_tokens") else True
    if request.offsets:
        encoding = model.tokenizer.encode_with_offsets(request.text, add_special_tokens=special)
        return _Tokens(request.text, encoding.ids, encoding.byte_offsets)
    return _Tokens(request.text, tuple(model.tokenizer.encode(request.text, add_special_tokens=special)), ())
