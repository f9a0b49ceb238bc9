"""Why loading failed, on its way from the process in which it did to the operator."""

from __future__ import annotations

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service import errors

_KINDS: tuple[type[errors.StartupError], ...] = (
    errors.ConfigError,
    errors.ModelResolutionError,
    errors.WeightsError,
    errors.UnsupportedModelError,
)


def failure_to_pb(error: Exception) -> pb.StartupFailure:
    """Of a StartupError its own words; of anything else its type and first line."""
    if isinstance(error, errors.StartupError):
        return pb.StartupFailure(kind=type(error).__name__, message=str(error))
    return pb.StartupFailure(kind="StartupError", message=f"loading the model failed: {one_line(error)}")


def failure_from_pb(failure: pb.StartupFailure) -> errors.StartupError:
    """The error again; a plain StartupError where its kind is not known."""
    kinds = {kind.__name__: kind for kind in _KINDS}
    return kinds.get(failure.kind, errors.StartupError)(failure.message)


def one_line(error: Exception) -> str:
    """Its type and the first line of what it says, at most 300 characters of that."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
