"""The engine's side of the socket: a thread that reads messages, and a writer the engine's thread uses."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.core.events import EngineEvent, EngineStats
from tokenwire_service.engine.codec import request_from_pb, stats_to_pb
from tokenwire_service.engine.engine import Commands
from tokenwire_service.engine.event_codec import events_to_pb
from tokenwire_service.engine.framing import FramingError, encode_frame, read_frames

_EXIT_GRACE_S = 5.0
"""How long the engine's thread may take to end after the frontend is gone."""


class SocketInbox:
    """Reads frames in a thread of its own. When the frontend goes away it asks the engine to stop, and sees to it."""

    def __init__(self, connection: socket.socket, logger: logging.Logger) -> None:
        self._connection = connection
        self._logger = logger
        self._messages: queue.SimpleQueue[pb.FrontendMessage] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="inbox", daemon=True)
        self._thread.start()

    def configuration(self) -> pb.Configure | None:
        """The first message, which configures; None when the frontend went away or sent something else first."""
        first = self._messages.get()
        return first.configure if first.HasField("configure") else None

    def drain(self, timeout_s: float) -> Sequence[Commands]:
        """See Inbox.drain."""
        batches: list[Commands] = []
        try:
            if timeout_s > 0:
                batches.append(_commands(self._messages.get(timeout=timeout_s)))
            while True:
                batches.append(_commands(self._messages.get_nowait()))
        except queue.Empty:
            return batches

    def _read(self) -> None:
        try:
            for payload in read_frames(self._connection):
                self._messages.put(pb.FrontendMessage.FromString(payload))
        except (DecodeError, FramingError) as error:
            self._logger.error("the frontend sent a message that cannot be read: %s", error)
        self._messages.put(pb.FrontendMessage(stop=True))
        # Loading, or a step, may never come back to read that message.
        threading.Event().wait(_EXIT_GRACE_S)
        os._exit(1)


class Outbox:
    """Writes frames. A frontend that is gone is the inbox's business, so write errors are not."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._writing = threading.Lock()
        """Loading reports its progress from any thread."""
        self._num_steps = 0

    def send(self, message: pb.EngineMessage) -> None:
        frame = encode_frame(message.SerializeToString())
        with self._writing, contextlib.suppress(OSError):
            self._connection.sendall(frame)

    def publish(self, events: Sequence[EngineEvent], stats: EngineStats) -> None:
        """See engine.Publish."""
        if not events and stats.num_steps == self._num_steps:
            self.send(pb.EngineMessage(heartbeat=pb.Heartbeat(stats=stats_to_pb(stats))))
            return
        self._num_steps = stats.num_steps
        output = events_to_pb(events)
        output.stats.CopyFrom(stats_to_pb(stats))
        self.send(pb.EngineMessage(step=output))


def _commands(message: pb.FrontendMessage) -> Commands:
    return Commands(
        submissions=tuple(request_from_pb(submission) for submission in message.submissions),
        finished_candidates=tuple((str(ended.key), ended.index) for ended in message.finished_candidates),
        closed=tuple(str(key) for key in message.closed_keys),
        aborted=tuple(str(key) for key in message.aborted_keys),
        flush_cache=message.flush_cache,
        stop=message.stop,
    )
