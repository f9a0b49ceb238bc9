"""Chat and ChatStream: convert, run, convert."""

from __future__ import annotations

from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire_service.rpc.call import Call
from tokenwire_service.rpc.convert.chat import chat_plan
from tokenwire_service.rpc.convert.responses import SAID, ResponseWriter, finish, info, timing, usage
from tokenwire_service.rpc.endpoint import Method
from tokenwire_service.rpc.gather import GatheredCandidate
from tokenwire_service.rpc.generation import Generations, whole
from tokenwire_service.rpc.plan import GenerationPlan


class ChatMethods:
    """Answers conversations."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations

    def methods(self) -> tuple[Method, ...]:
        return (
            Method("Chat", pb.ChatRequest, pb.ChatResponse, self.chat),
            Method("ChatStream", pb.ChatRequest, pb.ChatStreamResponse, self.chat_stream, streams=True),
        )

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        plan = chat_plan(request, self._generations.serving.require()[0], streams=False)
        gathered, writer = await self._generations.gather(call, plan)
        started, done = whole(gathered)
        chunk = gathered.prompt_chunk()
        return pb.ChatResponse(
            info=info(started.facts),
            candidates=[_candidate(found, plan, writer) for found in gathered.candidates(plan.candidate_count)],
            prompt=None if chunk is None else writer.prompt(chunk),
            usage=usage(done.usage),
            timing=timing(done),
        )

    async def chat_stream(self, request: pb.ChatRequest, call: Call) -> None:
        plan = chat_plan(request, self._generations.serving.require()[0], streams=True)
        await self._generations.stream(call, plan, ResponseWriter.chat_event, SAID)


def _candidate(found: GatheredCandidate, plan: GenerationPlan, writer: ResponseWriter) -> pb.ChatCandidate:
    output = plan.output
    text = found.text if output.text else ""
    return pb.ChatCandidate(
        index=found.index,
        message=pb.Message(role=pb.ROLE_ASSISTANT, content=[pb.ContentPart(text=text)]),
        token_ids=found.token_ids if output.token_ids else (),
        logprobs=writer.logprobs(found.token_ids, found.logprobs) if output.logprobs else None,
        finish=None if found.ended is None else finish(found.ended),
        token_count=len(found.token_ids),
    )
