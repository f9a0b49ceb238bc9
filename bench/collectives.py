"""A sum over two ranks of this CPU, and a small message from one to the other, each way there is: `compare()`.

Wall time on busy cores says little; CPU time is what a rank's core loses.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

_SIZES = (576, 8 * 576, 64 * 576, 512 * 576)
"""Numbers summed: one row of the embedded model, and more."""
_PLAN_BYTES = 1024
Row = dict[str, Any]


def compare() -> list[Row]:
    """Rank 0's figures, in microseconds."""
    from tokenwire_service.kernels.exchange import memory_bytes
    from tokenwire_service.parallel.local_ranks import allocate

    descriptor = allocate(memory_bytes(2))
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        out = Path(directory) / "rows.json"
        context = multiprocessing.get_context("fork")
        ranks = [context.Process(target=_rank, args=(rank, descriptor, listener, directory, out)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        os.close(descriptor or 0)
        rows: list[Row] = json.loads(out.read_text())
        return rows


def _rank(rank: int, descriptor: int, listener: socket.socket, directory: str, out: Path) -> None:
    import torch
    import torch.distributed as dist

    from tokenwire_service.kernels._cpu_library import load_cpu_library
    from tokenwire_service.kernels.exchange import SharedExchange
    from tokenwire_service.parallel.group import TensorParallelGroup
    from tokenwire_service.parallel.local_ranks import map_memory

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    library = load_cpu_library()
    assert library is not None
    shared = SharedExchange(library, map_memory(os.dup(descriptor)), rank, 2)
    rows = []
    for size in _SIZES:
        x = torch.zeros(size)
        for name, group in (
            ("gloo", TensorParallelGroup(rank, 2)),
            ("memory", TensorParallelGroup(rank, 2, None, shared)),
        ):
            rows.append({"what": "sum", "numbers": size, "by": name, **_measure(partial(group.all_reduce, x))})
    plan, answer = torch.zeros(_PLAN_BYTES // 4, dtype=torch.int32), torch.zeros(1)

    def there_and_back() -> None:
        dist.broadcast(plan, 0)
        dist.broadcast(answer, 1)

    rows.append({"what": "plan and answer", "bytes": _PLAN_BYTES, "by": "gloo", **_measure(there_and_back)})
    with _connected(rank, listener) as exchange:
        rows.append({"what": "plan and answer", "bytes": _PLAN_BYTES, "by": "stream", **_measure(exchange)})
    if rank == 0:
        out.write_text(json.dumps(rows))
    dist.destroy_process_group()


@contextmanager
def _connected(rank: int, listener: socket.socket) -> Iterator[Callable[[], None]]:
    connection = listener.accept()[0] if rank == 0 else socket.create_connection(listener.getsockname())
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plan, buffer = bytes(_PLAN_BYTES), bytearray(_PLAN_BYTES)

    def exchange() -> None:
        if rank == 0:
            connection.sendall(plan)
            connection.recv_into(buffer)
        else:
            received = 0
            while received < _PLAN_BYTES:
                received += connection.recv_into(buffer)
            connection.sendall(b".")

    with connection:
        yield exchange


def _measure(work: Callable[[], object], times: int = 200) -> Row:
    for _ in range(20):
        work()
    took, cpu = [], time.process_time()
    for _ in range(times):
        begun = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun)
    cpu = time.process_time() - cpu
    took.sort()
    return {
        "p50_us": round(1e6 * took[times // 2], 1),
        "p90_us": round(1e6 * took[times * 9 // 10], 1),
        "cpu_us": round(1e6 * cpu / times, 1),
    }
