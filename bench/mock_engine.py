"""An engine process that computes nothing: one token for each running request a step, at a fixed rate.

Started as the real one is, `python -m bench.mock_engine FD LOG_LEVEL`, and speaks its protocol: so the frontend before
it is the real one to the last line. TOKENWIRE_MOCK_STEP_S is the time from step to step.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from dataclasses import dataclass

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.core.events import Admitted, Completed, EngineEvent, Finish, FinishReason, TokensGenerated
from tokenwire_service.engine.client import EngineInfo
from tokenwire_service.engine.codec import info_to_pb
from tokenwire_service.engine.event_codec import events_to_pb
from tokenwire_service.engine.framing import encode_frame, read_frames

STEP_VARIABLE = "TOKENWIRE_MOCK_STEP_S"
FIRST_TOKEN_ID, NUM_TOKEN_IDS = 1000, 2_000
"""Ordinary words of the embedded model's vocabulary, one after the other."""
INFO = EngineInfo(
    dtype="float32",
    device="cpu",
    num_shards=1,
    num_blocks=65_536,
    block_size=32,
    max_total_tokens=131_072,
    max_batch_size=4096,
    max_batch_prefill_tokens=8192,
    num_parameters=0,
    quantization="",
    attention_backend="mock",
)


@dataclass(slots=True)
class Running:
    """One request: how long its prompt is, how many tokens it gets, and how many it got."""

    prompt_tokens: int
    max_tokens: int
    generated: int = 0


class MockEngine:
    """Takes submissions and closings, and makes the events of each step."""

    def __init__(self) -> None:
        self._running: dict[str, Running] = {}
        self._num_steps = 0

    def take(self, message: pb.FrontendMessage) -> bool:
        """Apply a message; False when it says stop."""
        for submission in message.submissions:
            size = len(submission.prompt_token_ids)
            self._running[str(submission.key)] = Running(size, submission.stopping.max_tokens)
        for key in (*message.closed_keys, *message.aborted_keys):
            self._running.pop(str(key), None)
        return not message.stop

    def step(self) -> pb.EngineMessage | None:
        """One token for everyone; None while there is nothing to do."""
        if not self._running:
            return None
        self._num_steps += 1
        events: list[EngineEvent] = []
        for key, running in tuple(self._running.items()):
            events += self._advance(key, running)
        output = events_to_pb(events)
        output.stats.num_steps = self._num_steps
        output.stats.num_running = len(self._running)
        return pb.EngineMessage(step=output)

    def _advance(self, key: str, running: Running) -> list[EngineEvent]:
        token_id = FIRST_TOKEN_ID + (running.generated * 7 + int(key) * 131) % NUM_TOKEN_IDS
        events: list[EngineEvent] = [] if running.generated else [Admitted(key, 0, 0.0)]
        running.generated += 1
        last = running.generated >= running.max_tokens
        events.append(
            TokensGenerated(key, 0, (token_id,), finish=Finish(FinishReason.MAX_TOKENS) if last else None),
        )
        if last:
            del self._running[key]
            events.append(Completed(key, running.prompt_tokens, 0, running.generated, 0.0, 0.0, 0.0, 0))
        return events


def main(arguments: list[str]) -> int:
    """Step until told to stop, or until the other end closes."""
    connection = socket.socket(fileno=int(arguments[1]))
    step_s = float(os.environ[STEP_VARIABLE])
    messages: queue.SimpleQueue[pb.FrontendMessage | None] = queue.SimpleQueue()

    def read() -> None:
        for payload in read_frames(connection):
            messages.put(pb.FrontendMessage.FromString(payload))
        messages.put(None)

    threading.Thread(target=read, daemon=True).start()
    messages.get()
    connection.sendall(encode_frame(pb.EngineMessage(ready=info_to_pb(INFO)).SerializeToString()))
    engine, due = MockEngine(), time.monotonic()
    while True:
        due = max(due + step_s, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0.0))
        while not messages.empty():
            message = messages.get()
            if message is None or not engine.take(message):
                return 0
        output = engine.step()
        if output is not None:
            connection.sendall(encode_frame(output.SerializeToString()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
