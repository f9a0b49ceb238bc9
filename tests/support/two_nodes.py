"""Two machines, as far as the network goes: a namespace each, joined by a cable. On each torchrun starts a rank."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.support.rank_processes import with_mark
from tests.support.service_process import ServiceProcess, command_of
from tests.support.stack import free_port


@dataclass(frozen=True)
class Node:
    """Where commands of one machine run."""

    prefix: tuple[str, ...] = ()
    """What makes a command one of this machine's."""
    address: str = "127.0.0.1"
    """As the other machine knows it."""
    outside: str = "127.0.0.1"
    """As this test knows it."""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@contextmanager
def namespaces() -> Iterator[tuple[Node, Node]]:
    """Raises OSError or CalledProcessError where that is not permitted."""
    first, second = (f"tw{os.getpid()}{letter}" for letter in "ab")
    with ExitStack() as stack:
        for name in (first, second):
            _ip("netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
            _ip("-n", name, "link", "set", "lo", "up")
        third = 1 + os.getpid() % 250
        cables = ((f"{first}0", None, f"{first}1", first), (f"{first}2", first, f"{second}0", second))
        for number, (here, ours, there, theirs) in enumerate(cables):
            _ip("link", "add", here, "type", "veth", "peer", "name", there)
            for device, name, host in ((here, ours, 1), (there, theirs, 2)):
                where: tuple[str, ...] = ()
                if name is not None:
                    _ip("link", "set", device, "netns", name)
                    where = ("-n", name)
                _ip(*where, "addr", "add", f"10.{213 + number}.{third}.{host}/30", "dev", device)
                _ip(*where, "link", "set", device, "up")
        inside = tuple(("ip", "netns", "exec", name) for name in (first, second))
        yield (
            Node(inside[0], f"10.214.{third}.1", f"10.213.{third}.2"),
            Node(inside[1], f"10.214.{third}.2"),
        )


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node, bool]]:
    """Two namespaces, or, where they are not permitted, this machine twice; and which of it."""
    with ExitStack() as stack:
        try:
            nodes = stack.enter_context(namespaces())
        except (OSError, subprocess.CalledProcessError):
            nodes = None
        yield (*(nodes or (Node(), Node())), nodes is not None)


class TwoNodeService:
    """A model of two ranks under torchrun, one on each node; `service` reaches rank 0."""

    def __init__(self, nodes: Sequence[Node], model: Path, directory: Path) -> None:
        self.mark = f"TOKENWIRE_TEST_{os.getpid()}_{next(_numbers())}"
        self._port, master_port = free_port(), free_port()
        agents, logs = [], []
        for rank, node in enumerate(nodes):
            logs.append(directory / f"node{rank}.log")
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
            command += ["--node-rank", str(rank), "--master-addr", nodes[0].address, "--master-port", str(master_port)]
            command += ["--no-python", sys.executable, "-m", "tokenwire_service", "serve", "--num-shard", "2"]
            command += ["--model-id", str(model), "--num-threads", "1", "--max-batch-total-tokens", "16384"]
            command += ["--port", str(self._port), "--prometheus-port", "0"]
            with logs[rank].open("wb") as log:
                agents.append(subprocess.Popen([*node.prefix, *command], env=os.environ | {self.mark: "1"}, stderr=log))
        self.agents, self.logs = agents, logs
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50)]
        options += [("grpc.max_reconnect_backoff_ms", 200)]
        channel = grpc.insecure_channel(f"{nodes[0].outside}:{self._port}", options=options)
        self.service = ServiceProcess(agents[0], channel, self._port, 0, logs[0], logs[0])

    def rank_pid(self, rank: int) -> int:
        """The process that computes."""
        module = b"engine.rank_process" if rank else b"engine.process"
        (pid,) = (pid for pid in with_mark(self.mark) if module in command_of(pid))
        return pid

    def stop(self) -> list[int]:
        """SIGTERM to both agents; their exit codes."""
        for agent in self.agents:
            agent.send_signal(signal.SIGTERM)
        return [agent.wait(60) for agent in self.agents]

    def close(self) -> None:
        self.service.channel.close()
        deadline = time.monotonic() + 20
        while (left := with_mark(self.mark)) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        for agent in self.agents:
            agent.wait(20)


def _numbers() -> Iterator[int]:
    return itertools.count(time.monotonic_ns())
