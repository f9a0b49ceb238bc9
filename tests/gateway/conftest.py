from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.gateway.scripted import ScriptedService, serve
from tokenwire_gateway.config import GatewayConfig
from tokenwire_gateway.server import make_server


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Payloads of the stream's events, `[DONE]` left as it is; comments are left out."""
        blocks = [block for block in self.body.decode().split("\n\n") if block and not block.startswith(":")]
        assert all(block.startswith("data: ") for block in blocks), blocks
        payloads = [block.removeprefix("data: ") for block in blocks]
        return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


@dataclass(frozen=True)
class Rest:
    """A running gateway."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask(
            "POST",
            path,
            raw,
            {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()},
        )


@contextmanager
def gateway(config: GatewayConfig) -> Iterator[Rest]:
    """A real uvicorn server in a thread."""
    server = make_server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield Rest(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def _service() -> Iterator[tuple[ScriptedService, str]]:
    service = ScriptedService()
    with serve(service) as target:
        yield service, target


@pytest.fixture
def service(_service: tuple[ScriptedService, str]) -> ScriptedService:
    """The scripted service, as new."""
    _service[0].reset()
    return _service[0]


@pytest.fixture(scope="session")
def target(_service: tuple[ScriptedService, str]) -> str:
    return _service[1]


@pytest.fixture(scope="session")
def _rest(target: str) -> Iterator[Rest]:
    with gateway(GatewayConfig(target=target, hostname="127.0.0.1", port=0, payload_limit=100_000)) as rest:
        yield rest


@pytest.fixture
def rest(service: ScriptedService, _rest: Rest) -> Rest:
    """A gateway with default configuration, before the scripted service as new."""
    return _rest
