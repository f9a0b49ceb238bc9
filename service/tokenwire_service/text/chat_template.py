"""The model's own chat template: messages to the prompt it was trained on.

Rendering is transformers' (its import takes half a second and brings no torch): the sandbox, and the helpers templates
expect, stay those the templates were written against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from tokenwire_service.errors import BadRequestError, FieldViolation, InvalidParameterError, UnsupportedModelError
from tokenwire_service.text.control_tokens import ControlTokens, Guard
from tokenwire_service.text.tokenizer import Encoding, Tokenizer

_RESERVED = frozenset(
    {
        "messages",
        "tools",
        "conversations",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
        "compiled_template",
    }
)
_MAX_COMPLAINT = 500
# Longer prompts than this are some template's mistake or somebody's attack.
_MAX_RENDERED_CHARS = 64 << 20


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A prompt as text and tokens. Tokenizing `text` anew may give other tokens: a caller's control tokens are text."""

    text: str
    token_ids: tuple[int, ...]
    byte_offsets: tuple[tuple[int, int], ...] = ()
    """Where each token lies in the UTF-8 of `text`; only when asked for."""


class ChatTemplate:
    """A model's templates with the tokenizer they are written for. Safe to use from any number of threads."""

    def __init__(self, sources: Mapping[str, str] | str, tokenizer: Tokenizer) -> None:
        """`sources` by name, or the only one. Raises UnsupportedModelError when one does not compile."""
        from transformers.utils.chat_template_utils import render_jinja_template

        # Its annotations promise a string; it returns (one string per conversation, indices).
        self._render: Any = render_jinja_template
        self._sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        if "default" not in self._sources:
            names = ", ".join(self._sources) or "none"
            raise UnsupportedModelError(f"chat template: none is called 'default' (found: {names}); give one by flag")
        self._tokenizer = tokenizer
        self._controls = {name: ControlTokens(tokenizer, source) for name, source in self._sources.items()}
        for name, source in self._sources.items():
            self._compile(name, source)

    def _compile(self, name: str, source: str) -> None:
        """Parse now, so that a broken template ends the start and not a request; the result is kept by transformers."""
        try:
            self._render(
                [[{"role": "user", "content": "Hello"}]], chat_template=source, **self._tokenizer.special_tokens
            )
        except jinja2.TemplateSyntaxError as error:
            raise UnsupportedModelError(
                f"chat template '{name}' does not compile (line {error.lineno}: {error.message}); replace it by "
                "--tokenizer-config-path"
            ) from error
        except Exception:
            # It compiles; that it refuses so short a conversation, or needs tools, is its right.
            return

    @property
    def source(self) -> str:
        """The default template."""
        return self._sources["default"]

    @property
    def supports_tools(self) -> bool:
        """Whether some template reads `tools`."""
        return "tool_use" in self._sources or "tools" in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_args: Mapping[str, Any] | None = None,
        offsets: bool = False,
        field: str = "messages",
    ) -> RenderedChat:
        """The prompt for `messages` (objects with role and content), ready for the model.

        `add_generation_prompt` ends it where the assistant begins to speak, `continue_final_message` inside its last
        message; at most one of the two. `template_args` are the template's own variables. `field` is the proto path of
        the messages, for errors. Raises InvalidParameterError.
        """
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        guard = self._controls[name].guard()
        try:
            _check(messages, add_generation_prompt, continue_final_message, template_args or {})
            if tools and not self.supports_tools:
                raise InvalidParameterError.at(
                    "tools", "the model's chat template has no place for tools; leave them out"
                )
            rendered = self._run(
                self._sources[name],
                guard.mark_messages(messages),
                guard,
                tools=guard.mark(list(tools)) if tools else None,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self._tokenizer.special_tokens, **guard.mark(dict(template_args or {}))},
            )
            return self._tokenize(rendered, guard, self._controls[name], offsets)
        except BadRequestError as error:
            raise _below(field.removesuffix("messages"), error) from error

    def _run(self, source: str, messages: list[dict[str, Any]], guard: Guard, **variables: Any) -> str:
        """Render, and turn whatever the template throws into what the caller can act on."""
        try:
            return str(self._render([messages], chat_template=source, **variables)[0][0])
        except jinja2.TemplateError as error:
            complaint = guard.clean(error.message or type(error).__name__)[:_MAX_COMPLAINT]
            raise InvalidParameterError.at(
                "messages", f"the model's chat template refuses them: {complaint}"
            ) from error
        except ValueError as error:
            if variables["continue_final_message"]:
                raise InvalidParameterError.at(
                    "continue_final_message",
                    "the chat template does not keep the end of the last message; leave it out",
                ) from error
            raise _misfit(error, guard) from error
        except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise _misfit(error, guard) from error

    def _tokenize(self, rendered: str, guard: Guard, controls: ControlTokens, offsets: bool) -> RenderedChat:
        if len(rendered) > _MAX_RENDERED_CHARS:
            raise InvalidParameterError.at("messages", f"make a prompt of {len(rendered)} characters; shorten them")
        text = guard.clean(rendered)
        if not _is_unicode(text):
            raise InvalidParameterError.at("messages", "hold an unpaired surrogate; send valid Unicode")
        segments = guard.segments(rendered)
        encoding = self._tokenizer.encode_segments(segments, offsets=offsets)
        if any(segment.plain for segment in segments):
            self._check_plain(segments, controls)
        return _rendered(text, encoding)

    def _check_plain(self, segments: Sequence[Any], controls: ControlTokens) -> None:
        """Some vocabularies spell a control token even from plain text; then there is no safe prompt."""
        for segment in segments:
            if segment.plain and not controls.ids.isdisjoint(self._tokenizer.encode_segments([segment]).ids):
                raise InvalidParameterError.at("messages", f"hold the control token {segment.text}; leave it out")


def _below(path: str, error: BadRequestError) -> InvalidParameterError:
    """`error` with its fields below `path`."""
    return InvalidParameterError([FieldViolation(path + v.field, v.description) for v in error.violations])


def _rendered(text: str, encoding: Encoding) -> RenderedChat:
    return RenderedChat(text, encoding.ids, encoding.byte_offsets)


def _check(
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    continues: bool,
    template_args: Mapping[str, Any],
) -> None:
    if not messages:
        raise InvalidParameterError.at("messages", "empty; send at least one message")
    if continues and add_generation_prompt:
        raise InvalidParameterError.at(
            "continue_final_message", "excludes add_generation_prompt; set one of the two to false"
        )
    if continues and not messages[-1].get("content"):
        raise InvalidParameterError.at("continue_final_message", "the last message has no content to continue")
    if reserved := sorted(_RESERVED.intersection(template_args)):
        raise InvalidParameterError.at(
            "template_args_json", f"'{reserved[0]}' is set by the request's own fields; leave it out"
        )


def _misfit(error: Exception, guard: Guard) -> BadRequestError:
    complaint = guard.clean(str(error))[:_MAX_COMPLAINT]
    return InvalidParameterError.at(
        "messages", f"do not fit the model's chat template ({type(error).__name__}: {complaint})"
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
