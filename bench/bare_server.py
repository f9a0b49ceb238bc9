"""What grpc.aio itself costs: a server that writes ready bytes to every stream at each step, and does nothing else.

`python -m bench.bare_server STEP_S`; prints its port as a line, and ends with stdin.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop

METHOD = "/bare.Bare/Stream"
# As long as the event of a usual token.
MESSAGE = bytes(14)


class Steps:
    """Wakes every stream at a fixed rate."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    async def run(self, step_s: float) -> None:
        while True:
            await asyncio.sleep(step_s)
            step, self._next = self._next, asyncio.Event()
            step.set()

    async def stream(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        while True:
            await self._next.wait()
            await context.write(MESSAGE)


async def serve(step_s: float) -> None:
    """Serve until stdin ends."""
    steps, server = Steps(), grpc.aio.server()
    service, method = METHOD[1:].split("/")
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {method: grpc.unary_stream_rpc_method_handler(steps.stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stepping = asyncio.ensure_future(steps.run(step_s))
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    stepping.cancel()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1])))
