"""Runs the application under uvicorn."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket

import uvicorn

from tokenwire_client.event_loop import new_event_loop
from tokenwire_gateway.app import create_app
from tokenwire_gateway.config import GatewayConfig
from tokenwire_gateway.observability import logs
from tokenwire_gateway.sse import direct

_log = logging.getLogger("tokenwire_gateway")


class Server(uvicorn.Server):
    """Says in one line where it listens and what it stands before."""

    def __init__(self, settings: uvicorn.Config, target: str) -> None:
        super().__init__(settings)
        self._target = target

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind the port."""
        await super().startup(sockets)
        # What is there by now stays: no collection need look at it again.
        gc.collect()
        gc.freeze()
        if self.started:
            _log.info("REST on %s:%d for %s", self.config.host, self.config.port, self._target)


def make_server(config: GatewayConfig) -> uvicorn.Server:
    """A server on httptools; SIGTERM lets running requests finish within the grace period."""
    settings = uvicorn.Config(
        direct(create_app(config)),
        host=config.hostname,
        port=config.port,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(config.graceful_termination_timeout_s)),
    )
    return Server(settings, config.target)


def run(config: GatewayConfig) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is running and return."""
    logs.set_up(config.log_level, as_json=config.json_output)
    server = make_server(config)
    # uvicorn raises the signal that ended it once more; by then everything has ended well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(server.serve())
