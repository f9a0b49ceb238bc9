"""A service of two ranks over real gRPC: what it says, and what the end of a rank does to it."""

import os
import re
import signal
import time
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.rank_processes import in_session, main_thread_held, rank_pids
from tests.support.service_process import SERVING, ServiceProcess, eventually, serving_service
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc
from tokenwire.v1 import types_pb2
from tokenwire_service.config import EMBEDDED_MODEL_ID


def generate(service: ServiceProcess) -> list[str]:
    """What several calls at once bring: greedy and seeded, short and longer than a step."""
    samplings = [
        types_pb2.SamplingParams(temperature=0),
        types_pb2.SamplingParams(temperature=0.9, top_p=0.8, seed=7),
        types_pb2.SamplingParams(temperature=1.1, top_k=9, repetition_penalty=1.2, seed=8),
    ]
    stub = pb_grpc.TextGenerationServiceStub(service.channel)
    calls = [
        stub.GenerateStream(
            pb.GenerateRequest(
                text=text,
                sampling=sampling,
                stopping=types_pb2.StoppingCriteria(max_tokens=24, ignore_eos=True),
            ),
            timeout=60,
        )
        for sampling in samplings
        for text in ("hello", "a longer prompt " * 50)
    ]
    return ["".join(event.delta.text for event in call) for call in calls]


def told(error: grpc.RpcError) -> tuple[str, bool]:
    """The reason, and whether the caller is told when to come again."""
    status = rpc_status.from_call(error)
    assert status is not None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    unpacked = [(detail.Unpack(info), detail.Unpack(retry)) for detail in status.details]
    return info.reason, any(is_retry for _, is_retry in unpacked)


def test_two_ranks_say_what_one_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In float32: where activations are rounded to 16 bits, sums in another order settle near-ties otherwise."""
    said = []
    for ranks in (1, 2):
        directory = tmp_path / str(ranks)
        directory.mkdir()
        flags = ["--num-shard", str(ranks), "--dtype", "float32"]
        with serving_service(directory, tiny_checkpoint, flags) as service:
            assert len(rank_pids(service)) == ranks
            said.append(generate(service))
    assert said[0] == said[1]


def end_under_load(service: ServiceProcess, rank: int, number: signal.Signals) -> float:
    """Send a signal to a rank while streams run; the seconds until all had ended as they should."""
    pids = rank_pids(service)
    streams = [service.stream(8000, f"stream {index}") for index in range(4)]
    for stream in streams:
        next(stream)
    began = time.monotonic()
    os.kill(pids[rank], number)
    for stream in streams:
        with pytest.raises(grpc.RpcError) as ended:
            list(stream)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert told(ended.value) == ("ENGINE_DOWN", True)
    took_s = time.monotonic() - began
    eventually(lambda: not in_session(pids[0]))
    return took_s


def works_again(service: ServiceProcess) -> None:
    service.wait_for_health(SERVING)
    assert list(service.stream(3))[-1].completed.usage.completion_tokens == 3
    assert len(rank_pids(service)) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_every_stream_and_the_group_comes_back(sharded: ServiceProcess, rank: int) -> None:
    end_under_load(sharded, rank, signal.SIGKILL)
    works_again(sharded)
    if rank == 1:
        assert "rank 1 closed its connection; ending all 2 ranks" in sharded.err.read_text()


def test_a_rank_that_stands_still_is_noticed_and_named(sharded: ServiceProcess) -> None:
    end_under_load(sharded, 1, signal.SIGSTOP)
    assert re.search(r"rank 1 gave no sign of life for \d+\.\d s; ending all 2 ranks", sharded.err.read_text())
    works_again(sharded)


def test_rank_zero_that_stands_still_takes_the_others_with_it(sharded: ServiceProcess) -> None:
    end_under_load(sharded, 0, signal.SIGSTOP)
    works_again(sharded)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_though_its_process_lives_is_noticed(
    rank: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with serving_service(tmp_path, tiny_checkpoint, ["--num-shard", "2"]) as service:
        streams = [service.stream(8000, f"stream {index}") for index in range(4)]
        for stream in streams:
            next(stream)
        with main_thread_held(rank_pids(service)[rank]):
            for stream in streams:
                with pytest.raises(grpc.RpcError) as ended:
                    list(stream)
                assert told(ended.value) == ("ENGINE_DOWN", True)
        # Held in Python rather than in a kernel, it has the interpreter's lock: no thread gives a sign then.
        assert re.search(r"(made no progress|gave no sign of life) for \d+(\.\d)? s", service.err.read_text())
        works_again(service)


def test_a_signal_ends_all_ranks_in_order(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with serving_service(tmp_path, tiny_checkpoint, ["--num-shard", "2"]) as service:
        engine = service.engine_pid()
        stream = service.stream(40)
        next(stream)
        service.signal()
        assert list(stream)[-1].completed.usage.completion_tokens == 40
        assert service.exit_code() == 0
        eventually(lambda: not in_session(engine))
        assert "ERROR" not in service.err.read_text()
        assert "CRITICAL" not in service.err.read_text()


PROMPTS = ("The capital of France is", "One, two, three," * 30, "def fibonacci(n):", "Once upon a time")


def greedy(service: ServiceProcess, text: str) -> types_pb2.TokenLogprobs:
    """24 tokens and what else was likely at each."""
    request = pb.GenerateRequest(
        text=text,
        sampling=types_pb2.SamplingParams(temperature=0),
        stopping=types_pb2.StoppingCriteria(max_tokens=24, ignore_eos=True),
        output=types_pb2.OutputOptions(logprobs=types_pb2.LogprobsOptions(top_n=5)),
    )
    return pb_grpc.TextGenerationServiceStub(service.channel).Generate(request, timeout=60).candidates[0].logprobs


@pytest.mark.parametrize(("dtype", "near_tie"), [("float32", 0.0), ("auto", 0.3)])
def test_the_embedded_model_says_the_same_on_two_ranks(tmp_path: Path, dtype: str, near_tie: float) -> None:
    """Three KV heads over two ranks, quantized blocks cut by rows and columns, native kernels. Where `auto` rounds
    activations to 16 bits, two tokens as likely as each other, but for `near_tie`, may be taken for one another."""
    said = []
    for ranks in ("1", "2"):
        (tmp_path / ranks).mkdir()
        flags = ["--num-shard", ranks, "--dtype", dtype]
        with serving_service(tmp_path / ranks, EMBEDDED_MODEL_ID, flags) as service:
            said.append([greedy(service, text) for text in PROMPTS])
    for one, two in zip(*said, strict=True):
        assert len(one.token_ids) == len(two.token_ids) == 24
        same = [ours == theirs for ours, theirs in zip(one.token_ids, two.token_ids, strict=True)]
        at = same.index(False) if False in same else 24
        assert two.logprobs[:at] == pytest.approx(one.logprobs[:at], abs=near_tie or 1e-3)
        if at < 24:
            others = one.alternatives[at]
            likely = dict(zip(others.token_ids, others.logprobs, strict=True))
            assert likely.get(two.token_ids[at], -100.0) > one.logprobs[at] - near_tie
    assert b"Paris" in b"".join(said[0][0].token_bytes)
