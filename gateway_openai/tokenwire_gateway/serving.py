"""What every route needs: the backend, the configuration, and the few steps all of them take."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from tokenwire.v1 import types_pb2 as types
from tokenwire_gateway.backend import Backend
from tokenwire_gateway.body import read_json
from tokenwire_gateway.config import GatewayConfig
from tokenwire_gateway.facts import RequestFacts, facts_of
from tokenwire_gateway.sse import ErrorFrame, EventStream

_E = TypeVar("_E")


@dataclass(slots=True)
class Gateway:
    """State of the running application. `backend` is opened when the server starts, inside its event loop."""

    config: GatewayConfig
    backend: Backend


def gateway_of(request: Request) -> Gateway:
    """The running application's state."""
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


async def body_of(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises GatewayError, ClientDisconnect."""
    return await read_json(request.scope, request.receive, gateway_of(request).config.payload_limit)


def json_response(body: Any, headers: dict[str, str] | None = None) -> Response:
    """A 200 with `body`."""
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")


async def frames(events: AsyncGenerator[_E], on: Callable[[_E], bytes], tail: bytes) -> AsyncGenerator[bytes]:
    """What `on` makes of each event, then `tail`. Closing it closes `events`."""
    async with aclosing(events) as open_events:
        async for event in open_events:
            chunk = on(event)
            if chunk:
                yield chunk
    if tail:
        yield tail


async def event_stream(request: Request, chunks: AsyncGenerator[bytes], error_frame: ErrorFrame) -> Response:
    """A begun response of `chunks`. Raises GatewayError when they fail before the first one, ClientDisconnect."""
    gateway = gateway_of(request)
    device = await gateway.backend.device(facts_of(request.scope))
    headers = {"x-compute-type": device} if device else {}
    response = EventStream(chunks, error_frame, gateway.config.keep_alive_s, headers)
    await response.begin(request.receive)
    return response


async def cost_headers(request: Request, facts: RequestFacts, characters: int) -> dict[str, str]:
    """TGI's x- headers of a whole answer, as far as the service tells. In ms, x-compute-time in s."""
    headers = {"x-compute-characters": str(characters)}
    device = await gateway_of(request).backend.device(facts)
    if device:
        headers["x-compute-type"] = device
    if facts.usage is not None:
        headers["x-prompt-tokens"] = str(facts.usage.prompt_tokens)
        headers["x-generated-tokens"] = str(facts.usage.completion_tokens)
    if facts.timing is not None:
        headers |= _time_headers(facts.timing, facts.usage.completion_tokens if facts.usage else 0)
    return headers


def _time_headers(timing: types.Timing, generated: int) -> dict[str, str]:
    total = timing.total_time.ToNanoseconds() / 1e6
    queue = timing.queue_time.ToNanoseconds() / 1e6
    inference = max(0.0, total - queue)
    return {
        "x-compute-time": f"{total / 1e3:.6f}",
        "x-total-time": f"{total:.0f}",
        "x-queue-time": f"{queue:.0f}",
        "x-inference-time": f"{inference:.0f}",
        "x-time-per-token": f"{inference / generated if generated else 0.0:.0f}",
    }
