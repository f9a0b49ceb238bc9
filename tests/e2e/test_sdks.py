"""The SDKs people use, unmodified, as oracles of the REST adapter; the embedded model answers."""

import openai
import pytest
from huggingface_hub import InferenceClient

from tests.support.stack import Stack

QUESTION = [{"role": "user", "content": "What is the capital of France? One word."}]


@pytest.fixture
def sdk(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.rest}/v1", api_key="unused", max_retries=0)


def test_openai_streams_a_sensible_answer(sdk: openai.OpenAI) -> None:
    model = sdk.models.list().data[0].id
    with sdk.chat.completions.create(
        model=model,
        messages=QUESTION,
        stream=True,
        temperature=0,
        max_tokens=24,
        stream_options={"include_usage": True},
    ) as chunks:
        seen = list(chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in seen if chunk.choices)
    assert "Paris" in text
    assert seen[-1].usage is not None
    assert seen[-1].usage.completion_tokens > 0


def test_openai_stream_equals_unary(sdk: openai.OpenAI) -> None:
    ask = {"model": "", "messages": QUESTION, "seed": 3, "temperature": 0.8, "max_tokens": 40}
    unary = sdk.chat.completions.create(**ask).choices[0]
    with sdk.chat.completions.create(**ask, stream=True) as chunks:
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == unary.message.content


def test_openai_n_logprobs_and_stop(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="",
        messages=QUESTION,
        n=2,
        seed=1,
        temperature=0.9,
        max_tokens=16,
        logprobs=True,
        top_logprobs=3,
        stop=["\n\n", "zzz"],
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert len(tokens) > 0
        assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
        assert "\n\n" not in (choice.message.content or "")


def test_openai_completions(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(
        model="", prompt=["One, two, three,", "Monday, Tuesday,"], max_tokens=8, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "four" in answer.choices[0].text
    assert "Wednesday" in answer.choices[1].text


def test_openai_errors_are_its_own_exceptions(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.chat.completions.create(model="nope", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model="", messages=QUESTION, top_p=2)
    assert bad.value.param == "top_p"


def test_openai_models(sdk: openai.OpenAI) -> None:
    listed = sdk.models.list().data[0]
    assert sdk.models.retrieve(listed.id).id == listed.id


def test_huggingface_hub_text_generation(stack: Stack) -> None:
    client = InferenceClient(base_url=stack.rest)
    text = client.text_generation("The capital of France is", max_new_tokens=8, return_full_text=False)
    assert "Paris" in text
    streamed = client.text_generation("The capital of France is", max_new_tokens=8, stream=True)
    assert "".join(streamed) == text
    details = client.text_generation("The capital of France is", max_new_tokens=8, details=True, top_n_tokens=2)
    assert details.details is not None
    assert details.details.generated_tokens == 8


def test_huggingface_hub_chat_completion(stack: Stack) -> None:
    client = InferenceClient(base_url=stack.rest)
    answer = client.chat_completion(QUESTION, max_tokens=24, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
