"""Requests under way between a frontend and its engine: who waits for which key, and what is still to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.core.events import FailureReason
from tokenwire_service.engine.codec import request_to_pb
from tokenwire_service.engine.delivery import Delivery
from tokenwire_service.engine.event_codec import events_from_pb


class Correspondence:
    """Gathers what is to be said within one tick of the event loop into one message."""

    def __init__(self, send: Callable[[pb.FrontendMessage], None]) -> None:
        self._send = send
        self._deliveries: dict[int, Delivery] = {}
        self._request_ids: dict[int, str] = {}
        self._num_taken = 0
        self._outgoing = pb.FrontendMessage()
        self._flush_due = False
        self.weight = 0
        """Of all that has not ended."""

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._deliveries)

    def take_in(self, delivery: Delivery) -> None:
        """Submit a request, for the first time or after another engine went down with it."""
        key = self._num_taken
        self._num_taken += 1
        mailbox = delivery.mailbox
        mailbox.bind(finish=partial(self._finish, key), close=partial(self._close, key))
        self._deliveries[key] = delivery
        self._request_ids[key] = delivery.request.request_id
        self.weight += delivery.weight
        self._outgoing.submissions.append(request_to_pb(delivery.request, key))
        for index in sorted(mailbox.finished):
            self._outgoing.finished_candidates.add(key=key, index=index)
        self._flush_soon()

    def abort(self, request_ids: Sequence[str]) -> int:
        """Have the named requests (all, when empty) fail with ABORTED_BY_OPERATOR; how many there were."""
        named = frozenset(request_ids)
        keys = [key for key, request_id in self._request_ids.items() if not named or request_id in named]
        for key in keys:
            self._deliveries[key].aborted = True
        self._outgoing.aborted_keys.extend(keys)
        self._flush_soon()
        return len(keys)

    def flush_cache(self) -> None:
        self._outgoing.flush_cache = True
        self._flush_soon()

    def deliver(self, output: pb.StepOutput) -> None:
        """Put a step's events where they belong."""
        for key, event in events_from_pb(output, self._request_ids):
            mailbox = self._deliveries[key].mailbox
            mailbox.put(event)
            if mailbox.ended:
                self._forget(key)

    def lose_engine(self, message: str) -> list[Delivery]:
        """The engine went down, and nothing that was to be sent is. See Delivery.lose_engine; those that another may
        take are returned, in their order."""
        return [delivery for delivery in self._clear() if delivery.lose_engine(message)]

    def fail_all(self, reason: FailureReason, message: str) -> None:
        """Every request ends, and nothing that was to be sent is."""
        for delivery in self._clear():
            delivery.mailbox.fail(reason, message)

    def _clear(self) -> list[Delivery]:
        deliveries = list(self._deliveries.values())
        self._deliveries.clear()
        self._request_ids.clear()
        self._outgoing.Clear()
        self.weight = 0
        return deliveries

    def _finish(self, key: int, index: int) -> None:
        self._outgoing.finished_candidates.add(key=key, index=index)
        self._flush_soon()

    def _close(self, key: int) -> None:
        self._forget(key)
        self._outgoing.closed_keys.append(key)
        self._flush_soon()

    def _forget(self, key: int) -> None:
        delivery = self._deliveries.pop(key, None)
        if delivery is not None:
            del self._request_ids[key]
            self.weight -= delivery.weight

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        outgoing, self._outgoing = self._outgoing, pb.FrontendMessage()
        if outgoing.ByteSize():
            self._send(outgoing)
