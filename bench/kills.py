"""Kills a random rank under load, many times: `python -m bench.kills --kills 200`.

After each kill every stream that had begun must end with UNAVAILABLE, health must say NOT_SERVING and SERVING again,
a call must work, and nothing may be left of the group that was: no process of its session, no file in /dev/shm.
Writes bench/results/<date>-kills.json.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench import record
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc
from tokenwire.v1 import types_pb2
from tokenwire_service.config import EMBEDDED_MODEL_ID

_SERVICE = "tokenwire.v1.TextGenerationService"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_LIMIT_S = 120.0
Stub = pb_grpc.TextGenerationServiceStub


@dataclass(frozen=True, slots=True)
class Kill:
    """What one kill did; seconds are counted from it unless said otherwise."""

    rank: int
    streams: int
    """That had begun."""
    unavailable: int
    """Of those, ended with UNAVAILABLE."""
    not_serving_s: float
    last_stream_s: float
    last_stream_after_detection_s: float
    serving_s: float
    processes_left: int
    files_left: int
    works: bool

    @property
    def is_good(self) -> bool:
        told = self.streams == self.unavailable and self.last_stream_after_detection_s <= 1.0
        return told and self.works and not self.processes_left and not self.files_left


def run_kills(model: str, kills: int, ranks: int, streams: int, seed: int = 0) -> list[Kill]:
    """Start a service, and kill. Raises RuntimeError when it does not come back."""
    choose = random.Random(seed)
    with _service(model, ranks) as (process, channel):
        health = _Health(channel)
        health.wait(serving=True)
        results = []
        for number in range(kills):
            results.append(_kill(process.pid, channel, health, choose.randrange(ranks), streams, choose.random()))
            print(f"{number + 1:4} {asdict(results[-1])}", flush=True)
        return results


def _kill(parent: int, channel: grpc.Channel, health: _Health, rank: int, streams: int, wait_s: float) -> Kill:
    files = set(Path("/dev/shm").iterdir())
    pids = _ranks(parent)
    load = [_Stream(Stub(channel), index) for index in range(streams)]
    for stream in load:
        stream.begun.wait(_LIMIT_S)
    time.sleep(wait_s / 5)
    killed = time.monotonic()
    os.kill(pids[rank], signal.SIGKILL)
    detected = health.wait(serving=False)
    for stream in load:
        stream.thread.join(_LIMIT_S)
    serving = health.wait(serving=True)
    last = max(stream.ended for stream in load)
    return Kill(
        rank=rank,
        streams=len(load),
        unavailable=sum(stream.code is grpc.StatusCode.UNAVAILABLE for stream in load),
        not_serving_s=round(detected - killed, 4),
        last_stream_s=round(last - killed, 4),
        last_stream_after_detection_s=round(last - detected, 4),
        serving_s=round(serving - killed, 3),
        processes_left=len(_session(pids[0])),
        files_left=len(set(Path("/dev/shm").iterdir()) - files),
        works=sum(1 for _ in Stub(channel).GenerateStream(_request(3, 0), timeout=_LIMIT_S)) > 0,
    )


class _Stream:
    """One long stream, read in a thread."""

    def __init__(self, stub: Stub, index: int) -> None:
        self.begun = threading.Event()
        self.code: grpc.StatusCode | None = None
        self.ended = 0.0
        self._call = stub.GenerateStream(_request(8000, index), timeout=_LIMIT_S)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                if event.HasField("delta"):
                    self.begun.set()
            self.code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.code = error.code()
        self.ended = time.monotonic()
        self.begun.set()


class _Health:
    """The service's health, and when it changed."""

    def __init__(self, channel: grpc.Channel) -> None:
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        self._updates = stub.Watch(request, wait_for_ready=True)

    def wait(self, *, serving: bool) -> float:
        """When it became so, on the monotonic clock."""
        for update in self._updates:
            if (update.status == _SERVING) is serving:
                return time.monotonic()
        raise RuntimeError("the service ended")


def _request(max_tokens: int, index: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        text=f"stream {index}",
        sampling=types_pb2.SamplingParams(temperature=0),
        stopping=types_pb2.StoppingCriteria(max_tokens=max_tokens, ignore_eos=True),
    )


@contextmanager
def _service(model: str, ranks: int) -> Iterator[tuple[subprocess.Popen[bytes], grpc.Channel]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bench.kills_service", "serve", "--model-id", model, "--num-shard", str(ranks)]
    command += ["--port", str(port), "--prometheus-port", "0", "--max-batch-total-tokens", "131072"]
    command += ["--log-level", "error"]
    environ = os.environ | {"TOKENWIRE_HOSTNAME": "127.0.0.1"}
    options = [(f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("initial", "min", "max")]
    with tempfile.TemporaryFile() as log, grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=Path(__file__).parent.parent)
        try:
            yield process, channel
        finally:
            process.terminate()
            process.wait(60)


def _ranks(parent: int) -> list[int]:
    """Process ids in the order of ranks."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (engine,) = (int(child) for child in children if "engine.process" in _command(int(child)))
    return [engine, *(pid for pid in _session(engine) if "engine.rank_process" in _command(pid))]


def _session(session: int) -> list[int]:
    """Living processes of it."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split() if path.name.isdigit() else []
        except OSError:
            continue
        if fields and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.name))
    return sorted(found)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def summarise(kills: Sequence[Kill]) -> dict[str, Any]:
    """p50 and largest of each time, and how many kills went as they should."""
    figures: dict[str, Any] = {"kills": len(kills), "good": sum(kill.is_good for kill in kills)}
    for name in ("not_serving_s", "last_stream_s", "last_stream_after_detection_s", "serving_s"):
        values = sorted(getattr(kill, name) for kill in kills)
        figures |= {f"{name}_p50": values[len(values) // 2], f"{name}_max": values[-1]}
    for name in ("processes_left", "files_left"):
        figures[name] = sum(getattr(kill, name) for kill in kills)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-id", default=EMBEDDED_MODEL_ID)
    parser.add_argument("--out", type=Path, help="instead of bench/results/<date>-kills.json")
    options = parser.parse_args()
    kills = run_kills(options.model_id, options.kills, options.ranks, options.streams, options.seed)
    summary = summarise(kills)
    print(summary)
    workload = {name: getattr(options, name) for name in ("kills", "ranks", "streams", "seed")}
    rows = [asdict(kill) for kill in kills]
    print(record.write("kills", workload, rows, ("torch", "grpcio"), more={"summary": summary}, path=options.out))
    if summary["good"] < len(kills):
        sys.exit("some kills went wrong")


if __name__ == "__main__":
    main()
