"""Every row of the error table on both kinds of routes, and bodies no one should send."""

from __future__ import annotations

import http.client
import json

import grpc
import pytest

from tests.gateway.conftest import Rest
from tests.gateway.scripted import Failure, Script, ScriptedService

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
GENERATE = {"inputs": "hi"}
_Code = grpc.StatusCode
TOP_P = (("sampling.top_p", "must be in (0, 1]"),)
# failure, status and code on /v1, status and error_type on TGI's routes
ROWS = [
    (Failure(_Code.INVALID_ARGUMENT, "INVALID_PARAMETER", violations=TOP_P), 400, "invalid_value", 422, "validation"),
    (Failure(_Code.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED"), 400, "context_length_exceeded", 422, "validation"),
    (Failure(_Code.INVALID_ARGUMENT, "INVALID_CONSTRAINT"), 400, "invalid_constraint", 422, "validation"),
    (
        Failure(_Code.FAILED_PRECONDITION, "FEATURE_NOT_ENABLED", violations=TOP_P),
        400,
        "unsupported_parameter",
        422,
        "validation",
    ),
    (Failure(_Code.FAILED_PRECONDITION, "CONSTRAINT_FAILED"), 422, "constraint_failed", 424, "generation"),
    (Failure(_Code.NOT_FOUND, "MODEL_NOT_FOUND"), 404, "model_not_found", 404, "validation"),
    (Failure(_Code.UNAUTHENTICATED, "CREDENTIALS_INVALID"), 401, "invalid_api_key", 401, "authentication"),
    (Failure(_Code.PERMISSION_DENIED, "PERMISSION_DENIED"), 403, "permission_denied", 403, "authentication"),
    (Failure(_Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=2.5), 429, "queue_full", 429, "overloaded"),
    (Failure(_Code.RESOURCE_EXHAUSTED, "QUEUE_TIMEOUT", retry_after_s=2.5), 429, "queue_timeout", 429, "overloaded"),
    (Failure(_Code.RESOURCE_EXHAUSTED, "SHED", retry_after_s=2.5), 429, "shed", 429, "overloaded"),
    (Failure(_Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after_s=2.5), 429, "rate_limited", 429, "overloaded"),
    (Failure(_Code.RESOURCE_EXHAUSTED, None), 413, "request_too_large", 413, "validation"),
    (Failure(_Code.UNAVAILABLE, "MODEL_LOADING", retry_after_s=2.5), 503, "model_loading", 503, "unavailable"),
    (Failure(_Code.UNAVAILABLE, "DRAINING", retry_after_s=2.5), 503, "draining", 503, "unavailable"),
    (Failure(_Code.UNAVAILABLE, "ENGINE_DOWN", retry_after_s=2.5), 503, "engine_down", 503, "unavailable"),
    (Failure(_Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"), 504, "deadline_exceeded", 504, "timeout"),
    (Failure(_Code.ABORTED, "ABORTED_BY_OPERATOR"), 409, "aborted_by_operator", 409, "generation"),
    (Failure(_Code.INTERNAL, "ENGINE_FAILURE"), 500, "engine_failure", 424, "generation"),
]
IDS = [f"{failure.reason}" for failure, *_ in ROWS]


@pytest.mark.parametrize(("failure", "status", "code", "tgi_status", "tgi_type"), ROWS, ids=IDS)
@pytest.mark.parametrize("stream", [False, True])
def test_rows_on_v1(
    rest: Rest,
    service: ScriptedService,
    failure: Failure,
    status: int,
    code: str,
    tgi_status: int,
    tgi_type: str,
    stream: bool,
) -> None:
    service.script = Script(failure=failure)
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": ["a", "b"]})):
        answer = rest.post(path, {**body, "stream": stream})
        assert answer.status == status
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert error["param"] == ("top_p" if failure.violations else "model" if status == 404 else None)
        assert "sampling." not in error["message"]
        assert answer.headers.get("retry-after") == ("3" if status in (429, 503) else None)


@pytest.mark.parametrize(("failure", "status", "code", "tgi_status", "tgi_type"), ROWS, ids=IDS)
def test_rows_on_tgi_routes(
    rest: Rest, service: ScriptedService, failure: Failure, status: int, code: str, tgi_status: int, tgi_type: str
) -> None:
    service.script = Script(failure=failure)
    for path in ("/generate", "/generate_stream", "/"):
        answer = rest.post(path, GENERATE)
        assert answer.status == tgi_status
        body = answer.json()
        assert set(body) == {"error", "error_type"}
        assert body["error_type"] == tgi_type
        if failure.violations:
            assert body["error"] == "Input validation error: `top_p` must be in (0, 1]"
        assert answer.headers.get("retry-after") == ("3" if tgi_status in (429, 503) else None)


@pytest.mark.parametrize(("failure", "status", "code", "tgi_status", "tgi_type"), ROWS, ids=IDS)
def test_failures_midstream_are_the_last_event(
    rest: Rest, service: ScriptedService, failure: Failure, status: int, code: str, tgi_status: int, tgi_type: str
) -> None:
    service.script = Script(failure=failure, fail_after=3)
    answer = rest.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert answer.status == 200
    events = answer.events()
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "Hello,"
    assert events[-1]["error"]["code"] == code
    events = rest.post("/generate_stream", {**GENERATE, "parameters": {"max_new_tokens": 9}}).events()
    assert [event["token"]["text"] for event in events[:-1]] == ["Hello", ","]
    assert events[-1]["error_type"] == tgi_type


def test_a_stream_cut_short_is_an_error(rest: Rest, service: ScriptedService) -> None:
    service.script = Script(incomplete=True)
    assert rest.post("/v1/chat/completions", {**CHAT, "stream": True}).events()[-1]["error"]["code"] == "incomplete"
    last = rest.post("/generate_stream", GENERATE).events()[-1]
    assert last == {"error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"}


def test_proto_paths_become_parameter_names(rest: Rest, service: ScriptedService) -> None:
    names = {
        "sampling.candidate_count": ("n", "best_of"),
        "stopping.max_tokens": ("max_tokens", "max_new_tokens"),
        "stopping.stop[3]": ("stop[3]", "stop[3]"),
        "output.logprobs.top_n": ("logprobs", "top_n_tokens"),
        "text": ("prompt", "inputs"),
        "labels": ("metadata", "labels"),
        "constraint.json_schema.schema": ("response_format", "grammar"),
        "sampling.context_frequency_penalty": ("context_frequency_penalty", "frequency_penalty"),
    }
    for path, (openai_name, tgi_name) in names.items():
        service.script = Script(
            failure=Failure(_Code.INVALID_ARGUMENT, "INVALID_PARAMETER", violations=((path, "is wrong"),))
        )
        assert rest.post("/v1/completions", {"prompt": "x"}).json()["error"]["param"] == openai_name
        assert rest.post("/generate", GENERATE).json()["error"] == f"Input validation error: `{tgi_name}` is wrong"


def test_words_of_the_contract_do_not_reach_rest(rest: Rest, service: ScriptedService) -> None:
    def failing(path: str, description: str) -> None:
        failure = Failure(_Code.INVALID_ARGUMENT, "INVALID_PARAMETER", violations=((path, description),))
        service.script = Script(failure=failure)

    failing("sampling.best_of", "is 1; must be at least candidate_count, 2")
    message = rest.post("/v1/completions", {"prompt": "x"}).json()["error"]["message"]
    assert message == "best_of: is 1; must be at least n, 2"
    failing("constraint", "is off; leave constraint out")
    message = rest.post("/v1/chat/completions", CHAT).json()["error"]["message"]
    assert message == "response_format: is off; leave it out"
    failing("token_ids.ids[2]", "is 99; token ids must be less than 50")
    message = rest.post("/v1/completions", {"prompt": [1, 2, 99]}).json()["error"]["message"]
    assert message == "prompt[2]: is 99; token ids must be less than 50"
    failing("messages[0].role", "tools are off; leave out messages with ROLE_TOOL")
    message = rest.post("/v1/chat/completions", CHAT).json()["error"]["message"]
    assert message == "messages[0].role: tools are off; leave out messages with role tool"
    failing("messages[0].content[1].media", "this model takes text only")
    assert rest.post("/v1/chat/completions", CHAT).json()["error"]["param"] == "messages[0].content[1]"
    failing("sampling.best_of", "must equal candidate_count on a stream; use the unary call")
    message = rest.post("/v1/completions", {"prompt": "x"}).json()["error"]["message"]
    assert message == "best_of: must equal n on a stream; do without stream"
    failing("stopping.max_tokens", "is 0; must be at least 1")
    error = rest.post("/v1/chat/completions", {**CHAT, "max_completion_tokens": 0}).json()["error"]
    assert error["param"] == "max_completion_tokens"
    failing("text", "is empty; give the text to continue")
    assert (
        rest.post("/v1/completions", {"prompt": ""})
        .json()["error"]["message"]
        .startswith("prompt: is empty; give the ")
    )
    failing("chat.messages[0].role", "is wrong")
    answer = rest.post("/chat_tokenize", {**CHAT, "chat_template_kwargs": {"a": 1}})
    assert answer.json()["error"] == "Input validation error: `messages[0].role` is wrong"


def test_context_length_has_the_words_clients_look_for(rest: Rest, service: ScriptedService) -> None:
    facts = {"promptTokens": "90", "maxTokens": "20", "maxContext": "100"}
    service.script = Script(
        failure=Failure(_Code.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED", "too long", metadata=facts)
    )
    assert "maximum context length is 100 tokens" in rest.post("/v1/chat/completions", CHAT).json()["error"]["message"]
    assert rest.post("/generate", GENERATE).json()["error"] == (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 100. "
        "Given: 90 `inputs` tokens and 20 `max_new_tokens`"
    )


def test_no_service_is_503_without_addresses(service: ScriptedService) -> None:
    from tests.gateway.conftest import gateway
    from tokenwire_gateway.config import GatewayConfig

    with gateway(GatewayConfig(target="127.0.0.1:9", hostname="127.0.0.1", port=0)) as lonely:
        answer = lonely.post("/v1/chat/completions", CHAT)
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert "127.0.0.1" not in answer.body.decode()
        assert lonely.get("/health").status == 503
        assert lonely.get("/ping").status == 503
        assert b"tokenwire_backend_up 0" in lonely.get("/metrics").body


BAD_BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b"null", 400),
    (b'{"a":NaN}', 400),
    (b'{"a":1e999}', 400),
    (b'{"a":"\xff"}', 400),
    (b'{"a":"\\ud800"}', 400),
    (b"[" * 5000, 400),
    (b" " * 200_000, 413),
]


@pytest.mark.parametrize(
    ("raw", "status"), BAD_BODIES, ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else ""
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/generate", "/", "/tokenize", "/chat_tokenize"]
)
def test_bodies_that_are_not_json(rest: Rest, path: str, raw: bytes, status: int) -> None:
    answer = rest.post(path, raw)
    assert answer.status == status
    error = answer.json()["error"]
    assert (error["message"] if path.startswith("/v1") else error).strip()
    assert rest.get("/health").status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
def test_wrong_content_type(rest: Rest, path: str, kind: str) -> None:
    assert rest.ask("POST", path, b"{}", {"content-type": kind} if kind else {}).status == 415
    assert (
        rest.post(path, json.dumps(CHAT | GENERATE).encode(), content_type="application/json; charset=utf-8").status
        != 415
    )


def test_what_cannot_be_read_is_named(rest: Rest) -> None:
    raw = json.dumps(CHAT).encode()
    answer = rest.post("/v1/chat/completions", raw, content_encoding="gzip")
    assert (answer.status, "'gzip'" in answer.json()["error"]["message"]) == (415, True)
    assert rest.post("/v1/chat/completions", raw, content_encoding="identity").status == 200
    error = rest.post("/generate", b'{"inputs": "\xff"}').json()["error"]
    assert error == "The body is not valid UTF-8: invalid start byte at byte 12."


def test_an_unknown_adapter_is_named_as_tgi_names_it(rest: Rest, service: ScriptedService) -> None:
    service.script = Script(failure=Failure(_Code.NOT_FOUND, "MODEL_NOT_FOUND", "model: 'x' is not served here"))
    answer = rest.post("/generate", {"inputs": "x", "parameters": {"adapter_id": "x"}})
    assert (answer.status, answer.json()["error"]) == (404, "adapter_id: 'x' is not served here")


def test_endless_chunked_body_is_cut_off_while_reading(rest: Rest) -> None:
    connection = rest.connect()
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-type", "application/json")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    sent = 0
    try:
        while sent < 64 * 2**20:
            connection.send(chunk)
            sent += 0x10000
        raise AssertionError("the gateway took 64 MiB")
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        connection.close()
    assert rest.get("/health").status == 200


def test_a_body_declared_too_large_is_refused_before_it_is_sent(rest: Rest) -> None:
    connection = rest.connect()
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in (
        ("content-type", "application/json"),
        ("content-length", "100000000"),
        ("expect", "100-continue"),
    ):
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"--payload-limit" in answer.read()
    connection.close()


def test_a_large_body_gets_its_answer(rest: Rest) -> None:
    answer = rest.post("/generate", b'{"inputs": "' + b"x" * 3_000_000 + b'"}')
    assert answer.status == 413
    assert "100000 bytes" in answer.json()["error"]


WRONG = [
    ({"messages": "x"}, "messages", "invalid_type"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", "invalid_value"),
    ({}, "messages", "missing_required_parameter"),
    ({**CHAT, "temperature": "1"}, "temperature", "invalid_type"),
    ({**CHAT, "max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({**CHAT, "max_tokens": True}, "max_tokens", "invalid_type"),
    ({**CHAT, "max_tokens": -1}, "max_tokens", "invalid_value"),
    ({**CHAT, "max_tokens": 2**40}, "max_tokens", "invalid_value"),
    ({**CHAT, "seed": 2**63}, "seed", "invalid_value"),
    ({**CHAT, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
    ({**CHAT, "stop": [1]}, "stop[0]", "invalid_type"),
    ({**CHAT, "logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({**CHAT, "logit_bias": [1]}, "logit_bias", "invalid_type"),
    ({**CHAT, "top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({**CHAT, "stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({**CHAT, "metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({**CHAT, "nope": None}, "nope", "unknown_parameter"),
]


@pytest.mark.parametrize(("body", "param", "code"), WRONG, ids=[f"{param}-{code}" for _, param, code in WRONG])
def test_wrong_fields_are_named(
    rest: Rest, service: ScriptedService, body: dict[str, object], param: str, code: str
) -> None:
    answer = rest.post("/v1/chat/completions", body)
    assert answer.status == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert not service.requests


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/chat/completions", {"messages": None}, "messages: must be a list; given: null"),
        ("/v1/chat/completions", {**CHAT, "stream": 1}, "stream: must be true or false; given: 1"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": -1}, "max_tokens: must be at least 0; given: -1"),
        ("/generate", {"inputs": "x", "parameters": None}, "`parameters` must be an object; given: null"),
    ],
)
def test_messages_speak_json(rest: Rest, path: str, body: object, message: str) -> None:
    error = rest.post(path, body).json()["error"]
    assert (error["message"] if path.startswith("/v1") else error).endswith(message)


@pytest.mark.parametrize("prompt", [[], [[]], [1, "a"], {}, [-1], [2**32], 5])
def test_wrong_prompts(rest: Rest, prompt: object) -> None:
    answer = rest.post("/v1/completions", {"prompt": prompt})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "prompt")


def test_too_many_prompts(rest: Rest, service: ScriptedService) -> None:
    answer = rest.post("/v1/completions", {"prompt": ["x"] * 33})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "prompt")
    assert not service.requests


def test_routes_that_are_not_there(rest: Rest) -> None:
    assert rest.get("/v1/nope").json()["error"]["code"] == "not_found"
    assert rest.get("/nope").json()["error_type"] == "validation"
    answer = rest.get("/v1/chat/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_header_bytes_that_grpc_cannot_carry(rest: Rest) -> None:
    connection: http.client.HTTPConnection = rest.connect()
    connection.putrequest("POST", "/v1/chat/completions")
    body = json.dumps(CHAT).encode()
    for name, value in (
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("authorization", "Bearer \xe9"),
    ):
        connection.putheader(name, value.encode("latin-1"))
    connection.endheaders(body)
    assert connection.getresponse().status == 401
    connection.close()
