"""Prompts become tokens, in threads of their own: the tokenizers release the GIL and the event loop stays free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from tokenwire_service.errors import FieldViolation, InvalidParameterError
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.plan import ChatPrompt, GenerationPlan, TextPrompt, TokenPrompt
from tokenwire_service.rpc.request import too_long
from tokenwire_service.text.chat_template import RenderedChat

_Result = TypeVar("_Result")
MAX_CHARS_PER_TOKEN = 1024
"""A text this much longer than the longest prompt has tokens is refused unread; real ones have 3 to 5 a token."""
MAX_CHARS = 8 * 1024 * 1024
"""Characters tokenized for one call at most."""


class PromptReader:
    """Runs tokenizers and chat templates off the event loop."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Run text work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def tokens(self, plan: GenerationPlan, model: ServedModel) -> tuple[int, ...]:
        """The prompt's tokens, truncated as asked. Raises InvalidParameterError or ContextLengthExceededError."""
        prompt, truncate = plan.prompt, plan.truncate_prompt_tokens
        if isinstance(prompt, TokenPrompt):
            return prompt.token_ids
        if truncate is None:
            _refuse_endless(prompt, plan, model)
        refuse_huge(prompt)
        ids = await self.run(partial(_read, prompt, model))
        if not ids:
            raise InvalidParameterError.at(prompt.field, "has no tokens; give the text to continue")
        _refuse_strange(ids, prompt, model)
        return ids if truncate is None else ids[-truncate:]


def _read(prompt: TextPrompt | ChatPrompt, model: ServedModel) -> tuple[int, ...]:
    if isinstance(prompt, ChatPrompt):
        return render(prompt, model).token_ids
    return tuple(model.tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens))


def _refuse_strange(ids: tuple[int, ...], prompt: TextPrompt | ChatPrompt, model: ServedModel) -> None:
    """Some tokenizers know tokens that their model has no embedding for."""
    strange = next((token_id for token_id in ids if token_id >= model.vocab_size), None)
    if strange is not None:
        spelling = model.tokenizer.spelling(strange)
        message = f"contains {spelling!r}, token {strange}, which this model does not know; leave it out"
        raise InvalidParameterError.at(prompt.field, message)


def render(prompt: ChatPrompt, model: ServedModel, *, offsets: bool = False) -> RenderedChat:
    """The conversation by the model's template; for a worker thread. Raises InvalidParameterError."""
    assert model.chat_template is not None, "checked when the plan was made"
    try:
        return model.chat_template.render(
            prompt.messages,
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final_message=prompt.continue_final_message,
            template_args=prompt.template_args,
            offsets=offsets,
        )
    except InvalidParameterError as error:
        path = prompt.field.removesuffix("messages")
        raise InvalidParameterError(
            [FieldViolation(path + v.field, v.description) for v in error.violations]
        ) from error


def refuse_huge(prompt: TextPrompt | ChatPrompt) -> None:
    """Bound what a thread may be busy with. Raises InvalidParameterError."""
    size = _num_chars(prompt)
    if size > MAX_CHARS:
        raise InvalidParameterError.at(
            prompt.field, f"has {size} characters; at most {MAX_CHARS} are tokenized at once: send less"
        )


def _num_chars(prompt: TextPrompt | ChatPrompt) -> int:
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    return sum(len(message["content"]) for message in prompt.messages)


def _refuse_endless(prompt: TextPrompt | ChatPrompt, plan: GenerationPlan, model: ServedModel) -> None:
    """Spare the tokenizer what cannot fit."""
    most = model.limits.max_prompt_tokens
    if _num_chars(prompt) > most * MAX_CHARS_PER_TOKEN:
        raise too_long(prompt.field, f"more than {most}", model.limits, plan.stopping.max_tokens)
