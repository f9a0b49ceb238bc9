"""Answers in TGI's shapes: whole, and as one event for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenwire.v1 import text_generation_pb2 as text
from tokenwire.v1 import types_pb2 as types
from tokenwire_gateway.facts import RequestFacts
from tokenwire_gateway.sse import frame
from tokenwire_gateway.tgi.convert import samples, seed_to_uint64, wants_details
from tokenwire_gateway.tgi.schemas import GenerateParameters
from tokenwire_gateway.tokens import Token, TokenText, lossy, tokens_of


def finish_reason(finish: types.Finish) -> str:
    """TGI's word for the end of a candidate."""
    if finish.reason != types.FINISH_REASON_STOP:
        return "length"
    return "stop_sequence" if finish.WhichOneof("matched") == "stop" else "eos_token"


def generate_body(answer: text.GenerateResponse, given: GenerateParameters, prompt: str) -> dict[str, Any]:
    """The object /generate returns. `prompt` goes before the text; empty for none."""
    ranked = _best_first(answer.candidates)
    body: dict[str, Any] = {"generated_text": prompt + ranked[0].text}
    if wants_details(given):
        seed = seed_to_uint64(answer.info.seed) if samples(given) else None
        details = _details(ranked[0], answer.prompt, given, seed)
        if len(ranked) > 1:
            # The candidates are drawn from one request, so they share its seed.
            details["best_of_sequences"] = [
                {"generated_text": prompt + other.text, **_details(other, answer.prompt, given, seed)}
                for other in ranked[1:]
            ]
        body["details"] = details
    return body


def _best_first(candidates: Sequence[text.Candidate]) -> list[text.Candidate]:
    return sorted(candidates, key=lambda candidate: -_mean(candidate.logprobs.logprobs))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _details(
    candidate: text.Candidate, prompt: text.PromptDetails, given: GenerateParameters, seed: int | None
) -> dict[str, Any]:
    tokens = list(tokens_of(candidate.logprobs))
    said, asked = TokenText(), TokenText()
    details: dict[str, Any] = {
        "finish_reason": finish_reason(candidate.finish),
        "generated_tokens": candidate.token_count,
        "seed": seed,
        "prefill": [
            {"id": token.id, "text": asked.next(token.bytes), "logprob": token.logprob}
            for token in tokens_of(prompt.logprobs)
        ],
        "tokens": [_token(token, said.next(token.bytes)) for token in tokens],
    }
    if given.top_n_tokens:
        details["top_tokens"] = [_top_tokens(token) for token in tokens]
    return details


def _token(token: Token, piece: str) -> dict[str, Any]:
    return {"id": token.id, "text": piece, "logprob": token.logprob, "special": token.special}


def _top_tokens(token: Token) -> list[dict[str, Any]]:
    return [
        # The contract does not tell of an alternative whether it is special, unless it is the chosen one.
        {
            "id": other.id,
            "text": lossy(other.bytes),
            "logprob": other.logprob,
            "special": token.special if other.id == token.id else False,
        }
        for other in token.alternatives
    ]


class TokenEvents:
    """Turns the events of one GenerateStream into TGI's events: one for each token, the last with the whole text.

    TGI's last event is a token's own, so a token that may be the last one (it is special, fills max_new_tokens, ends a
    stop string, or no limit is known) waits for the service's next event, which comes in the same step when it was.
    """

    def __init__(self, facts: RequestFacts, given: GenerateParameters, prompt: str) -> None:
        self._facts = facts
        self._given = given
        self._prompt = prompt
        self._pieces: list[str] = []
        self._tail = ""
        self._decoder = TokenText()
        self._held: dict[str, Any] | None = None
        self._last: Token | None = None
        self._count = 0
        self._input_length = 0
        self._seed: int | None = None
        self._stop_chars = max((len(stop) for stop in given.stop), default=0)

    def on(self, event: text.GenerateStreamResponse) -> bytes:
        """The TGI events that `event` calls for; empty for none."""
        match event.WhichOneof("event"):
            case "started":
                self._facts.model = event.started.info.model
                self._input_length = event.started.prompt_tokens
                if samples(self._given):
                    self._seed = seed_to_uint64(event.started.info.seed)
                return b": started\n\n"
            case "delta":
                return self._delta(event.delta)
            case "candidate_finished":
                return self._finished(event.candidate_finished.finish)
            case "completed":
                self._facts.completed(event.completed.usage, event.completed.timing)
        return b""

    def _delta(self, delta: text.TextDelta) -> bytes:
        self._pieces.append(delta.text)
        told = []
        for token in tokens_of(delta.logprobs):
            told.append(self._release())
            self._facts.saw_first_token()
            self._count += 1
            self._last = token
            self._held = self._event(token, self._decoder.next(token.bytes))
        if self._last is not None and not self._may_be_last(self._last):
            told.append(self._release())
        return b"".join(told)

    def _finished(self, finish: types.Finish) -> bytes:
        if self._held is None:
            # Ended after a token that could not be seen to be the last: an empty special one, which adds no text.
            last = self._last
            token = {
                "id": last.id if last else 0,
                "text": "",
                "logprob": last.logprob if last else 0.0,
                "special": True,
            }
            self._held = {"index": self._count, "token": token}
        self._held["generated_text"] = self._prompt + "".join(self._pieces)
        self._held["details"] = {
            "finish_reason": finish_reason(finish),
            "generated_tokens": self._count,
            "seed": self._seed,
            "input_length": self._input_length,
        }
        return self._release()

    def _release(self) -> bytes:
        held, self._held = self._held, None
        return b"" if held is None else frame(held)

    def _event(self, token: Token, piece: str) -> dict[str, Any]:
        if self._stop_chars and not token.special:
            self._tail = (self._tail + piece)[-(self._stop_chars + len(piece)) :]
        event: dict[str, Any] = {"index": self._count, "token": _token(token, piece)}
        if self._given.top_n_tokens:
            event["top_tokens"] = _top_tokens(token)
        return event | {"generated_text": None, "details": None}

    def _may_be_last(self, token: Token) -> bool:
        limit = self._given.max_new_tokens
        return limit is None or self._count >= limit or token.special or any(s in self._tail for s in self._given.stop)
