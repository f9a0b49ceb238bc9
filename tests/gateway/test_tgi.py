"""TGI's routes: its shapes, ranges and words; huggingface_hub as the oracle."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import InferenceClient

from tests.gateway.conftest import Rest
from tests.gateway.scripted import MODEL, Script, ScriptedService, random_script, stopped
from tokenwire.v1 import types_pb2 as types

ENDED = Script(tokens=(b"Hello", b" world", b"</s>"), special=frozenset({2}), finish=stopped())


@pytest.fixture
def hub(rest: Rest) -> InferenceClient:
    return InferenceClient(base_url=rest.url)


def test_generate(rest: Rest, service: ScriptedService) -> None:
    answer = rest.post("/generate", {"inputs": "The future of AI is", "parameters": {"max_new_tokens": 50}})
    assert answer.status == 200
    assert answer.json() == {"generated_text": "Hello, world"}
    assert (answer.headers["x-prompt-tokens"], answer.headers["x-compute-characters"]) == ("7", "19")
    (asked,) = service.requests
    assert (asked.text, asked.stopping.max_tokens, asked.add_special_tokens) == ("The future of AI is", 50, True)


def test_root_answers_a_list_with_the_full_text(rest: Rest) -> None:
    assert rest.post("/", {"inputs": "Say: "}).json() == [{"generated_text": "Say: Hello, world"}]
    body = {"inputs": "Say: ", "parameters": {"return_full_text": False}}
    assert rest.post("/", body).json() == [{"generated_text": "Hello, world"}]
    body["parameters"] = {"return_full_text": True}
    assert rest.post("/generate", body).json() == {"generated_text": "Say: Hello, world"}


def test_details(rest: Rest, service: ScriptedService) -> None:
    service.script = ENDED
    parameters = {"details": True, "decoder_input_details": True, "top_n_tokens": 2, "seed": 2**64 - 5}
    answer = rest.post("/generate", {"inputs": "x", "parameters": {**parameters, "do_sample": True}}).json()
    details = answer["details"]
    assert answer["generated_text"] == "Hello world"
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == 3
    assert details["seed"] == 2**64 - 5
    assert details["prefill"] == [
        {"id": 11, "text": "Once", "logprob": None},
        {"id": 12, "text": " upon", "logprob": -1.5},
    ]
    assert details["tokens"][0] == {"id": 100, "text": "Hello", "logprob": -0.5, "special": False}
    assert details["tokens"][2] == {"id": 102, "text": "</s>", "logprob": -0.5, "special": True}
    assert [top["text"] for top in details["top_tokens"][0]] == ["Hello", "alt1"]
    assert service.requests[0].sampling.seed == -5


def test_stream(rest: Rest, service: ScriptedService) -> None:
    service.script = ENDED
    answer = rest.post("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 20, "seed": 1}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.events()
    assert [event["index"] for event in events] == [1, 2, 3]
    assert [set(event) for event in events] == [{"index", "token", "generated_text", "details"}] * 3
    assert [event["token"]["text"] for event in events] == ["Hello", " world", "</s>"]
    assert [event["generated_text"] for event in events] == [None, None, "Hello world"]
    assert events[-1]["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 3,
        "seed": None,
        "input_length": 7,
    }


@pytest.mark.parametrize("seed", range(12))
def test_streamed_tokens_join_to_the_unary_text(rest: Rest, service: ScriptedService, seed: int) -> None:
    service.script = random_script(seed)
    whole = rest.post("/generate", {"inputs": "x"}).json()["generated_text"]
    events = rest.post("/generate_stream", {"inputs": "x"}).events()
    assert len(events) == len(service.script.tokens)
    assert "".join(event["token"]["text"] for event in events) == whole
    assert events[-1]["generated_text"] == whole == service.script.text()


def test_a_token_that_cannot_be_the_last_is_not_held_back(rest: Rest, service: ScriptedService) -> None:
    service.script = Script(hang=True)
    connection = rest.connect()
    body = b'{"inputs": "x", "parameters": {"max_new_tokens": 9, "stop": ["zz"]}}'
    connection.request("POST", "/generate_stream", body, {"content-type": "application/json"})
    stream = connection.getresponse()
    lines: list[bytes] = []
    while sum(line.startswith(b"data:") for line in lines) < 4:
        lines.append(stream.readline())
    connection.close()
    assert service.cancelled.wait(10)


def test_an_end_that_could_not_be_foreseen_still_tells_the_text(rest: Rest, service: ScriptedService) -> None:
    service.script = Script(finish=types.Finish(reason=types.FINISH_REASON_CONTENT_FILTER))
    events = rest.post("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 9}}).events()
    assert "".join(event["token"]["text"] for event in events) == "Hello, world"
    assert events[-1]["generated_text"] == "Hello, world"
    assert events[-1]["token"]["special"]


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        (None, 1.0),
        ({}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5}, 1.0),
        ({"typical_p": 0.5}, 1.0),
        ({"repetition_penalty": 1.5}, 0.0),
    ],
)
def test_when_it_samples(
    rest: Rest, service: ScriptedService, parameters: dict[str, Any] | None, temperature: float
) -> None:
    body: dict[str, Any] = {"inputs": "x"} | ({} if parameters is None else {"parameters": parameters})
    assert rest.post("/generate", body).status == 200
    assert service.requests[0].sampling.temperature == temperature


def test_parameters_reach_the_contract(rest: Rest, service: ScriptedService) -> None:
    parameters = {
        "adapter_id": "a",
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "typical_p": 0.75,
        "repetition_penalty": 1.5,
        "frequency_penalty": -0.5,
        "stop": ["END"],
        "truncate": 9,
        "watermark": True,
        "top_n_tokens": 2,
        "grammar": {"type": "json", "value": {"properties": {}}},
    }
    assert rest.post("/generate", {"inputs": "x", "parameters": parameters, "add_special_tokens": False}).status == 200
    (asked,) = service.requests
    assert asked.model == "a"
    assert asked.sampling == types.SamplingParams(
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        typical_p=0.75,
        min_p=0,
        repetition_penalty=1.5,
        context_frequency_penalty=-0.5,
        watermark=True,
    )
    assert asked.stopping == types.StoppingCriteria(stop=["END"], include_stop=True)
    assert (asked.truncate_prompt_tokens, asked.add_special_tokens) == (9, False)
    assert asked.constraint.json_schema.schema == '{"properties":{}}'
    assert asked.output.logprobs.top_n == 2


def test_best_of(rest: Rest, service: ScriptedService) -> None:
    parameters: dict[str, Any] = {"best_of": 2, "do_sample": True}
    assert rest.post("/generate", {"inputs": "x", "parameters": parameters}).status == 200
    assert (service.requests[0].sampling.best_of, service.requests[0].sampling.candidate_count) == (2, 0)
    answer = rest.post("/generate", {"inputs": "x", "parameters": {**parameters, "details": True}}).json()
    # The second candidate has the higher mean log-probability.
    assert answer["details"]["tokens"][0]["logprob"] == pytest.approx(-0.4)
    (other,) = answer["details"]["best_of_sequences"]
    assert other["tokens"][0]["logprob"] == pytest.approx(-0.5)


REFUSALS = [
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ({"truncate": 0}, "`truncate` must be strictly positive. Given: 0"),
]


@pytest.mark.parametrize(("parameters", "message"), REFUSALS)
def test_ranges_in_tgi_words(rest: Rest, service: ScriptedService, parameters: dict[str, Any], message: str) -> None:
    answer = rest.post("/generate", {"inputs": "x", "parameters": parameters})
    assert answer.status == 422
    assert answer.json() == {"error": f"Input validation error: {message}", "error_type": "validation"}
    assert not service.requests


def test_refusals_when_streaming(rest: Rest) -> None:
    for parameters, message in (
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
    ):
        answer = rest.post("/generate_stream", {"inputs": "x", "parameters": parameters})
        assert (answer.status, answer.json()["error"]) == (422, f"Input validation error: {message}")


def test_other_bad_input(rest: Rest, service: ScriptedService) -> None:
    assert rest.post("/generate", {"inputs": ""}).json()["error"] == "Input validation error: `inputs` cannot be empty"
    for body, name in (
        ({}, "inputs"),
        ({"inputs": "x", "parameters": {"min_p": 0.1}}, "parameters.min_p"),
        ({"inputs": "x", "parameters": {"seed": -1}}, "parameters.seed"),
        ({"inputs": "x", "parameters": {"stop": "x"}}, "parameters.stop"),
        ({"inputs": "x", "stream": True}, "stream"),
    ):
        answer = rest.post("/generate", body)
        assert answer.status == 422
        assert f"`{name}`" in answer.json()["error"]
    assert not service.requests


def test_tokenize(rest: Rest) -> None:
    assert rest.post("/tokenize", {"inputs": "aé"}).json() == [
        {"id": 97, "text": "a", "start": 0, "stop": 1},
        {"id": 233, "text": "é", "start": 1, "stop": 3},
    ]
    answer = rest.post("/chat_tokenize", {"messages": [{"role": "user", "content": "a"}]}).json()
    assert answer["templated_text"] == "<a>"
    assert [token["text"] for token in answer["tokenize_response"]] == ["<", "a", ">"]


def test_info(rest: Rest) -> None:
    info = rest.get("/info").json()
    assert (info["model_id"], info["model_sha"], info["max_total_tokens"], info["max_input_tokens"]) == (
        MODEL,
        "abc",
        2048,
        2047,
    )
    assert (info["max_best_of"], info["max_stop_sequences"], info["max_concurrent_requests"]) == (8, 16, 128)
    assert (info["version"], info["docker_label"]) == ("9.9", None)


def test_hub_text_generation(hub: InferenceClient, service: ScriptedService) -> None:
    service.script = ENDED
    text = hub.text_generation("x", max_new_tokens=8, return_full_text=False)
    assert text == "Hello world"
    assert "".join(hub.text_generation("x", max_new_tokens=8, stream=True)) == "Hello world</s>"
    answer = hub.text_generation("x", details=True, top_n_tokens=2, decoder_input_details=True, return_full_text=False)
    assert answer.details is not None
    assert answer.details.finish_reason == "eos_token"
    assert answer.details.top_tokens is not None
    streamed = list(hub.text_generation("x", details=True, stream=True, return_full_text=False))
    assert streamed[-1].generated_text == "Hello world"
    assert streamed[-1].details is not None
    assert streamed[-1].details.input_length == 7


def test_hub_chat_completion(hub: InferenceClient, service: ScriptedService) -> None:
    answer = hub.chat_completion([{"role": "user", "content": "hi"}], max_tokens=5, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == "Hello, world"
    assert service.requests[0].model == ""
    stream = hub.chat_completion([{"role": "user", "content": "hi"}], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello, world"
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    hub.chat_completion([{"role": "user", "content": "hi"}], response_format=form)
    assert service.requests[-1].constraint.json_schema.schema == '{"type":"object"}'


def test_hub_health_and_info(rest: Rest) -> None:
    endpoint = InferenceClient(model=rest.url, provider="hf-inference", token="unused")
    assert endpoint.health_check()
    assert endpoint.get_endpoint_info()["model_id"] == MODEL
