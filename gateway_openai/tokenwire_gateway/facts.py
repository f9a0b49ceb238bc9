"""What is known about one REST request while it runs: shared by middleware, routes and the call to the service."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

from tokenwire.v1.types_pb2 import Timing, Usage

SCOPE_KEY = "tokenwire.facts"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class RequestFacts:
    """One request's identity and, as they become known, its outcome and costs. Owned by the task that serves it."""

    request_id: str
    authorization: str = ""
    traceparent: str = ""
    tracestate: str = ""
    started_s: float = field(default_factory=time.perf_counter)
    status: int = 0
    first_token_s: float | None = None
    model: str = ""
    usage: Usage | None = None
    timing: Timing | None = None
    failure: str = ""
    names: Mapping[str, str] | None = None
    """REST names of proto paths, when the route's own do not fit this request."""

    def saw_first_token(self) -> None:
        """Note the moment the first generated text left for the caller."""
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.started_s

    def completed(self, usage: Usage, timing: Timing) -> None:
        """Add one answered prompt; of several, the slowest one's timing counts."""
        self.usage = usage if self.usage is None else add_usage(self.usage, usage)
        if self.timing is None or timing.total_time.ToNanoseconds() > self.timing.total_time.ToNanoseconds():
            self.timing = timing
        if self.first_token_s is None and timing.HasField("time_to_first_token"):
            self.first_token_s = timing.time_to_first_token.ToNanoseconds() / 1e9


def read_facts(headers: Iterable[tuple[bytes, bytes]]) -> RequestFacts:
    """Identity from request headers. An x-request-id or traceparent that is not well formed is replaced or left out."""
    known = {name: value.decode("latin-1") for name, value in headers}
    request_id = known.get(b"x-request-id", "")
    traceparent = known.get(b"traceparent", "")
    tracestate = known.get(b"tracestate", "")
    return RequestFacts(
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex,
        authorization=known.get(b"authorization", ""),
        traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
        tracestate=tracestate if len(tracestate) <= 512 and tracestate.isascii() and tracestate.isprintable() else "",
    )


def facts_of(scope: Scope) -> RequestFacts:
    """The facts the middleware put into `scope`."""
    facts = scope[SCOPE_KEY]
    assert isinstance(facts, RequestFacts)
    return facts


def add_usage(left: Usage, right: Usage) -> Usage:
    """The sum, field by field."""
    return Usage(**{name: getattr(left, name) + getattr(right, name) for name in Usage.DESCRIPTOR.fields_by_name})
