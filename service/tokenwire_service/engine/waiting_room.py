"""Requests without an engine: they keep their places, their times and their callers until there is one again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import partial

from tokenwire_service.core.events import Admitted, Completed, FailureReason, Finish, FinishReason, TokensGenerated
from tokenwire_service.engine.delivery import Delivery
from tokenwire_service.scheduling.request_book import FAILURE_MESSAGES


class WaitingRoom:
    """What an engine would do to a request that waits happens here meanwhile: its times run out, its caller leaves, an
    operator ends it. Everything here belongs to one event loop."""

    def __init__(self) -> None:
        self._timers: dict[Delivery, asyncio.TimerHandle | None] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def take_in(self, deliveries: Iterable[Delivery]) -> None:
        """Keep requests that no engine has begun."""
        for delivery in deliveries:
            # Which candidates ended early the mailbox remembers, for the next engine.
            delivery.mailbox.bind(finish=_nobody_to_tell, close=partial(self._forget, delivery))
            self._timers[delivery] = None
            self._set_timer(delivery)

    def release(self) -> list[Delivery]:
        """All of them, the one that was submitted first in front; they are the caller's now."""
        deliveries = sorted(self._timers, key=lambda delivery: delivery.submitted_at)
        for delivery in deliveries:
            self._forget(delivery)
        return deliveries

    def abort(self, request_ids: Sequence[str]) -> int:
        """See EngineClient.abort."""
        named = frozenset(request_ids)
        deliveries = [each for each in self._timers if not named or each.request.request_id in named]
        for delivery in deliveries:
            self._fail(delivery, FailureReason.ABORTED_BY_OPERATOR)
        return len(deliveries)

    def fail_all(self, reason: FailureReason, message: str) -> None:
        """There will be no engine."""
        for delivery in self.release():
            delivery.mailbox.fail(reason, message)

    def _fail(self, delivery: Delivery, reason: FailureReason) -> None:
        self._forget(delivery)
        delivery.mailbox.fail(reason, FAILURE_MESSAGES[reason])

    def _forget(self, delivery: Delivery) -> None:
        timer = self._timers.pop(delivery, None)
        if timer is not None:
            timer.cancel()

    def _set_timer(self, delivery: Delivery) -> None:
        due = min((time_ for time_, _ in _times(delivery)), default=None)
        if due is not None:
            delay_s = max(0.0, due - time.monotonic())
            self._timers[delivery] = asyncio.get_running_loop().call_later(delay_s, self._expire, delivery)

    def _expire(self, delivery: Delivery) -> None:
        due, reason = min(_times(delivery), key=lambda timed: timed[0])
        if time.monotonic() < due:
            # The loop's clock is coarser than ours.
            self._set_timer(delivery)
        elif reason is None:
            self._forget(delivery)
            _end_empty(delivery)
        else:
            self._fail(delivery, reason)


def _times(delivery: Delivery) -> list[tuple[float, FailureReason | None]]:
    """When its times run out, and what it ends with then; None is its own time limit, which is no failure."""
    request, limit_s = delivery.request, delivery.request.stopping.time_limit_s
    times = (
        (request.deadline, FailureReason.DEADLINE_EXCEEDED),
        (request.queue_deadline, FailureReason.QUEUE_TIMEOUT),
        (None if limit_s is None else request.arrival_time + limit_s, None),
    )
    return [(due, reason) for due, reason in times if due is not None]


def _end_empty(delivery: Delivery) -> None:
    """Its time limit came before its first token: a good end of each candidate, as an engine would tell it."""
    request, put = delivery.request, delivery.mailbox.put
    waited_s = max(0.0, time.monotonic() - request.arrival_time)
    put(Admitted(request.request_id, 0, waited_s))
    for index in range(request.num_candidates):
        put(TokensGenerated(request.request_id, index, (), finish=Finish(FinishReason.TIME_LIMIT)))
    put(Completed(request.request_id, len(request.prompt_token_ids), 0, 0, waited_s, 0.0, waited_s, 0))


def _nobody_to_tell(index: int) -> None:
    pass
