"""A request under way, from the frontend's side: what was asked, where its events go, and what it has been through."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tokenwire_service.core.events import FailureReason
from tokenwire_service.core.params import Request
from tokenwire_service.engine.mailbox import Mailbox
from tokenwire_service.scheduling.request_book import FAILURE_MESSAGES

MAX_REPLAYS = 2
"""A request may be handed to another engine this often: one that brings down whoever computes it must not go round for
ever."""


@dataclass(slots=True, eq=False)
class Delivery:
    """Goes from engine to engine until one has begun it, which the first event tells: from there on its tokens depend
    on what that engine computed, and its end is the request's end."""

    request: Request
    mailbox: Mailbox = field(init=False)
    submitted_at: float = field(default_factory=time.monotonic)
    """When it was first submitted, on the monotonic clock; requests that wait for an engine keep this order."""
    weight: int = 0
    """Tokens of work it is taken for where it is, for routing."""
    num_deaths: int = 0
    """Engines that went down while they had it."""
    aborted: bool = False
    """An operator ended it; its engine was told, if it lived."""

    def __post_init__(self) -> None:
        self.mailbox = Mailbox(self.request.request_id)

    def lose_engine(self, message: str) -> bool:
        """The engine that had it went down: whether another may take it, nothing having come of it yet. It ended
        otherwise, by ENGINE_DOWN and `message` unless an operator had ended it."""
        self.num_deaths += 1
        if self.aborted:
            reason = FailureReason.ABORTED_BY_OPERATOR
            self.mailbox.fail(reason, FAILURE_MESSAGES[reason])
        elif self.mailbox.started or self.num_deaths > MAX_REPLAYS:
            self.mailbox.fail(FailureReason.ENGINE_DOWN, message)
        return not self.mailbox.ended
