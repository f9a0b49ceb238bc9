"""Tokenize and Detokenize: the model's tokenizer as the engine uses it, never through the generation queue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tokenwire.v1 import tokenization_pb2 as pb
from tokenwire_service.rpc.admission import Admission
from tokenwire_service.rpc.call import Call
from tokenwire_service.rpc.convert.chat import tokenize_chat
from tokenwire_service.rpc.convert.checks import Checks
from tokenwire_service.rpc.convert.generate import check_model
from tokenwire_service.rpc.endpoint import Method, Service
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.plan import ChatPrompt, TextPrompt
from tokenwire_service.rpc.prompts import PromptReader, refuse_huge, render
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

    def __init__(self, serving: Serving, prompts: PromptReader, max_concurrent_requests: int) -> None:
        self._serving = serving
        self._prompts = prompts
        self._admission = Admission(max_concurrent_requests)

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
        prompt = _checked(request, model)
        refuse_huge(prompt)
        with self._admission.enter(0):
            return await self._prompts.run(partial(_tokenize, request, prompt, model))

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
        with self._admission.enter(0):
            return pb.DetokenizeResponse(model=model.name, text=await self._prompts.run(decode))


def _checked(request: pb.TokenizeRequest, model: ServedModel) -> TextPrompt | ChatPrompt:
    """What to tokenize. Raises InvalidParameterError or FeatureNotEnabledError."""
    checks, kind = Checks(), request.WhichOneof("input")
    checks.require(kind is not None, "input", "is missing; set text or chat")
    checks.require(
        not (request.offsets and request.count_only), "offsets", "cannot come with count_only; leave out one"
    )
    only_text = kind == "text" or not request.HasField("add_special_tokens")
    checks.require(only_text, "add_special_tokens", "is for a text only; leave it out")
    checks.raise_if_any()
    if kind == "chat":
        return tokenize_chat(request.chat, model)
    special = request.add_special_tokens if request.HasField("add_special_tokens") else True
    return TextPrompt(request.text, add_special_tokens=special)


def _tokenize(request: pb.TokenizeRequest, prompt: TextPrompt | ChatPrompt, model: ServedModel) -> pb.TokenizeResponse:
    if isinstance(prompt, ChatPrompt):
        found = _chat_tokens(prompt, model, request.offsets)
    else:
        found = _text_tokens(prompt, model, request.offsets)
    response = pb.TokenizeResponse(model=model.name, token_count=len(found.token_ids))
    if request.count_only:
        return response
    response.text = found.text
    response.token_ids.extend(found.token_ids)
    response.token_bytes.extend(model.tokenizer.token_bytes(token_id) for token_id in found.token_ids)
    response.starts.extend(start for start, _ in found.byte_offsets)
    response.ends.extend(end for _, end in found.byte_offsets)
    return response


def _chat_tokens(prompt: ChatPrompt, model: ServedModel, offsets: bool) -> _Tokens:
    rendered = render(prompt, model, offsets=offsets)
    return _Tokens(rendered.text, rendered.token_ids, rendered.byte_offsets)


def _text_tokens(prompt: TextPrompt, model: ServedModel, offsets: bool) -> _Tokens:
    text, special = prompt.text, prompt.add_special_tokens
    if offsets:
        encoding = model.tokenizer.encode_with_offsets(text, add_special_tokens=special)
        return _Tokens(text, encoding.ids, encoding.byte_offsets)
    return _Tokens(text, tuple(model.tokenizer.encode(text, add_special_tokens=special)), ())
