"""Keeps callers from speaking in the template's voice.

A chat template writes control tokens (<|im_start|>, [INST]) around what callers say; a caller who writes one himself
would end his turn and begin another's. So control tokens in callers' strings are marked before rendering, and what is
marked is tokenized as the ordinary text it reads as. Marks are ASCII with a secret number in them: they survive
`tojson`, `repr`, changes of case and trimming, and nobody can forge one. transformers' `sanitize_control_tokens` is the
model; beyond it, a string that ends in the middle of a control token is marked too, so that two strings cannot be
joined to one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenwire_service.text.tokenizer import Segment, Tokenizer

_NEVER = "(?!)"


class ControlTokens:
    """The tokens only a template may write: every special token, and every other added token it has in its text."""

    def __init__(self, tokenizer: Tokenizer, template_source: str) -> None:
        added = tokenizer.added_tokens
        special = {text for text, token_id in added.items() if token_id in tokenizer.special_token_ids}
        # Runs of white space that are tokens of their own are text.
        written = {text for text in added if text in template_source and not text.isspace()}
        self._special, self._all = _TokenSet(special), _TokenSet(special | written)
        self.ids = frozenset(added[text] for text in self._all.texts)

    def guard(self) -> Guard:
        """Marks for one rendering."""
        return Guard(self._special, self._all)


class _TokenSet:
    """Texts of tokens, and the beginnings a text may not end with."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(texts)
        longest_first = sorted(self.texts, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or _NEVER)
        self.beginnings = frozenset(text[:length] for text in self.texts for length in range(1, len(text)))
        self.max_length = max(map(len, self.beginnings), default=0)

    def ends_inside(self, text: str) -> bool:
        """Whether `text` ends with the beginning of a token."""
        return any(text[-length:] in self.beginnings for length in range(1, min(self.max_length, len(text)) + 1))


class Guard:
    """Marks callers' strings before one rendering and finds the marks after it."""

    def __init__(self, special: _TokenSet, every: _TokenSet) -> None:
        number = secrets.randbelow(10**16)
        self._start, self._end = f"#~{number:016}~(", f")~{number:016}~#"
        self._special, self._all = special, every
        self._marked = False

    def mark_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages with control tokens marked, roles as they are.

        In the assistant's own turns tokens that are not special, such as <think>, stay tokens: callers send back what
        the model said.
        """
        return [self._mark_message(message) for message in messages]

    def _mark_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        tokens = self._special if message.get("role") == "assistant" else self._all
        return {key: value if key == "role" else self._mark(value, tokens) for key, value in message.items()}

    def mark(self, value: Any) -> Any:
        """`value` (JSON data) with control tokens in its strings marked; keys of objects are left."""
        return self._mark(value, self._all)

    def _mark(self, value: Any, tokens: _TokenSet) -> Any:
        if isinstance(value, str):
            return self._mark_text(value, tokens)
        if isinstance(value, Mapping):
            return {key: self._mark(item, tokens) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(item, tokens) for item in value]
        return value

    def _mark_text(self, text: str, tokens: _TokenSet) -> str:
        marked = tokens.pattern.sub(lambda match: f"{self._start}{match[0]}{self._end}", text)
        if tokens.ends_inside(text):
            marked += self._end
        self._marked = self._marked or marked is not text
        return marked

    def clean(self, rendered: str) -> str:
        """`rendered` without marks."""
        return rendered.replace(self._start, "").replace(self._end, "") if self._marked else rendered

    def segments(self, rendered: str) -> list[Segment]:
        """`rendered` cut at the marks: marked tokens are plain; a lone mark cuts and vanishes."""
        if not self._marked:
            return [Segment(rendered)]
        start, end = re.escape(self._start), re.escape(self._end)
        parts = re.split(f"{start}({self._all.pattern.pattern}){end}|{start}|{end}", rendered)
        pairs = ((text, index % 2 == 1) for index, text in enumerate(parts))
        return [Segment(text, plain) for text, plain in pairs if text]
