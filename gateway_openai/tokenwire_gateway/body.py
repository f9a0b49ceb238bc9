"""Reading a JSON body: bounded while it arrives, strict in what it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from tokenwire_gateway.errors import GatewayError, Problem

READ_TIMEOUT_S = 60.0
# What of an oversized body is read and thrown away, so that the sender gets to see the answer.
DRAIN_FACTOR = 64
_JSON_TYPES = frozenset({"application/json", "text/json"})


async def read_json(scope: Scope, receive: Receive, limit: int) -> dict[str, Any]:
    """The request's JSON object. Raises GatewayError 400, 408, 413 or 415, ClientDisconnect."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    _check_type(headers)
    _check_encoding(headers)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            raw = await _read(headers, receive, limit)
    except TimeoutError as error:
        message = f"The body did not arrive within {READ_TIMEOUT_S:.0f} s."
        raise GatewayError(Problem(408, "REQUEST_TIMEOUT", message, headers={"Connection": "close"})) from error
    return _parse(raw)


def _check_type(headers: dict[bytes, str]) -> None:
    kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if kind in _JSON_TYPES or (kind.startswith("application/") and kind.endswith("+json")):
        return
    shown = f"'{kind[:100]}'" if kind else "none"
    message = f"Content-Type must be application/json; given: {shown}."
    raise GatewayError(Problem(415, "UNSUPPORTED_MEDIA_TYPE", message))


def _check_encoding(headers: dict[bytes, str]) -> None:
    encoding = headers.get(b"content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding '{encoding[:100]}' is not taken; send the body uncompressed."
        raise GatewayError(Problem(415, "UNSUPPORTED_MEDIA_TYPE", message))


async def _read(headers: dict[bytes, str], receive: Receive, limit: int) -> bytes:
    declared = headers.get(b"content-length", "")
    if declared.isdecimal() and int(declared) > limit and headers.get(b"expect", "").lower() == "100-continue":
        # Nothing was sent yet, so nothing has to be thrown away.
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
        if not message.get("more_body", False):
            break
        if size > DRAIN_FACTOR * limit:
            raise _too_large(limit)
    if size > limit:
        raise _too_large(limit)
    return b"".join(chunks)


def _too_large(limit: int) -> GatewayError:
    message = f"The body is larger than {limit} bytes; send less, or raise the gateway's --payload-limit."
    return GatewayError(Problem(413, "REQUEST_TOO_LARGE", message, headers={"Connection": "close"}))


def _parse(raw: bytes) -> dict[str, Any]:
    if not raw.strip():
        raise GatewayError(Problem(400, "INVALID_JSON", "The body is empty; send a JSON object."))
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise GatewayError(Problem(400, "INVALID_JSON", _what_is_wrong(raw, error))) from error
    if not isinstance(value, dict):
        raise GatewayError(Problem(400, "INVALID_JSON", "The body must be a JSON object."))
    return value


def _what_is_wrong(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as undecodable:
        return f"The body is not valid UTF-8: {undecodable.reason} at byte {undecodable.start}."
    return f"The body is not valid JSON (finite numbers only): {error.msg} at character {error.pos}."
