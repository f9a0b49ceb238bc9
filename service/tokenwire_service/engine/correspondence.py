"""Requests under way between a frontend and its engine: who waits for which key, and what is still to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.core.events import FailureReason
from tokenwire_service.core.params import Request
from tokenwire_service.engine.codec import request_to_pb
from tokenwire_service.engine.event_codec import events_from_pb
from tokenwire_service.engine.mailbox import Mailbox


class Correspondence:
    """Gathers what is to be said within one tick of the event loop into one message."""

    def __init__(self, send: Callable[[pb.FrontendMessage], None]) -> None:
        self._send = send
        self._mailboxes: dict[int, Mailbox] = {}
        self._request_ids: dict[int, str] = {}
        self._num_opened = 0
        self._outgoing = pb.FrontendMessage()
        self._flush_due = False

    @property
    def has_live(self) -> bool:
        """True while a request has not ended."""
        return bool(self._mailboxes)

    def open(self, request: Request) -> Mailbox:
        """Submit a request."""
        key = self._num_opened
        self._num_opened += 1
        mailbox = Mailbox(
            request.request_id, finish=lambda index: self._finish(key, index), close=lambda: self._close(key)
        )
        self._mailboxes[key] = mailbox
        self._request_ids[key] = request.request_id
        self._outgoing.submissions.append(request_to_pb(request, key))
        self._flush_soon()
        return mailbox

    def abort(self, request_ids: Sequence[str]) -> int:
        """Have the named requests (all, when empty) fail with ABORTED_BY_OPERATOR; how many there were."""
        named = frozenset(request_ids)
        keys = [key for key, request_id in self._request_ids.items() if not named or request_id in named]
        self._outgoing.aborted_keys.extend(keys)
        self._flush_soon()
        return len(keys)

    def flush_cache(self) -> None:
        self._outgoing.flush_cache = True
        self._flush_soon()

    def deliver(self, output: pb.StepOutput) -> None:
        """Put a step's events where they belong."""
        for key, event in events_from_pb(output, self._request_ids):
            mailbox = self._mailboxes[key]
            mailbox.put(event)
            if mailbox.ended:
                self._forget(key)

    def fail_all(self, reason: FailureReason, message: str) -> None:
        """The engine is gone: every request ends, and nothing that was to be sent is."""
        mailboxes = list(self._mailboxes.values())
        self._mailboxes.clear()
        self._request_ids.clear()
        self._outgoing.Clear()
        for mailbox in mailboxes:
            mailbox.fail(reason, message)

    def _finish(self, key: int, index: int) -> None:
        self._outgoing.finished_candidates.add(key=key, index=index)
        self._flush_soon()

    def _close(self, key: int) -> None:
        self._forget(key)
        self._outgoing.closed_keys.append(key)
        self._flush_soon()

    def _forget(self, key: int) -> None:
        self._mailboxes.pop(key, None)
        self._request_ids.pop(key, None)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        outgoing, self._outgoing = self._outgoing, pb.FrontendMessage()
        if outgoing.ByteSize():
            self._send(outgoing)
