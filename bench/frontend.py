"""What the frontend itself costs: CPU time per streamed token over a mock engine: `python -m bench.frontend`.

The service (over `bench.mock_engine`), the REST adapter and the clients are a process each. Counted is the CPU time of
the service's process alone, and of the adapter's alone, while every stream flows: neither starts nor ends of streams
are in it, nor is waking a client with every packet (`bench.wire_client`). Streams share one connection, as calls over
one channel do, or have one each, as from so many callers: then every token is a packet of its own.

The engine steps every 25 ms, as a small model's does on a CPU, and every 6, as a GPU's with a model of 8B would with as
many streams; a last row has it step as fast as the frontend takes tokens, several in a message then. Rows of grpc.aio
alone say what it costs when the server does nothing but write (`bench.bare_server`): CPU time, unlike wall time, hardly
minds waiting for a core, but it grows when neighbours share caches and hyperthreads, and only beside those rows do two
runs compare.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bench import bare_server, mock_engine, mock_server, record
from bench.wire_client import Connection, GrpcStreams, RestStream, Tally
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import types_pb2
from tokenwire_client import Client

GENERATE_STREAM = "/tokenwire.v1.TextGenerationService/GenerateStream"
PROMPT = "Once upon a time"
MAX_TOKENS = 100_000
WARM_UP_S = 2.0
READ_INTERVAL_S, UNPACED_READ_INTERVAL_S = 0.02, 0.001
STEPS_MS = (25.0, 6.0)
# What a socket holds of an engine's steps is all that such an engine is ahead.
UNPACED_MS = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` at once over `connections`, with a token every `step_ms` each; measured for `seconds`.

    0 ms: as fast as tokens are taken.
    """

    streams: int = 64
    connections: int = 1
    step_ms: float = 25.0
    seconds: float = 6.0

    @property
    def is_paced(self) -> bool:
        """Whether the engine waits between steps."""
        return self.step_ms > 0

    @property
    def streams_each(self) -> int:
        """Streams of one connection."""
        return self.streams // self.connections


Streams = Callable[[int, Load, Tally], Sequence[Connection]]
"""Begins streams at a port."""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads together, user and system."""
    # The clock that clock_getcpuclockid(3) names, which Python does not wrap.
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def server(arguments: Sequence[str], environ: dict[str, str]) -> Iterator[tuple[int, int]]:
    """A module that prints its port and serves until its stdin ends; (pid, port)."""
    command = [sys.executable, "-m", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.stdin.close()


@contextmanager
def adapter(grpc_port: int) -> Iterator[tuple[int, int]]:
    """The REST adapter before that port; (pid, port)."""
    port = _free_port()
    flags = [f"--target=127.0.0.1:{grpc_port}", "--hostname=127.0.0.1", f"--port={port}", "--log-level=warning"]
    with subprocess.Popen([sys.executable, "-m", "tokenwire_gateway", *flags]) as process:
        try:
            _wait_for(port, process)
            yield process.pid, port
        finally:
            process.terminate()


def grpc_streams(port: int, load: Load, tally: Tally) -> list[Connection]:
    """Streams of GenerateStream, whose messages may have several tokens when the service is behind."""
    request, num = _request().SerializeToString(), load.streams_each
    return [GrpcStreams(port, GENERATE_STREAM, request, tally, num, _num_tokens) for _ in range(load.connections)]


def bare_streams(port: int, load: Load, tally: Tally) -> list[Connection]:
    """Streams of `bench.bare_server`, a token a message."""
    return [GrpcStreams(port, bare_server.METHOD, b"", tally, load.streams_each) for _ in range(load.connections)]


def rest_streams(port: int, load: Load, tally: Tally) -> list[Connection]:
    """Streams of /v1/completions."""
    body = {"prompt": PROMPT, "max_tokens": MAX_TOKENS, "stream": True, "ignore_eos": True}
    return [RestStream(port, json.dumps(body).encode(), tally) for _ in range(load.streams)]


def measure(streams: Streams, port: int, load: Load, pids: dict[str, int]) -> dict[str, float]:
    """CPU µs per token of each process while the streams flow. Raises StreamEndedError."""
    tally = Tally()
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(each)) for each in streams(port, load, tally)]
        _flow(connections, load, tally)
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        tokens, began = tally.tokens, time.monotonic()
        _read(connections, load, load.seconds)
        num, seconds = tally.tokens - tokens, time.monotonic() - began
        spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    per_token = {f"{name}_us_per_token": round(cpu_s / num * 1e6, 2) for name, cpu_s in spent.items()}
    return {"tokens_per_s": round(num / seconds, 1), **per_token}


def _flow(connections: Sequence[Connection], load: Load, tally: Tally) -> None:
    """Until all streams flow, and a little longer."""
    give_up_at = time.monotonic() + 60
    while tally.tokens < 2 * load.streams:
        if time.monotonic() > give_up_at:
            raise TimeoutError("the streams do not flow")
        _read(connections, load, 0.05)
    _read(connections, load, WARM_UP_S)


def _read(connections: Sequence[Connection], load: Load, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(READ_INTERVAL_S if load.is_paced else UNPACED_READ_INTERVAL_S)
        for connection in connections:
            connection.read()


def run(load: Load, *, with_rest: bool) -> Iterator[dict[str, Any]]:
    """Rows for grpc.aio alone and for gRPC, each over one connection and over one for each stream, and one for REST.

    Of an engine that is not paced only gRPC over one connection.
    """
    loads = (load, replace(load, connections=load.streams)) if load.is_paced else (load,)
    if load.is_paced:
        yield from _bare_rows(loads)
    with server([mock_server.__name__], {mock_engine.STEP_VARIABLE: _step_s(load)}) as (service, port):
        Client(f"127.0.0.1:{port}").wait_until_ready()
        for each in loads:
            row = {"path": "gRPC", "step_ms": load.step_ms, "connections": each.connections}
            yield row | measure(grpc_streams, port, each, {"server": service})
        if with_rest and load.is_paced:
            with adapter(port) as (pid, rest_port):
                pids = {"server": service, "adapter": pid}
                row = {"path": "REST", "step_ms": load.step_ms}
                yield row | _paced(load, measure(rest_streams, rest_port, load, pids))


def _bare_rows(loads: Sequence[Load]) -> Iterator[dict[str, Any]]:
    with server([bare_server.__name__, _step_s(loads[0])], {}) as (pid, port):
        for each in loads:
            row = {"path": "grpc.aio alone", "step_ms": each.step_ms, "connections": each.connections}
            yield row | measure(bare_streams, port, each, {"server": pid})


def _paced(load: Load, row: dict[str, float]) -> dict[str, float]:
    """That row, when it has the tokens that the engine made: chunks do not tell of how many they are."""
    if row["tokens_per_s"] < 0.95 * load.streams / load.step_ms * 1000:
        raise RuntimeError("the adapter merges tokens at this pace; take a longer --step-ms, or --no-rest")
    return row


def _step_s(load: Load) -> str:
    return str(load.step_ms / 1000)


def _request() -> pb.GenerateRequest:
    stopping = types_pb2.StoppingCriteria(max_tokens=MAX_TOKENS, ignore_eos=True)
    return pb.GenerateRequest(text=PROMPT, stopping=stopping)


def _num_tokens(message: bytes) -> int:
    return pb.GenerateStreamResponse.FromString(message).delta.token_count


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the adapter did not start")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Load()
    parser.add_argument("--streams", type=int, default=defaults.streams)
    parser.add_argument("--step-ms", type=float, nargs="+", default=[*STEPS_MS, UNPACED_MS], help="0: not paced")
    parser.add_argument("--seconds", type=float, default=defaults.seconds)
    parser.add_argument("--no-rest", action="store_true", help="leave the adapter out")
    parser.add_argument("--no-record", action="store_true", help="print only; leave bench/results alone")
    args = parser.parse_args()
    workload = {"streams": args.streams, "steps_ms": args.step_ms, "seconds": args.seconds}
    rows = []
    for step_ms in args.step_ms:
        load = Load(streams=args.streams, step_ms=step_ms, seconds=args.seconds)
        for row in run(load, with_rest=not args.no_rest):
            rows.append(row)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if not args.no_record:
        packages = ("grpcio", "protobuf", "uvloop", "orjson", "uvicorn", "tokenizers")
        print(record.write("frontend", workload, rows, packages))


if __name__ == "__main__":
    main()
