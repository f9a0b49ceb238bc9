"""Runs the application under uvicorn."""

from __future__ import annotations

import signal

import uvicorn

from tokenwire_gateway.app import create_app
from tokenwire_gateway.config import GatewayConfig
from tokenwire_gateway.observability import logs


def make_server(config: GatewayConfig) -> uvicorn.Server:
    """A server on uvloop and httptools; SIGTERM lets running requests finish within the grace period."""
    settings = uvicorn.Config(
        create_app(config),
        host=config.hostname,
        port=config.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(config.graceful_termination_timeout_s)),
    )
    return uvicorn.Server(settings)


def run(config: GatewayConfig) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is running and return."""
    logs.set_up(config.log_level, as_json=config.json_output)
    server = make_server(config)
    # uvicorn raises the signal that ended it once more; by then everything has ended well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()
