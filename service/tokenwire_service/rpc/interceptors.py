"""Who may call: a bearer token, before anything of the call is read. Health and reflection stay open."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc

from tokenwire_service.errors import UnauthenticatedError
from tokenwire_service.rpc.call import Context, text_metadata
from tokenwire_service.rpc.endpoint import LiveCalls, refuse

OPEN_PREFIXES = ("/grpc.health.v1.", "/grpc.reflection.")
_SCHEME = "bearer "
UNKNOWN_METHOD = "unknown"


class BearerAuth(grpc.aio.ServerInterceptor):
    """Ends calls without the right `authorization: Bearer <token>` UNAUTHENTICATED."""

    def __init__(self, api_key: str, calls: LiveCalls, methods: Collection[str]) -> None:
        self._api_key = api_key.encode()
        self._calls = calls
        self._methods = frozenset(methods)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = str(handler_call_details.method)
        if method.startswith(OPEN_PREFIXES):
            return await continuation(handler_call_details)
        error = self._problem(text_metadata(handler_call_details.invocation_metadata).get("authorization", ""))
        if error is None:
            return await continuation(handler_call_details)
        name = method.lstrip("/") if method.lstrip("/") in self._methods else UNKNOWN_METHOD
        return self._refusal(name, error)

    def _problem(self, authorization: str) -> UnauthenticatedError | None:
        scheme, given = authorization[: len(_SCHEME)], authorization[len(_SCHEME) :]
        if scheme.lower() != _SCHEME:
            return UnauthenticatedError("no credentials: send metadata 'authorization: Bearer <token>'")
        if not hmac.compare_digest(given.strip().encode(), self._api_key):
            return UnauthenticatedError("the bearer token is wrong: ask the operator of this server for one")
        return None

    def _refusal(self, name: str, error: UnauthenticatedError) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse_call(requests: object, context: Context) -> None:
            await refuse(self._calls, self._calls.open(context, name), context, error)

        # Of this kind the handler runs before any message is read.
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(refuse_call)
        return handler
