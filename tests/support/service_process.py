"""`tokenwire serve` or `launch` as a process of its own, on a tiny random model that the tests write."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.byte_tokenizer import CHAT_TEMPLATE, byte_tokenizer
from tests.support.checkpoints import random_model, save
from tests.support.stack import free_port
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc
from tokenwire.v1 import types_pb2

GENERATION = "tokenwire.v1.TextGenerationService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
READY_LIMIT_S = 60.0


def write_tiny_checkpoint(directory: Path) -> Path:
    """A two-layer Llama with random weights, a context of 8192 tokens, a byte tokenizer and a chat template."""
    tokenizer = byte_tokenizer()
    save(random_model("llama", vocab_size=tokenizer.vocab_size, max_position_embeddings=8192), directory)
    tokenizer._backend.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@dataclass(frozen=True)
class ServiceProcess:
    """A started service and how to reach it."""

    process: subprocess.Popen[bytes]
    channel: grpc.Channel
    port: int
    metrics_port: int
    out: Path
    err: Path

    def stream(self, max_tokens: int, text: str = "hello") -> Any:
        """A greedy stream of exactly `max_tokens` tokens."""
        request = pb.GenerateRequest(
            text=text,
            sampling=types_pb2.SamplingParams(temperature=0),
            stopping=types_pb2.StoppingCriteria(max_tokens=max_tokens, ignore_eos=True),
        )
        return pb_grpc.TextGenerationServiceStub(self.channel).GenerateStream(request, timeout=60)

    def health(self) -> Iterator[int]:
        """The changes of the generation service's health, from now on."""
        watch = health_pb2_grpc.HealthStub(self.channel).Watch(
            health_pb2.HealthCheckRequest(service=GENERATION), timeout=READY_LIMIT_S, wait_for_ready=True
        )
        return (update.status for update in watch)

    def wait_for_health(self, status: int) -> None:
        """Return once health is `status`; fails when the process ends before."""
        try:
            next(update for update in self.health() if update == status)
        except (grpc.RpcError, StopIteration):
            raise AssertionError(f"health never became {status}:\n{self.err.read_text()}") from None

    def engine_pid(self) -> int:
        """The process id of the engine, a child of the service."""
        pids = self.engine_pids()
        assert pids, "the service has no engine process"
        return pids[0]

    def engine_pids(self) -> list[int]:
        """Those of all its engines."""
        pid = self.process.pid
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [child for child in children if b"tokenwire_service.engine.process" in command_of(child)]

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def exit_code(self, limit_s: float = 30) -> int:
        """Wait for the end."""
        return self.process.wait(limit_s)


@contextmanager
def started_service(
    directory: Path, model: Path | str, arguments: Sequence[str] = (), command: str = "serve", **environ: str
) -> Iterator[ServiceProcess]:
    """Start it, without waiting for anything; end it at the end of the context, however it is."""
    port, metrics_port = free_port(), free_port()
    out, err = directory / "out.log", directory / "err.log"
    flags = ["--model-id", str(model), "--num-threads", "1", "--max-batch-total-tokens", "16384"]
    ports = ["--grpc-port" if command == "launch" else "--port", str(port), "--prometheus-port", str(metrics_port)]
    own = {"TOKENWIRE_HOSTNAME": "127.0.0.1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(directory / "cache")}
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenwire_service", command, *flags, *ports, *arguments],
            stdout=stdout,
            stderr=stderr,
            env=os.environ | own | environ,
        )
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50)]
    options += [("grpc.max_reconnect_backoff_ms", 200)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        try:
            yield ServiceProcess(process, channel, port, metrics_port, out, err)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def serving_service(directory: Path, model: Path, arguments: Sequence[str] = (), **environ: str) -> Iterator[Any]:
    """The same, ready to answer."""
    with started_service(directory, model, arguments, **environ) as service:
        service.wait_for_health(SERVING)
        yield service


def eventually(check: Any, limit_s: float = 20.0) -> None:
    """Return once `check()` is true."""
    deadline = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)


def command_of(pid: int) -> bytes:
    """What a process was started with; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def scraped(service: ServiceProcess) -> dict[str, float]:
    """The metrics page, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}
