"""What the commands of the CLI run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

import uvloop

from tokenwire_service.app.progress import choose_progress
from tokenwire_service.app.service import Companion, Service, cache_root
from tokenwire_service.config import Config, FrontendConfig, ModelConfig
from tokenwire_service.weights.resolve import resolve_model


def run_service(config: Config, environ: Mapping[str, str], companion: Companion | None = None) -> int:
    """Serve until a signal; returns the exit code. Raises StartupError."""
    started_at = time.monotonic()

    async def live() -> int:
        return await Service(config, environ, companion, started_at).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(live())


def download_model(model: ModelConfig, environ: Mapping[str, str]) -> str:
    """Fetch a model's files; returns where its weights are. Raises StartupError."""
    progress = choose_progress(FrontendConfig(), logging.getLogger(__name__))
    resolved = resolve_model(model, progress, cache_root(environ))
    files = resolved.weight_files
    return str(files[0] if len(files) == 1 else files[0].parent)
