"""What people type: grpcurl, buf curl, curl's requests, against the embedded model."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.stack import BIN, Stack

CHAT = {
    "messages": [{"role": "ROLE_USER", "content": [{"text": "What is the capital of France? One word."}]}],
    "sampling": {"temperature": 0},
    "stopping": {"max_tokens": 24},
}


def run(*command: str, expect: int = 0) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout + (result.stderr if expect else "")


def json_values(text: str) -> list[dict[str, Any]]:
    decoder, values, at = json.JSONDecoder(), [], 0
    while at < len(text):
        value, end = decoder.raw_decode(text, at)
        values.append(value)
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
    return values


def streamed_text(events: list[dict[str, Any]]) -> str:
    return "".join(event["content"].get("text", "") for event in events if "content" in event)


def test_grpcurl_lists_the_services(stack: Stack) -> None:
    listed = run(str(BIN / "grpcurl"), "-plaintext", stack.grpc, "list").split()
    expected = {
        "tokenwire.v1.TextGenerationService",
        "tokenwire.v1.TokenizationService",
        "tokenwire.v1.ModelService",
        "tokenwire.v1.EngineService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert expected <= set(listed)


def test_grpcurl_streams_a_chat(stack: Stack) -> None:
    method = "tokenwire.v1.TextGenerationService/ChatStream"
    events = json_values(run(str(BIN / "grpcurl"), "-plaintext", "-d", json.dumps(CHAT), stack.grpc, method))
    assert "started" in events[0]
    assert "completed" in events[-1]
    assert "Paris" in streamed_text(events)


def test_buf_curl_streams_a_chat(stack: Stack) -> None:
    url = f"http://{stack.grpc}/tokenwire.v1.TextGenerationService/ChatStream"
    output = run(str(BIN / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(CHAT), url)
    assert "Paris" in streamed_text(json_values(output))


def test_buf_curl_works_from_the_proto_files_too(stack: Stack) -> None:
    protos = Path(__file__).resolve().parents[2] / "protos"
    url = f"http://{stack.grpc}/tokenwire.v1.TokenizationService/Tokenize"
    command = [str(BIN / "buf"), "curl", "--schema", str(protos), "--protocol", "grpc", "--http2-prior-knowledge"]
    (answer,) = json_values(run(*command, "-d", '{"text": "Hello world", "countOnly": true}', url))
    assert answer["tokenCount"] == 2


def test_grpcurl_shows_what_is_wrong(stack: Stack) -> None:
    bad = json.dumps({"text": "x", "sampling": {"top_p": 2}})
    method = "tokenwire.v1.TextGenerationService/Generate"
    result = subprocess.run(
        [str(BIN / "grpcurl"), "-plaintext", "-d", bad, stack.grpc, method],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert "InvalidArgument" in result.stderr
    assert "sampling.top_p" in result.stderr


def test_tgi_generate_as_its_quick_tour_has_it(stack: Stack) -> None:
    answer = stack.http("/generate", {"inputs": "The future of AI is", "parameters": {"max_new_tokens": 50}})
    assert answer.status == 200, answer.body
    body = answer.json()
    assert list(body) == ["generated_text"]
    assert len(body["generated_text"].split()) > 20


def test_chat_completions_stream_as_curl_sees_it(stack: Stack) -> None:
    body = {
        "model": "tgi",
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream": True,
        "max_tokens": 8,
        "temperature": 0,
    }
    answer = stack.http("/v1/chat/completions", body)
    lines = [line for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_prometheus_pages_of_both(stack: Stack) -> None:
    assert b"tokenwire_" in stack.http("/metrics").body
    import urllib.request

    with urllib.request.urlopen(f"{stack.metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    for name in ("queue", "running", "kv", "prefix", "time_to_first_token", "preemptions"):
        assert name in text, f"no metric about {name}"
