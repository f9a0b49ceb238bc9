"""What was asked for about the prompt, cut into chunks that stay well below a message's usual limit."""

from __future__ import annotations

from collections.abc import Iterator

from tokenwire_service.core.events import PromptScored, TokenLogprob
from tokenwire_service.rpc.events import PromptChunk
from tokenwire_service.rpc.plan import OutputPlan, tokens_per_event

MAX_CHUNK_TOKENS = 8192


class PromptDetailer:
    """Emits every prompt position once, in order, as soon as what was asked for is known."""

    def __init__(self, prompt: tuple[int, ...], output: OutputPlan) -> None:
        self._prompt = prompt
        self._token_ids = output.prompt_token_ids
        self._scored = output.prompt_logprobs is not None
        self._chunk = min(MAX_CHUNK_TOKENS, tokens_per_event(output.prompt_logprobs))
        self._next = 0

    def started(self) -> Iterator[PromptChunk]:
        """What is known before anything is computed."""
        if self._token_ids and not self._scored:
            yield from self._chunks([None] * len(self._prompt), logprobs=False)

    def scored(self, event: PromptScored) -> Iterator[PromptChunk]:
        """The engine scored a part of the prompt; parts it scores again are left out."""
        first = max(self._next, 1)
        rows: list[TokenLogprob | None] = list(event.logprobs[max(first - event.offset, 0) :])
        if self._next == 0:
            rows.insert(0, None)
        if self._scored and event.offset <= first:
            yield from self._chunks(rows, logprobs=True)

    def finished(self) -> Iterator[PromptChunk]:
        """The prompt is computed: a prompt of one token has no scores and is told here."""
        if self._scored and self._next == 0:
            yield from self._chunks([None], logprobs=True)

    def _chunks(self, rows: list[TokenLogprob | None], *, logprobs: bool) -> Iterator[PromptChunk]:
        for begin in range(0, len(rows), self._chunk):
            part = tuple(rows[begin : begin + self._chunk])
            offset, self._next = self._next, self._next + len(part)
            yield PromptChunk(offset, self._prompt[offset : self._next], part if logprobs else ())
