"""Legacy completions in OpenAI's shapes: whole, and as a stream of chunks. Several prompts answer as one response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenwire.v1 import text_generation_pb2 as text
from tokenwire.v1 import types_pb2 as types
from tokenwire_gateway.facts import RequestFacts, add_usage
from tokenwire_gateway.openai.common import ChunkFrame, finish_reason, head, usage_body
from tokenwire_gateway.sse import frame
from tokenwire_gateway.tokens import Token, TokenText, spelled, tokens_of

OBJECT = "text_completion"


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """How completions are told.

    choices: candidates of each prompt. echoes: for each prompt the text to put before its answer, None for none.
    skip_special: special tokens have no place in the text, so that offsets pass over them.
    """

    choices: int
    with_logprobs: bool
    include_usage: bool
    echoes: tuple[str | None, ...]
    skip_special: bool


class LogprobColumns:
    """Legacy log-probabilities of one choice, token by token. Offsets count characters of the choice's text."""

    def __init__(self, skip_special: bool) -> None:
        self._skip_special = skip_special
        self._text = TokenText()
        self._offset = 0

    def body(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """The next tokens as columns."""
        columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            columns["tokens"].append(spelled(token.bytes))
            columns["token_logprobs"].append(token.logprob)
            columns["top_logprobs"].append(_top(token))
            columns["text_offset"].append(self._offset)
            if not (token.special and self._skip_special):
                self._offset += len(self._text.next(token.bytes))
        return columns


def _top(token: Token) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    return {spelled(other.bytes): other.logprob for other in reversed(token.alternatives)} | {
        spelled(token.bytes): token.logprob
    }


def completion_body(answers: Sequence[text.GenerateResponse], plan: CompletionPlan) -> dict[str, Any]:
    """A text_completion object of the answers to each prompt, in the order of the prompts."""
    choices: list[dict[str, Any]] = []
    usage = types.Usage()
    for answer, echo in zip(answers, plan.echoes, strict=True):
        usage = add_usage(usage, answer.usage)
        choices += [_choice(len(choices) + i, c, answer.prompt, echo, plan) for i, c in enumerate(answer.candidates)]
    return {**head("cmpl", OBJECT, answers[0].info), "choices": choices, "usage": usage_body(usage)}


def _choice(
    number: int, candidate: text.Candidate, prompt: text.PromptDetails, echo: str | None, plan: CompletionPlan
) -> dict[str, Any]:
    logprobs = None
    if plan.with_logprobs:
        tokens = [*(tokens_of(prompt.logprobs) if echo is not None else ()), *tokens_of(candidate.logprobs)]
        logprobs = LogprobColumns(plan.skip_special).body(tokens)
    return {
        "index": number,
        "text": (echo or "") + candidate.text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(candidate.finish),
    }


class CompletionChunks:
    """Turns the events of one GenerateStream per prompt into chunks, as server-sent events."""

    def __init__(self, facts: RequestFacts, plan: CompletionPlan) -> None:
        self._facts = facts
        self._plan = plan
        self._head: dict[str, Any] = {}
        self._frame: ChunkFrame | None = None
        self._columns: dict[int, LogprobColumns] = {}
        self._running = len(plan.echoes)

    def on(self, prompt: int, event: text.GenerateStreamResponse | str) -> bytes:
        """The chunks that an event of `prompt` calls for; empty for none. Text is the first candidate's next."""
        if isinstance(event, str):
            self._facts.saw_first_token()
            return self._chunk(prompt * self._plan.choices, event)
        match event.WhichOneof("event"):
            case "started":
                return self._started(prompt, event.started)
            case "prompt":
                return self._prompt(prompt, event.prompt)
            case "delta":
                return self._delta(prompt * self._plan.choices + event.delta.index, event.delta)
            case "candidate_finished":
                finished = event.candidate_finished
                index = prompt * self._plan.choices + finished.index
                return self._chunk(index, "", finish=finish_reason(finished.finish))
            case "completed":
                return self._completed(event.completed)
        return b""

    def _started(self, prompt: int, started: text.StreamStarted) -> bytes:
        if not self._head:
            self._facts.model = started.info.model
            self._head = head("cmpl", OBJECT, started.info)
            if self._plan.include_usage:
                self._head["usage"] = None
            self._frame = ChunkFrame(self._head, "text")
        # An empty first chunk says that the call was admitted.
        return b"".join(self._chunk(index, self._plan.echoes[prompt] or "") for index in self._indices(prompt))

    def _prompt(self, prompt: int, details: text.PromptDetails) -> bytes:
        if not (self._plan.with_logprobs and self._plan.echoes[prompt] is not None):
            return b""
        tokens = tuple(tokens_of(details.logprobs))
        return b"".join(self._chunk(i, "", self._logprobs(i, tokens)) for i in self._indices(prompt))

    def _delta(self, index: int, delta: text.TextDelta) -> bytes:
        logprobs = None
        if self._plan.with_logprobs and delta.logprobs.token_ids:
            logprobs = self._logprobs(index, tokens_of(delta.logprobs))
        if not delta.text and logprobs is None:
            return b""
        self._facts.saw_first_token()
        return self._chunk(index, delta.text, logprobs)

    def _completed(self, completed: text.StreamCompleted) -> bytes:
        self._facts.completed(completed.usage, completed.timing)
        self._running -= 1
        if self._running or not self._plan.include_usage or self._facts.usage is None:
            return b""
        return frame({**self._head, "choices": [], "usage": usage_body(self._facts.usage)})

    def _logprobs(self, index: int, tokens: Iterable[Token]) -> dict[str, Any]:
        return self._columns.setdefault(index, LogprobColumns(self._plan.skip_special)).body(tokens)

    def _indices(self, prompt: int) -> range:
        return range(prompt * self._plan.choices, (prompt + 1) * self._plan.choices)

    def _chunk(self, index: int, piece: str, logprobs: Any = None, finish: str | None = None) -> bytes:
        assert self._frame is not None
        return self._frame(index, piece, logprobs, finish)
