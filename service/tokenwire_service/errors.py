"""The one tree of domain errors. `rpc/status.py` maps each leaf to a gRPC status; nothing else raises to callers.

Messages are for the caller: brief, English, say the remedy, and hold nothing of the engine's insides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its proto path (`sampling.top_p`, `messages[2].content`) and what to do about it."""

    field: str
    description: str


class TokenwireError(Exception):
    """Base of every error a caller may see. `reason` is google.rpc.ErrorInfo.reason."""

    reason: ClassVar[str]

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_s = retry_after_s


class BadRequestError(TokenwireError):
    """The caller must change the request; carries the fields that are wrong."""

    def __init__(self, violations: Sequence[FieldViolation], *, metadata: Mapping[str, str] | None = None) -> None:
        message = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
        super().__init__(message, metadata=metadata)
        self.violations = tuple(violations)

    @classmethod
    def at(cls, field: str, description: str, **metadata: str) -> BadRequestError:
        """One violation at `field`."""
        return cls([FieldViolation(field, description)], metadata=metadata)


class InvalidParameterError(BadRequestError):
    reason = "INVALID_PARAMETER"


class ContextLengthExceededError(BadRequestError):
    reason = "CONTEXT_LENGTH_EXCEEDED"


class InvalidConstraintError(BadRequestError):
    reason = "INVALID_CONSTRAINT"


class FeatureNotEnabledError(TokenwireError):
    """A valid field or RPC whose behaviour is off here. `feature` is its proto path."""

    reason = "FEATURE_NOT_ENABLED"

    def __init__(self, feature: str, description: str) -> None:
        super().__init__(f"{feature}: {description}", metadata={"feature": feature})
        self.feature = feature
        self.description = description


class ConstraintFailedError(TokenwireError):
    reason = "CONSTRAINT_FAILED"


class ModelNotFoundError(TokenwireError):
    reason = "MODEL_NOT_FOUND"

    def __init__(self, model: str, served: Sequence[str]) -> None:
        names = ", ".join(served)
        super().__init__(
            f"model: '{model[:200]}' is not served here; use one of: {names}, or leave it empty",
            metadata={"model": model[:200]},
        )
        self.model = model


class UnauthenticatedError(TokenwireError):
    reason = "CREDENTIALS_INVALID"


class PermissionDeniedError(TokenwireError):
    reason = "PERMISSION_DENIED"


class OverloadedError(TokenwireError):
    """Base of 'later, here': RESOURCE_EXHAUSTED with RetryInfo."""


class QueueFullError(OverloadedError):
    reason = "QUEUE_FULL"


class QueueTimeoutError(OverloadedError):
    reason = "QUEUE_TIMEOUT"


class ShedError(OverloadedError):
    reason = "SHED"


class RateLimitedError(OverloadedError):
    reason = "RATE_LIMITED"


class UnavailableError(TokenwireError):
    """Base of 'not serving now': UNAVAILABLE with RetryInfo."""


class ModelLoadingError(UnavailableError):
    reason = "MODEL_LOADING"


class DrainingError(UnavailableError):
    reason = "DRAINING"


class EngineDownError(UnavailableError):
    reason = "ENGINE_DOWN"


class DeadlineExceededError(TokenwireError):
    reason = "DEADLINE_EXCEEDED"


class AbortedByOperatorError(TokenwireError):
    reason = "ABORTED_BY_OPERATOR"


class EngineFailureError(TokenwireError):
    reason = "ENGINE_FAILURE"


class StartupError(Exception):
    """Base of what ends a start with one clear line and a non-zero exit; the message is that line."""


class ConfigError(StartupError):
    """A flag or environment variable is wrong; the message names it and the remedy."""


class ModelResolutionError(StartupError):
    """The model id names nothing loadable (unknown, gated, offline, not a model directory)."""


class WeightsError(StartupError):
    """The weights are damaged or do not fit the architecture (truncated file, missing or left-over tensor)."""


class UnsupportedModelError(StartupError):
    """The architecture, or a feature its config asks for, is not supported."""
