"""What goes over the socket comes out as it went in."""

import dataclasses
import random
import socket
import struct
import threading
from pathlib import Path

import pytest

from tests.support.local_engine import TINY_LIMITS, make_request
from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.core.events import (
    Admitted,
    Completed,
    EngineEvent,
    EngineStats,
    Failed,
    FailureReason,
    Finish,
    FinishReason,
    PromptScored,
    TokenLogprob,
    TokensGenerated,
)
from tokenwire_service.core.params import CacheParams, LogprobsParams, SamplingParams, StoppingParams
from tokenwire_service.engine import codec
from tokenwire_service.engine.client import EngineInfo
from tokenwire_service.engine.event_codec import events_from_pb, events_to_pb
from tokenwire_service.engine.framing import MAX_FRAME_BYTES, FrameDecoder, FramingError, encode_frame, read_frames
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel

FULL_SAMPLING = SamplingParams(
    temperature=0.7,
    top_k=5,
    top_p=0.9,
    min_p=0.1,
    typical_p=0.8,
    presence_penalty=-0.5,
    frequency_penalty=0.25,
    context_frequency_penalty=1.5,
    repetition_penalty=1.1,
    seed=2**64 - 3,
    logit_bias=((3, -1.5), (9, 100.0)),
    allowed_token_ids=(4, 3),
)
FULL_STOPPING = StoppingParams(9, 2, frozenset({1, 2}), context_limited=True, time_limit_s=1.5)


@pytest.mark.parametrize("full", [False, True])
def test_requests(full: bool) -> None:
    request = make_request("7", [1, 2, 70_000])
    if full:
        request = make_request(
            "7", [1], sampling=FULL_SAMPLING, stopping=FULL_STOPPING, num_candidates=3,
            logprobs=LogprobsParams(2, (5, 6)), prompt_logprobs=LogprobsParams(), priority=-4,
            deadline=0.0, queue_deadline=12.5, cache=CacheParams("tenant", bypass=True),
        )  # fmt: skip
        for params in (request, request.sampling, request.stopping):
            assert all(getattr(params, f.name) != f.default for f in dataclasses.fields(params)), (
                "every field is to be exercised"
            )
    wire = pb.Submission.FromString(codec.request_to_pb(request, 7).SerializeToString())
    assert codec.request_from_pb(wire) == request


def test_negative_seeds_keep_their_bits() -> None:
    request = make_request("1", [1], sampling=SamplingParams(seed=-1))
    assert codec.request_from_pb(codec.request_to_pb(request, 1)).sampling.seed == 2**64 - 1


def test_configuration() -> None:
    resolved = ResolvedModel(
        "me/model", "abc", ModelKind.HUB, {"a": [1, {"b": None}]}, (Path("/x/1.safetensors"),), Path("/x"),
        GenerationDefaults(),
    )  # fmt: skip
    wire = pb.Configure.FromString(codec.configure_to_pb(resolved, "auto", TINY_LIMITS).SerializeToString())
    assert codec.configure_from_pb(wire) == (resolved, "auto", TINY_LIMITS)


def test_snapshots() -> None:
    info = EngineInfo("float32", "cpu", 1, 2, 3, 4, 5, 6, 7, "q", "native")
    stats = EngineStats(*range(1, 14), step_time_s=0.5)
    assert codec.info_from_pb(codec.info_to_pb(info)) == info
    assert codec.stats_from_pb(codec.stats_to_pb(stats)) == stats


def random_events(seed: int) -> list[EngineEvent]:
    """Events of several requests, in an order an engine could give them in."""
    generator = random.Random(seed)

    def logprobs(count: int) -> tuple[TokenLogprob, ...]:
        return tuple(
            TokenLogprob(-0.5 * at, at + 1, tuple(range(at)), tuple(-0.25 * i for i in range(at)), tuple(range(at)))
            for at in range(count)
        )

    events: list[EngineEvent] = []
    for key in (generator.randrange(2**63) for _ in range(12)):
        name = str(key)
        events.append(Admitted(name, 3, 0.25))
        events.append(PromptScored(name, 1, logprobs(generator.randrange(4))))
        for index in range(generator.randrange(3)):
            count = generator.randrange(3)
            finish = generator.choice([None, Finish(FinishReason.MAX_TOKENS), Finish(FinishReason.STOP, 0)])
            tokens = tuple(generator.randrange(100_000) for _ in range(count))
            events.append(
                TokensGenerated(name, index, tokens, generator.choice([(), logprobs(count)]) if count else (), finish)
            )
        events.append(
            generator.choice(
                [Completed(name, 1, 2, 3, 0.5, 0.25, 1.5, 4, 9, 6), Failed(name, FailureReason.DRAINING, "m", 2)]
            )
        )
    return events


@pytest.mark.parametrize("seed", range(20))
def test_events_keep_their_order_within_a_request(seed: int) -> None:
    events = random_events(seed)
    names = {int(event.request_id): f"caller-{event.request_id}" for event in events}
    wire = pb.StepOutput.FromString(events_to_pb(events).SerializeToString())
    received = list(events_from_pb(wire, names))
    for key, name in names.items():
        expected = [dataclasses.replace(e, request_id=name) for e in events if e.request_id == str(key)]
        assert [event for its_key, event in received if its_key == key] == expected


def test_a_step_of_one_token_each() -> None:
    events = [TokensGenerated(str(key), index, (key * 7,)) for key in range(4) for index in range(2)]
    received = list(events_from_pb(events_to_pb(events), {key: f"caller-{key}" for key in (0, 1, 3)}))
    expected = [dataclasses.replace(e, request_id=f"caller-{e.request_id}") for e in events if e.request_id != "2"]
    assert received == [(int(e.request_id[7:]), e) for e in expected]


def test_events_of_forgotten_requests_are_left_out() -> None:
    events = random_events(1)
    kept = int(events[0].request_id)
    wire = events_to_pb(events)
    assert {key for key, _ in events_from_pb(wire, {kept: "x"})} == {kept}


def test_frames_survive_any_cut() -> None:
    generator = random.Random(0)
    payloads = [generator.randbytes(generator.choice([0, 1, 3, 200])) for _ in range(50)]
    stream = b"".join(encode_frame(payload) for payload in payloads)
    decoder, received = FrameDecoder(), []
    while stream:
        size = generator.randrange(1, 60)
        received += list(decoder.feed(stream[:size]))
        stream = stream[size:]
    assert received == payloads


def test_an_impossible_length_is_refused() -> None:
    with pytest.raises(FramingError, match="over the limit"):
        list(FrameDecoder().feed(struct.pack("<I", MAX_FRAME_BYTES + 1)))


def test_reading_ends_when_the_other_side_closes() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            sender = threading.Thread(target=lambda: theirs.sendall(encode_frame(b"a") + encode_frame(b"b")[:-1]))
            sender.start()
            sender.join()
        assert list(read_frames(ours)) == [b"a"]
