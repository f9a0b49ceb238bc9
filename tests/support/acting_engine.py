"""An engine process that acts: `python -m tests.support.acting_engine FD LOG_LEVEL`, started by ProcessEngineClient.

It speaks the real protocol. What becomes of a request its prompt says: the first token names the part to play. Each
process of a test has a number, counting from 1, and generates it as its tokens, so that a test sees who answered.
"""

from __future__ import annotations

import contextlib
import enum
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.core.events import Admitted, Completed, EngineEvent, EngineStats, Finish, FinishReason
from tokenwire_service.core.events import TokensGenerated as Tokens
from tokenwire_service.core.params import Request, SamplingParams, StoppingParams
from tokenwire_service.engine.client import EngineInfo
from tokenwire_service.engine.codec import info_to_pb, request_from_pb, stats_to_pb
from tokenwire_service.engine.event_codec import events_to_pb
from tokenwire_service.engine.framing import encode_frame, read_frames

MODULE = __name__
DIRECTORY = "ACTING_ENGINE_DIRECTORY"
"""Environment: where processes leave what they tell beside the protocol; empty at first."""
RANK = "ACTING_ENGINE_RANK"
"""Environment: `spawned` starts a process beside it, as ranks are; `forked` one that has all its files open; of an
`unsupported` model loading fails, and of any while the directory has a file of that name."""
UNSUPPORTED = "unsupported"
BEAT_S = 0.02
INFO = EngineInfo("float32", "cpu", 1, 100, 32, 256, 8, 64, 1_000, "", "none")


class Part(enum.IntEnum):
    """First token of a prompt."""

    ANSWER = 1
    """Ends at once: two tokens, the process's number and how many requests it took before."""
    WAIT = 2
    """Not begun by processes up to the number that the second token is; by later ones ANSWERed."""
    BEGIN = 3
    """One token, then nothing."""
    DIE = 4
    """The process dies before it says a word."""
    HUSH = 5
    """Never a sign of life again."""
    STEPS = 6
    """A token each beat."""


def play(
    part: Part, *rest: int, request_id: str = "r", max_tokens: int = 8, time_limit_s: float | None = None, **fields: Any
) -> Request:
    """A request that has this part played; it arrives now."""
    return Request(
        request_id=request_id,
        prompt_token_ids=(part, *rest),
        sampling=SamplingParams(temperature=0.0),
        stopping=StoppingParams(max_tokens, time_limit_s=time_limit_s),
        arrival_time=time.monotonic(),
        **fields,
    )


class ActingEngine:
    def __init__(self, connection: socket.socket, directory: Path) -> None:
        self._connection = connection
        self._writing = threading.Lock()
        self._hushed = False
        self._directory = directory
        self._number = _take_number(directory)
        self._num_taken = 0
        self._waiting: dict[str, Request] = {}
        self._stepping: dict[str, tuple[Request, int]] = {}
        self._messages: queue.SimpleQueue[pb.FrontendMessage] = queue.SimpleQueue()
        (directory / f"pid-{self._number}").write_text(str(os.getpid()))

    def run(self) -> None:
        threading.Thread(target=self._live, daemon=True).start()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._messages.get().HasField("configure")
        if os.environ.get(RANK) == UNSUPPORTED or (self._directory / UNSUPPORTED).exists():
            failure = pb.StartupFailure(kind="UnsupportedModelError", message="nobody can act that")
            self._send(pb.EngineMessage(startup_failure=failure))
            return
        self._send(pb.EngineMessage(load_progress=pb.LoadProgress(phase="acting", fraction=1.0)))
        self._send(pb.EngineMessage(ready=info_to_pb(INFO)))
        while True:
            events: list[EngineEvent] = []
            with contextlib.suppress(queue.Empty):
                message = self._messages.get(timeout=BEAT_S)
                if message.stop:
                    return
                self._take(message, events)
            self._step(events)
            self._publish(events)

    def _take(self, message: pb.FrontendMessage, events: list[EngineEvent]) -> None:
        for submission in message.submissions:
            self._play(request_from_pb(submission), events)
            self._num_taken += 1
        for key in message.closed_keys:
            self._waiting.pop(str(key), None)
            self._stepping.pop(str(key), None)

    def _play(self, request: Request, events: list[EngineEvent]) -> None:
        match Part(request.prompt_token_ids[0]):
            case Part.WAIT if self._number <= request.prompt_token_ids[1]:
                self._waiting[request.request_id] = request
            case Part.ANSWER | Part.WAIT:
                events.append(Admitted(request.request_id, 0, 0.0))
                events.append(self._tokens(request, self._number, self._num_taken, last=True))
                events.append(_completed(request, 2))
            case Part.BEGIN:
                events.append(Admitted(request.request_id, 0, 0.0))
                events.append(self._tokens(request, self._number))
                self._waiting[request.request_id] = request
            case Part.DIE:
                os.kill(os.getpid(), signal.SIGKILL)
            case Part.HUSH:
                self._hushed = True
            case Part.STEPS:
                events.append(Admitted(request.request_id, 0, 0.0))
                self._stepping[request.request_id] = (request, 0)

    def _step(self, events: list[EngineEvent]) -> None:
        for request_id, (request, count) in list(self._stepping.items()):
            last = count + 1 == request.stopping.max_tokens
            events.append(self._tokens(request, self._number, last=last))
            self._stepping[request_id] = (request, count + 1)
            if last:
                del self._stepping[request_id]
                events.append(_completed(request, count + 1))

    def _tokens(self, request: Request, *token_ids: int, last: bool = False) -> Tokens:
        finish = Finish(FinishReason.MAX_TOKENS) if last else None
        return Tokens(request.request_id, 0, token_ids, finish=finish)

    def _publish(self, events: list[EngineEvent]) -> None:
        stats = EngineStats(
            num_running=len(self._stepping),
            num_waiting=len(self._waiting),
            num_blocks=100,
            num_free_blocks=100,
            block_size=32,
            num_steps=self._num_taken,
            generated_tokens=self._num_taken,
        )
        if events:
            output = events_to_pb(events)
            output.stats.CopyFrom(stats_to_pb(stats))
            self._send(pb.EngineMessage(step=output))
        else:
            self._send(pb.EngineMessage(heartbeat=pb.Heartbeat(stats=stats_to_pb(stats))))

    def _live(self) -> None:
        while True:
            self._send(pb.EngineMessage(alive=pb.Alive()))
            time.sleep(BEAT_S)

    def _read(self) -> None:
        for payload in read_frames(self._connection):
            self._messages.put(pb.FrontendMessage.FromString(payload))
        os._exit(1)

    def _send(self, message: pb.EngineMessage) -> None:
        with self._writing, contextlib.suppress(OSError):
            if not self._hushed:
                self._connection.sendall(encode_frame(message.SerializeToString()))


def _completed(request: Request, num_tokens: int) -> Completed:
    return Completed(request.request_id, len(request.prompt_token_ids), 0, num_tokens, 0.0, 0.0, 0.0, 0)


def _take_number(directory: Path) -> int:
    number = 1
    while True:
        try:
            (directory / f"number-{number}").touch(exist_ok=False)
            return number
        except FileExistsError:
            number += 1


def _start_rank(directory: Path) -> None:
    """A process that outlives this one, unless it is ended."""
    kind = os.environ.get(RANK)
    pid = 0
    if kind == "spawned":
        pid = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]).pid
    elif kind == "forked":
        pid = os.fork()
        if not pid:
            time.sleep(100)
            os._exit(0)
    if pid:
        (directory / "rank").write_text(str(pid))


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    directory = Path(os.environ[DIRECTORY])
    _start_rank(directory)
    ActingEngine(socket.socket(fileno=int(sys.argv[1])), directory).run()


if __name__ == "__main__":
    main()
