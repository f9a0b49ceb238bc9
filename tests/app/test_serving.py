"""One service while it lives: it answers, shows itself, and survives its engine."""

import os
import re
import signal
import threading

import grpc
import pytest

from tests.support.otlp import Collector, attributes
from tests.support.service_process import NOT_SERVING, SERVING, ServiceProcess, eventually, scraped
from tokenwire.v1 import models_pb2, models_pb2_grpc, types_pb2
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc

STREAM = "tokenwire.v1.TextGenerationService/GenerateStream"


def test_the_banner_names_the_ports_the_model_and_a_line_that_works(service: ServiceProcess) -> None:
    eventually(lambda: "Try it" in service.out.read_text())
    banner = service.out.read_text()
    assert f"gRPC     127.0.0.1:{service.port}" in banner
    assert f"metrics  http://127.0.0.1:{service.metrics_port}/metrics" in banner
    assert "on cpu" in banner
    assert re.search(rf"grpcurl -plaintext -d '.*' 127\.0\.0\.1:{service.port} .*ChatStream", banner)


def test_it_generates_and_chats(service: ServiceProcess) -> None:
    events = list(service.stream(12))
    assert events[-1].completed.usage.completion_tokens == 12
    stub = pb_grpc.TextGenerationServiceStub(service.channel)
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hi")])
    answer = stub.Chat(
        pb.ChatRequest(messages=[message], stopping=types_pb2.StoppingCriteria(max_tokens=4)), timeout=30
    )
    assert 1 <= answer.usage.completion_tokens <= 4


def test_it_describes_its_model(service: ServiceProcess, tiny_checkpoint: object) -> None:
    stub = models_pb2_grpc.ModelServiceStub(service.channel)
    model = stub.GetModel(models_pb2.GetModelRequest(), timeout=30).model
    assert model.name == str(tiny_checkpoint)
    assert model.architecture == "LlamaForCausalLM"
    assert model.limits.max_context_tokens == 8192
    assert model.limits.max_prompt_tokens == 8191
    assert model.capabilities.chat
    assert model.eos_token_ids


def test_the_metrics_page_counts_what_happened(service: ServiceProcess) -> None:
    before = scraped(service)
    list(service.stream(5))
    after = scraped(service)
    done = 'tokenwire_requests_total{code="OK",method="GenerateStream"}'
    grown = {
        done: 1,
        "tokenwire_generated_tokens_total": 5,
        "tokenwire_time_to_first_token_seconds_count": 1,
        "tokenwire_request_generated_tokens_sum": 5,
    }
    assert {name: after[name] - before.get(name, 0) for name in grown} == grown
    assert after["tokenwire_engine_ready"] == 1
    assert after["tokenwire_kv_blocks"] == 512


def test_calls_are_traced_to_the_collector_of_the_standard_variables(
    service: ServiceProcess, collector: Collector
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    request = pb.GenerateRequest(text="hello", stopping=types_pb2.StoppingCriteria(max_tokens=3, ignore_eos=True))
    stub = pb_grpc.TextGenerationServiceStub(service.channel)
    list(stub.GenerateStream(request, timeout=30, metadata=[("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01")]))

    def spans() -> dict[str, object]:
        return {span.name: span for span in collector.spans if span.trace_id.hex() == trace_id}

    eventually(lambda: len(spans()) == 4)
    found = spans()
    assert set(found) == {STREAM, "engine.queue", "engine.prefill", "engine.decode"}
    facts = attributes(found[STREAM])
    assert facts["inference.backend"] == "tokenwire"
    assert facts["gen_ai.usage.output_tokens"] == 3
    assert facts["model_id"]


def test_an_engine_that_is_killed_comes_back(service: ServiceProcess) -> None:
    engine = service.engine_pid()
    stream = service.stream(8000)
    next(stream)
    seen: list[int] = []

    def watch() -> None:
        for status in service.health():
            seen.append(status)
            if seen[-3:] == [SERVING, NOT_SERVING, SERVING]:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    eventually(lambda: seen == [SERVING])
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as refused:
        list(stream)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    watcher.join(60)
    assert seen == [SERVING, NOT_SERVING, SERVING]
    assert service.engine_pid() != engine
    assert list(service.stream(3))[-1].completed.usage.completion_tokens == 3
    assert scraped(service)["tokenwire_engine_restarts_total"] == 1
