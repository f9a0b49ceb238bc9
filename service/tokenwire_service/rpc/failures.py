"""The engine's reasons for a bad end as domain errors. What it said about a fault goes to the log, not to callers."""

from __future__ import annotations

import logging

from tokenwire_service import errors
from tokenwire_service.core.events import Failed, FailureReason
from tokenwire_service.errors import TokenwireError

log = logging.getLogger(__name__)
RETRY_AFTER_RESTART_S = 5.0


def deadline_error(generated_tokens: int) -> errors.DeadlineExceededError:
    """The call's deadline, or the server's own limit, passed."""
    return errors.DeadlineExceededError(
        f"the deadline passed after {generated_tokens} generated tokens; allow more time or ask for fewer tokens",
        metadata={"generatedTokens": str(generated_tokens)},
    )


def failure_error(failed: Failed, retry_after_s: float) -> TokenwireError:
    """The error a caller gets for `failed`; `retry_after_s` is when a place should be free."""
    match failed.reason:
        case FailureReason.DEADLINE_EXCEEDED:
            return deadline_error(failed.generated_tokens)
        case FailureReason.QUEUE_TIMEOUT:
            return errors.QueueTimeoutError(
                "scheduling.max_queue_time passed before the request got a place; allow more time or retry later",
                retry_after_s=retry_after_s,
            )
        case FailureReason.QUEUE_FULL:
            return errors.QueueFullError("the engine's queue is full; retry later", retry_after_s=retry_after_s)
        case FailureReason.ABORTED_BY_OPERATOR:
            return errors.AbortedByOperatorError("an operator ended this request")
        case FailureReason.DRAINING:
            return errors.DrainingError(
                "the server is shutting down; send the request to another one", retry_after_s=0.0
            )
        case FailureReason.ENGINE_DOWN:
            return errors.EngineDownError(
                "the engine stopped and is being restarted; retry in a few seconds", retry_after_s=RETRY_AFTER_RESTART_S
            )
        case FailureReason.ENGINE_FAILURE:
            log.error("engine failure, response_id=%s: %s", failed.request_id, failed.message)
            return errors.EngineFailureError(
                f"a fault of the engine; report it with response id {failed.request_id}",
                metadata={"responseId": failed.request_id},
            )
