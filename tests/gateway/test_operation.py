"""Living with it: clients that leave, waiting, keys, health, metrics, traces, the command line."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.gateway.conftest import Rest, gateway
from tests.gateway.scripted import Script, ScriptedService
from tokenwire_gateway.config import ConfigError, GatewayConfig

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}],"stream":true}'),
        ("/v1/completions", b'{"prompt":["a","b"],"stream":true}'),
        ("/generate_stream", b'{"inputs":"x"}'),
    ],
)
def test_leaving_a_stream_cancels_the_call(rest: Rest, service: ScriptedService, path: str, body: bytes) -> None:
    service.script = Script(hang=True)
    with closing(rest.connect()) as connection:
        connection.request("POST", path, body, JSON)
        with connection.getresponse() as answer:
            assert answer.readline()
            assert not service.cancelled.is_set()
    assert service.cancelled.wait(10)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}]}'),
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}],"stream":true}'),
        ("/v1/completions", b'{"prompt":["a","b"]}'),
        ("/generate", b'{"inputs":"x"}'),
        ("/tokenize", b'{"inputs":"x"}'),
    ],
)
def test_leaving_before_the_answer_cancels_the_call(
    rest: Rest, service: ScriptedService, path: str, body: bytes
) -> None:
    service.script = Script(start_pause_s=3600)
    with closing(rest.connect()) as connection:
        connection.request("POST", path, body, JSON)
        assert service.begun.wait(10)
    assert service.cancelled.wait(10)


def test_one_failing_prompt_cancels_the_others(rest: Rest, service: ScriptedService) -> None:
    from tests.gateway.scripted import Failure

    original = service._begin

    async def begin(request: Any, context: Any) -> None:
        service.script.failure = None
        if request.text == "bad":
            service.script.failure = Failure(
                grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER", violations=(("text", "is bad"),)
            )
            service.script.start_pause_s = 0.1
        else:
            service.script.start_pause_s = 3600
        await original(request, context)

    service._begin = begin  # type: ignore[method-assign]
    try:
        for stream in (False, True):
            answer = rest.post("/v1/completions", {"prompt": ["good", "bad"], "stream": stream})
            assert (answer.status, answer.json()["error"]["param"]) == (400, "prompt")
            assert service.cancelled.wait(10)
            service.cancelled.clear()
    finally:
        del service._begin  # type: ignore[method-assign]


@pytest.fixture
def impatient(service: ScriptedService, target: str) -> Iterator[Rest]:
    with gateway(
        GatewayConfig(target=target, hostname="127.0.0.1", port=0, keep_alive_s=0.05, request_timeout_s=0.6)
    ) as rest:
        yield rest


def test_keep_alive_comments_through_silence(impatient: Rest, service: ScriptedService) -> None:
    service.script = Script(pause_s=0.1, tokens=(b"a", b"b"))
    answer = impatient.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert answer.body.count(b": keep-alive\n\n") >= 2
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in answer.events()[:-1]) == "ab"


def test_a_long_queue_answers_200_early(impatient: Rest, service: ScriptedService) -> None:
    service.script = Script(start_pause_s=0.2)
    answer = impatient.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert answer.status == 200
    assert answer.body.startswith(b": keep-alive\n\n")
    assert answer.events()[-1] == "[DONE]"


def test_request_timeout_is_the_deadline(impatient: Rest, service: ScriptedService) -> None:
    service.script = Script(start_pause_s=3600)
    assert impatient.post("/v1/chat/completions", CHAT).status == 504
    assert impatient.post("/generate", {"inputs": "x"}).json()["error_type"] == "timeout"
    assert service.cancelled.wait(10)


def test_identity_travels_to_the_service_and_back(rest: Rest, service: ScriptedService) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x_request_id": "abc-1", "traceparent": parent, "tracestate": "a=1", "authorization": "Bearer secret"}
    answer = rest.post("/v1/chat/completions", CHAT, **headers)
    assert answer.headers["x-request-id"] == "abc-1"
    (seen,) = [m for m in service.metadata if "x-request-id" in m]
    assert {name: seen[name] for name in ("x-request-id", "traceparent", "tracestate", "authorization")} == {
        "x-request-id": "abc-1",
        "traceparent": parent,
        "tracestate": "a=1",
        "authorization": "Bearer secret",
    }
    answer = rest.post("/v1/chat/completions", CHAT, x_request_id="bad id", traceparent="junk")
    assert len(answer.headers["x-request-id"]) == 32
    assert "traceparent" not in service.metadata[-1]


def test_key(service: ScriptedService, target: str) -> None:
    config = GatewayConfig(
        target=target, hostname="127.0.0.1", port=0, api_key="s3cret", cors_allow_origin=("https://a.example",)
    )
    with gateway(config) as rest:
        for path in ("/v1/chat/completions", "/generate", "/", "/chat_tokenize", "/tokenize"):
            assert rest.post(path, CHAT).status == 401
            assert rest.post(path, CHAT, authorization="Bearer wrong").status == 401
        assert rest.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert not service.requests
        assert rest.post("/v1/chat/completions", CHAT, authorization="bearer s3cret").status == 200
        for path in ("/health", "/ping", "/", "/info", "/metrics"):
            assert rest.get(path).status == 200
        assert all(m["authorization"].lower() == "bearer s3cret" for m in service.metadata)
        preflight = {
            "origin": "https://a.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        allowed = rest.ask("OPTIONS", "/v1/chat/completions", headers=preflight)
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, "https://a.example")
        assert (
            rest.ask("OPTIONS", "/v1/chat/completions", headers=preflight | {"origin": "https://b.example"}).status
            == 400
        )


def test_health_follows_the_service(rest: Rest, service: ScriptedService) -> None:
    for path in ("/health", "/ping", "/"):
        answer = rest.get(path)
        assert (answer.status, answer.body) == (200, b"")
    assert rest.ask("HEAD", "/health").status == 200
    service.serving = False
    answer = rest.get("/health")
    assert (answer.status, answer.json()) == (503, {"error": "unhealthy", "error_type": "healthcheck"})


def test_metrics(service: ScriptedService, target: str) -> None:
    with gateway(GatewayConfig(target=target, hostname="127.0.0.1", port=0)) as rest:
        rest.post("/v1/chat/completions", {**CHAT, "stream": True})
        rest.post("/generate", {"inputs": "x"})
        rest.post("/generate", {"inputs": ""})
        rest.ask("POST", "/generate", b"x", {"content-type": "text/plain"})
        rest.get("/no/such/route")
        page = rest.get("/metrics").body.decode()
    for line in (
        'tokenwire_gateway_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0',
        'tokenwire_gateway_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'tokenwire_gateway_time_to_first_token_seconds_count{route="/v1/chat/completions"} 1.0',
        "tokenwire_gateway_requests_in_flight 1.0",
        "tokenwire_backend_up 1",
        "tgi_queue_size 5",
        "tgi_batch_current_size 3",
        "tgi_request_count 4",
        "tgi_request_success 2",
        'tgi_request_failure{err="validation"} 2',
        "tgi_request_duration_count 2.0",
        "tgi_request_generated_tokens_sum 8.0",
    ):
        assert line in page.splitlines()


def test_description(rest: Rest) -> None:
    schema = rest.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/generate", "/info"} <= set(schema["paths"])
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].rpartition("/")[2]
    assert "temperature" in schema["components"]["schemas"][name]["properties"]
    text = rest.get("/openapi.json").body.decode()
    for reference in {part.split('"')[0] for part in text.split('"$ref":"')[1:]}:
        assert reference.rpartition("/")[2] in schema["components"]["schemas"]
    assert rest.get("/docs").status == 200


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.names: list[str] = []

    def Export(self, request: Any, context: Any) -> Any:
        for group in request.resource_spans:
            self.names += [a.value.string_value for a in group.resource.attributes if a.key == "service.name"]
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_span_joins_caller_and_service(service: ScriptedService, target: str) -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    config = GatewayConfig(target=target, hostname="127.0.0.1", port=0, tracing=True, otlp_endpoint=endpoint)
    trace = "0af7651916cd43dd8448eb211c80319c"
    with gateway(config) as rest:
        rest.post("/v1/chat/completions", {**CHAT, "stream": True}, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    server.stop(None).wait()
    (span,) = collector.spans
    assert collector.names == ["tokenwire-gateway"]
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == (
        "POST /v1/chat/completions",
        trace,
        "b7ad6b7169203331",
    )
    assert service.metadata[-1]["traceparent"] == f"00-{trace}-{span.span_id.hex()}-01"
    attributes = {a.key: a.value for a in span.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["gen_ai.usage.output_tokens"].int_value == 4
    assert attributes["gen_ai.operation.name"].string_value == "chat"


def test_command_line(service: ScriptedService, target: str) -> None:
    """It starts on environment variables, leaves HOSTNAME alone, lets a stream finish after SIGTERM, and exits 0."""
    environment = os.environ | {
        "HOSTNAME": "not-an-address",
        "TOKENWIRE_HOSTNAME": "127.0.0.1",
        "TOKENWIRE_TARGET": target,
        "JSON_OUTPUT": "true",
    }
    port = _free_port()
    command = [sys.executable, "-m", "tokenwire_gateway", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    rest = Rest(port)
    try:
        _wait_for(rest)
        service.script = Script(pause_s=0.2)
        said: list[bytes] = []
        reader = threading.Thread(
            target=lambda: said.append(rest.post("/v1/chat/completions", {**CHAT, "stream": True}).body)
        )
        reader.start()
        assert service.begun.wait(10)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        reader.join(20)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert said[0].endswith(b"data: [DONE]\n\n")
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["message"].split()[0] for line in lines] == ["REST", "rest"]
    assert (lines[1]["level"], lines[1]["route"], lines[1]["status"]) == ("info", "/v1/chat/completions", 200)


def test_a_human_line_is_the_services() -> None:
    from tokenwire_gateway.observability.logs import HumanFormatter

    record = logging.makeLogRecord(
        {
            "name": "a.b",
            "levelname": "INFO",
            "msg": "two\nlines",
            "created": 1795236076.145,
            "msecs": 145,
            "status": 200,
        }
    )
    assert HumanFormatter().format(record) == "2026-11-21T04:41:16.145Z INFO    a.b: two\\nlines status=200"


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(rest: Rest) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if rest.get("/health").status == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the gateway did not start")


@pytest.mark.parametrize(
    "arguments", [["--port", "70000"], ["--payload-limit", "0"], ["--log-level", "loud"], ["--target", ""]]
)
def test_wrong_flags_end_with_one_line(arguments: list[str]) -> None:
    from typer.testing import CliRunner

    from tokenwire_gateway.cli import app

    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_help_explains_each_flag() -> None:
    from dataclasses import fields

    from typer.testing import CliRunner

    from tokenwire_gateway.cli import app

    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for field in fields(GatewayConfig):
        if field.name != "tracing":
            assert f"--{field.name.removesuffix('_s').replace('_', '-')}" in text
    assert "HOSTNAME" in text


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError, match="--tls-ca-path"):
        GatewayConfig(tls_ca_path="x").validate()


def test_it_imports_neither_service_nor_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('tokenwire_service', 'torch', 'transformers', 'tokenizers', 'numpy'): sys.modules[name] = None\n"
        "import tokenwire_gateway.server, tokenwire_gateway.cli\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
