"""What telemetry hears of a call: the facts, in order, with one end."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import pytest

from tests.support.fake_engine import FakeEngine, FakeStream
from tests.support.rpc import open_door, prompt, read
from tokenwire_service.core.events import EngineStats, FinishReason
from tokenwire_service.engine.client import EngineState
from tokenwire_service.observability.telemetry import RequestTelemetry


class Heard:
    """One call's story."""

    def __init__(self, method: str, model: str, request_id: str, metadata: Mapping[str, str]) -> None:
        self.method, self.model, self.request_id, self.metadata = method, model, request_id, metadata
        self.facts: dict[str, Any] = {}
        self.story: list[Any] = []

    def attributes(self, **attrs: Any) -> None:
        self.facts |= {key: value for key, value in attrs.items() if value is not None}

    def admitted(self, queue_time_s: float, prompt_tokens: int, cached_tokens: int) -> None:
        self.story.append(("admitted", queue_time_s, prompt_tokens, cached_tokens))

    def tokens(self, num: int, *, num_candidates: int = 1) -> None:
        self.story.append(("tokens", num, num_candidates))

    def completed(self, finish_reasons: Sequence[str], completion_tokens: int, **rest: Any) -> None:
        self.story.append(("completed", list(finish_reasons), completion_tokens))

    def ended(self, code: str, reason: str = "") -> None:
        self.story.append(("ended", code, reason))


class Recording:
    """Keeps every call and every state of the engine."""

    def __init__(self) -> None:
        self.calls: list[Heard] = []
        self.states: list[EngineState] = []

    def request(self, method: str, model: str, request_id: str, metadata: Mapping[str, str]) -> RequestTelemetry:
        self.calls.append(Heard(method, model, request_id, metadata))
        return self.calls[-1]

    def observe_engine(self, stats: EngineStats, state: EngineState) -> None:
        if self.states[-1:] != [state]:
            self.states.append(state)


async def two_candidates(stream: FakeStream) -> None:
    stream.admit(cached_prompt_tokens=1, queue_time_s=0.5)
    stream.tokens([97, 98], index=0, finish=FinishReason.MAX_TOKENS)
    stream.tokens([99], index=1, finish=FinishReason.STOP, stop_token_id=99)


async def test_a_good_call_is_told_from_beginning_to_end() -> None:
    telemetry = Recording()
    request = prompt(
        model="bytes",
        sampling={"temperature": 0.5, "candidate_count": 2, "seed": 3},
        user="eve",
        labels={"team": "a"},
        cache={"session_id": "s-1"},
    )
    async with open_door(FakeEngine(two_candidates), telemetry=telemetry) as door:
        metadata = (("x-request-id", "mine"), ("traceparent", "00-1"))
        await read(door.generation.GenerateStream(request, metadata=metadata))
        await door.generation.Generate(request)
    streamed, unary = telemetry.calls
    assert (streamed.method, streamed.model) == ("tokenwire.v1.TextGenerationService/GenerateStream", "bytes")
    assert (streamed.request_id, streamed.metadata["traceparent"]) == ("mine", "00-1")
    expected = {"temperature": 0.5, "choice_count": 2, "seed": 3, "stream": True, "response_model": "bytes"}
    expected |= {"user": "eve", "session_id": "s-1", "tokenwire.label.team": "a", "max_tokens": 253}
    assert expected.items() <= streamed.facts.items()
    assert streamed.facts["response_id"].startswith("tw-")
    assert streamed.story == unary.story
    assert streamed.story == [
        ("admitted", 0.5, 3, 1),
        ("tokens", 3, 2),
        ("completed", ["max_tokens", "stop"], 3),
        ("ended", "OK", ""),
    ]


async def test_a_bad_end_is_told_once_with_its_reason() -> None:
    telemetry = Recording()
    async with open_door(telemetry=telemetry, api_key="secret") as door:
        token = (("authorization", "Bearer secret"),)
        nowhere = door.channel.unary_unary("/tokenwire.v1.TextGenerationService/Made-Up-By-A-Caller")
        with pytest.raises(grpc.aio.AioRpcError):
            await door.generation.Generate(prompt(text=""), metadata=token)
        with pytest.raises(grpc.aio.AioRpcError):
            await door.generation.Generate(prompt())
        with pytest.raises(grpc.aio.AioRpcError):
            await nowhere(b"")
    stories = {call.method: call.story for call in telemetry.calls[:1]}
    assert stories == {
        "tokenwire.v1.TextGenerationService/Generate": [("ended", "INVALID_ARGUMENT", "INVALID_PARAMETER")]
    }
    assert [call.story for call in telemetry.calls[1:]] == [[("ended", "UNAUTHENTICATED", "CREDENTIALS_INVALID")]] * 2
    assert telemetry.calls[2].method == "unknown"


async def test_changes_of_the_engines_state_are_told() -> None:
    telemetry = Recording()
    async with open_door(FakeEngine(state=EngineState.LOADING), telemetry=telemetry) as door:
        for state in (EngineState.LOADING, EngineState.READY, EngineState.DOWN, EngineState.READY):
            door.engine.set_state(state)
            while telemetry.states[-1:] != [state]:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    assert telemetry.states == [EngineState.LOADING, EngineState.READY, EngineState.DOWN, EngineState.READY]
