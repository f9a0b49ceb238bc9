"""`tokenwire launch`: two processes that live and end together."""

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tokenwire_service.launch as launch
from tests.support.service_process import ServiceProcess, eventually, started_service
from tests.support.stack import free_port
from tokenwire_service.config import FrontendConfig
from tokenwire_service.errors import StartupError


@contextmanager
def launched(directory: Path, model: Path) -> Iterator[tuple[ServiceProcess, str]]:
    port = free_port()
    with started_service(directory, model, ["--port", str(port)], command="launch") as service:
        eventually(lambda: service.process.poll() is not None or "Try it" in service.out.read_text(), 60)
        assert service.process.poll() is None, service.err.read_text()
        yield service, f"http://127.0.0.1:{port}"


def completion(rest: str, max_tokens: int) -> Any:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": max_tokens, "decoder_input_details": False}}
    request = urllib.request.Request(
        f"{rest}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def metric(service: ServiceProcess, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def gateway_pid(service: ServiceProcess) -> int:
    pid = service.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"tokenwire_gateway" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("there is no gateway process")


def test_both_serve_and_sigterm_ends_the_gateway_first(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with launched(tmp_path, tiny_checkpoint) as (service, rest):
        assert f"REST     {rest}" in service.out.read_text()
        assert "curl -N" in service.out.read_text()
        answers: list[Any] = []
        caller = threading.Thread(target=lambda: answers.append(completion(rest, 1500)))
        caller.start()
        eventually(lambda: metric(service, "tokenwire_requests_in_flight") == 1)
        service.signal()
        caller.join(60)
        assert service.exit_code() == 0, service.err.read_text()
        assert answers
        assert answers[0]["generated_text"]
        log = service.err.read_text()
        assert 0 < log.index("draining:") < log.index("completion_tokens=1500")
        assert "Traceback" not in log


def test_a_gateway_that_dies_ends_the_service_with_a_message(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with launched(tmp_path, tiny_checkpoint) as (service, _):
        os.kill(gateway_pid(service), signal.SIGKILL)
        assert service.exit_code() == 1
        last = service.err.read_text().splitlines()[-1]
        assert last.startswith("tokenwire: error: the REST gateway ended with exit code -9")


def test_a_service_that_is_killed_takes_the_gateway_with_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with launched(tmp_path, tiny_checkpoint) as (service, _):
        gateway = gateway_pid(service)
        service.process.kill()
        service.process.wait()
        eventually(lambda: not Path(f"/proc/{gateway}").exists() or _is_zombie(gateway))


def _is_zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


async def test_a_gateway_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MODULE", "tokenwire_gateway_that_is_not_there")
    gateway = launch.Gateway(launch.GatewayConfig(), FrontendConfig(), {})
    with pytest.raises(StartupError, match="pip install tokenwire-gateway-openai"):
        await gateway.start(50051)
