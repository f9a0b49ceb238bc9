"""What surrounds every request: identity, the key, metrics, a span, a log line, and the last net for faults."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenwire_gateway import names
from tokenwire_gateway.errors import CLIENT_CLOSED_REQUEST, Problem, internal
from tokenwire_gateway.facts import SCOPE_KEY, RequestFacts, read_facts
from tokenwire_gateway.observability.metrics import Metrics
from tokenwire_gateway.observability.tracing import Tracing
from tokenwire_gateway.openai.errors import error_response as openai_error
from tokenwire_gateway.tgi.errors import error_response as tgi_error

_log = logging.getLogger("tokenwire_gateway")
_access = logging.getLogger("tokenwire_gateway.access")
_COMPLETIONS = "/v1/completions"


def render(problem: Problem, path: str, known: Mapping[str, str] | None = None) -> Response:
    """The error response in the dialect of `path`; `known` are REST names of proto paths, the route's own when None."""
    if path == "/v1" or path.startswith("/v1/"):
        return openai_error(problem, known or (names.COMPLETION if path == _COMPLETIONS else names.CHAT))
    return tgi_error(problem, known or names.TGI)


class Around:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, api_key: str, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._api_key = api_key.encode()
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = scope[SCOPE_KEY] = read_facts(scope["headers"])
        self._metrics.began()
        try:
            with self._tracing.span(scope["method"], scope["path"], facts) as finish:
                try:
                    await self._answer(scope, receive, send, facts)
                finally:
                    finish(_route(scope))
        finally:
            self._ended(scope, facts)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, facts: RequestFacts) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = facts.request_id
            await send(message)

        try:
            if self._admits(scope, facts):
                await self._app(scope, receive, tell)
            else:
                refusal = Problem(401, "CREDENTIALS_INVALID", "Missing or wrong key; send Authorization: Bearer <key>.")
                await render(refusal, scope["path"])(scope, receive, tell)
        except ClientDisconnect:
            facts.status = CLIENT_CLOSED_REQUEST
        except Exception:
            _log.exception("request failed", extra={"request_id": facts.request_id})
            facts.failure = "INTERNAL"
            if not facts.status:
                await render(internal(), scope["path"])(scope, receive, tell)

    def _admits(self, scope: Scope, facts: RequestFacts) -> bool:
        guarded = scope["method"] == "POST" or scope["path"].startswith("/v1/")
        if not self._api_key or not guarded:
            return True
        scheme, _, key = facts.authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self._api_key)

    def _ended(self, scope: Scope, facts: RequestFacts) -> None:
        seconds = time.perf_counter() - facts.started_s
        facts.status = facts.status or CLIENT_CLOSED_REQUEST
        method, route = _method(scope), _route(scope)
        self._metrics.ended(method, route, facts, seconds)
        told = {
            "request_id": facts.request_id,
            "method": method,
            "route": route,
            "status": facts.status,
            "duration_ms": round(seconds * 1e3, 1),
            "model": facts.model,
            "failure": facts.failure,
        }
        level = logging.DEBUG if method == "GET" else logging.INFO
        _access.log(level, "rest", extra=told)


def _route(scope: Scope) -> str:
    """The route's template, so that callers cannot make up label values."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


def _method(scope: Scope) -> str:
    return (
        scope["method"] if scope["method"] in {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"} else "other"
    )
