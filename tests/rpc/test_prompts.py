"""Text with a token that the tokenizer knows and the model does not."""

import grpc
import pytest

from tests.support.rpc import open_door, refusal, served_model
from tokenwire.v1 import text_generation_pb2 as pb


async def test_a_token_the_model_has_no_embedding_for_is_the_callers_to_leave_out() -> None:
    model = served_model()
    (last,) = model.tokenizer.encode("z", add_special_tokens=False)
    async with open_door(model=served_model(vocab_size=last)) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.generation.Generate(pb.GenerateRequest(text="az"), timeout=10)
    found = refusal(caught.value)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER")
    assert f"token {last}" in found.fields["text"]
