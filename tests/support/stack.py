"""The whole product as a user starts it: `tokenwire launch` in a process of its own, on free loopback ports."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Stack:
    """Where a running stack listens."""

    process: subprocess.Popen[bytes]
    grpc: str
    rest: str
    metrics: str
    log: Path

    def http(
        self, path: str, body: Any = None, *, raw: bytes | None = None, headers: dict[str, str] | None = None
    ) -> HttpAnswer:
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        request = urllib.request.Request(
            f"{self.rest}{path}", data=data, headers={"Content-Type": "application/json"} | (headers or {})
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return HttpAnswer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return HttpAnswer(error.code, dict(error.headers), error.read())


def _wait_until_healthy(stack: Stack, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if stack.process.poll() is not None:
            raise AssertionError(f"the stack ended with {stack.process.returncode}:\n{stack.log.read_text()}")
        try:
            if stack.http("/health").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not healthy after {limit_s} s:\n{stack.log.read_text()}")


@contextmanager
def running_stack(
    directory: Path,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
    limit_s: float = 150,
) -> Iterator[Stack]:
    """Start `tokenwire launch ARGUMENTS`, wait until it serves, and end it with SIGTERM."""
    grpc_port, rest_port, metrics_port = free_port(), free_port(), free_port()
    ports = ["--grpc-port", str(grpc_port), "--port", str(rest_port), "--prometheus-port", str(metrics_port)]
    log = directory / "stack.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / "tokenwire"), "launch", *ports, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TOKENWIRE_HOSTNAME": "127.0.0.1"} | dict(environment),
        )
    stack = Stack(
        process, f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{rest_port}", f"http://127.0.0.1:{metrics_port}", log
    )
    try:
        _wait_until_healthy(stack, limit_s)
        yield stack
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"SIGTERM did not end the stack:\n{log.read_text()}") from None
