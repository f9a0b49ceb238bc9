"""What the frontend itself costs: CPU time per streamed token, with a mock engine behind it: `python -m bench.frontend`.

The service (over `bench.mock_engine`), the REST adapter and the clients are a process each. Counted is the CPU time of
the service's process alone, and of the adapter's alone, while every stream flows: neither starts nor ends of streams
are in it. CPU time, unlike wall time, hardly minds what else runs on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import uvloop

from bench import mock_engine, mock_server, record
from bench.wire_client import Tally, WireStream
from tests.support.stack import free_port
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc
from tokenwire.v1 import types_pb2
from tokenwire_client import Client

GENERATE_STREAM = "/tokenwire.v1.TextGenerationService/GenerateStream"
MAX_TOKENS = 100_000
WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` at once, each with a token every `step_ms`, over `connections`; measured for `seconds`."""

    streams: int = 64
    connections: int = 64
    step_ms: float = 25.0
    seconds: float = 6.0


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads together, user and system."""
    # The clock that clock_getcpuclockid(3) names, which Python does not wrap.
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def mock_service(step_ms: float) -> Iterator[tuple[int, int]]:
    """A service over the mock engine; (pid, port)."""
    environ = os.environ | {mock_engine.STEP_VARIABLE: str(step_ms / 1000)}
    command = [sys.executable, "-m", mock_server.__name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.stdin.close()


@contextmanager
def adapter(grpc_port: int) -> Iterator[tuple[int, int]]:
    """The REST adapter before that port; (pid, port)."""
    port = free_port()
    command = [sys.executable, "-m", "tokenwire_gateway", f"--target=127.0.0.1:{grpc_port}", "--hostname=127.0.0.1"]
    with subprocess.Popen([*command, f"--port={port}", "--log-level=warning"]) as process:
        try:
            yield process.pid, port
        finally:
            process.terminate()


async def grpc_streams(port: int, load: Load, tally: Tally) -> None:
    """Read `load.streams` GenerateStreams, a connection each, until cancelled. A message is a token here."""
    request = pb.GenerateRequest(
        text="Once upon a time",
        stopping=types_pb2.StoppingCriteria(max_tokens=MAX_TOKENS, ignore_eos=True),
    )
    loop = asyncio.get_running_loop()
    protocol = functools.partial(WireStream, GENERATE_STREAM, request.SerializeToString(), tally)
    transports = [(await loop.create_connection(protocol, "127.0.0.1", port))[0] for _ in range(load.streams)]
    try:
        while not tally.ended:
            await asyncio.sleep(0.1)
        raise RuntimeError("a stream ended early")
    finally:
        for transport in transports:
            transport.close()


async def rest_streams(port: int, load: Load, tally: Tally) -> None:
    """Read `load.streams` streams of /v1/completions until cancelled; one connection each."""
    body = {"prompt": "Once upon a time", "max_tokens": MAX_TOKENS, "stream": True, "ignore_eos": True}
    async with asyncio.TaskGroup() as group:
        for _ in range(load.streams):
            group.create_task(_read_rest(port, json.dumps(body).encode(), tally))


async def _read_rest(port: int, body: bytes, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        writer.write(f"{head}\r\n\r\n".encode() + body)
        while data := await reader.read(65536):
            if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(data.decode())
            tally.messages += data.count(b"data: {")
        raise RuntimeError("a stream ended early")
    finally:
        writer.close()


async def measure(streams: Awaitable[None], load: Load, tally: Tally, pids: dict[str, int]) -> dict[str, float]:
    """CPU µs per token of each process while the streams flow."""
    reading = asyncio.ensure_future(streams)
    try:
        await _flowing(reading, load, tally)
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        tokens, began = tally.messages, time.monotonic()
        await asyncio.wait((reading,), timeout=load.seconds)
        if reading.done():
            reading.result()
        num, seconds = tally.messages - tokens, time.monotonic() - began
        spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    return {
        "tokens_per_s": round(num / seconds, 1),
        **{f"{name}_us_per_token": round(cpu_s / num * 1e6, 2) for name, cpu_s in spent.items()},
    }


async def _flowing(reading: asyncio.Future[None], load: Load, tally: Tally) -> None:
    async with asyncio.timeout(60):
        while tally.messages < 2 * load.streams:
            if reading.done():
                reading.result()
            await asyncio.sleep(0.05)
        await asyncio.sleep(WARM_UP_S)


def run(load: Load, *, with_rest: bool) -> list[dict[str, Any]]:
    """One row for gRPC and one for REST."""
    rows = []
    with mock_service(load.step_ms) as (service, port):
        Client(f"127.0.0.1:{port}").wait_until_ready()
        tally = Tally()
        rows.append(
            {"path": "gRPC"} | _run(measure(grpc_streams(port, load, tally), load, tally, {"service": service}))
        )
        if with_rest:
            with adapter(port) as (pid, rest_port):
                _wait_for(rest_port)
                tally = Tally()
                pids = {"service": service, "adapter": pid}
                rows.append({"path": "REST"} | _run(measure(rest_streams(rest_port, load, tally), load, tally, pids)))
    return rows


def _run(work: Any) -> Any:
    return uvloop.run(work)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            asyncio.run(_connect(port))
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the adapter did not start")


async def _connect(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Load()
    parser.add_argument("--streams", type=int, default=defaults.streams)
    parser.add_argument("--connections", type=int, default=0, help="gRPC connections; one for each stream when 0")
    parser.add_argument("--step-ms", type=float, default=defaults.step_ms)
    parser.add_argument("--seconds", type=float, default=defaults.seconds)
    parser.add_argument("--no-rest", action="store_true")
    parser.add_argument("--no-record", action="store_true", help="print only; leave bench/results alone")
    args = parser.parse_args()
    load = Load(args.streams, args.connections or args.streams, args.step_ms, args.seconds)
    rows = run(load, with_rest=not args.no_rest)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if not args.no_record:
        packages = ("grpcio", "protobuf", "uvloop", "orjson", "uvicorn", "tokenizers")
        print(record.write("frontend", asdict(load), rows, packages))


if __name__ == "__main__":
    main()
