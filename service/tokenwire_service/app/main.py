"""What the commands of the CLI run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from tokenwire_client.event_loop import new_event_loop
from tokenwire_service.app.progress import choose_progress
from tokenwire_service.app.rank_supervisor import run_rank
from tokenwire_service.app.service import Companion, Service, cache_root
from tokenwire_service.config import Config, FrontendConfig, ModelConfig
from tokenwire_service.errors import ConfigError
from tokenwire_service.parallel.identity import RankIdentity, identity_from
from tokenwire_service.weights.resolve import resolve_model


def run_service(config: Config, environ: Mapping[str, str], companion: Companion | None = None) -> int:
    """Serve until a signal; returns the exit code. Under torchrun every rank but 0 serves rank 0 instead of callers.
    Raises StartupError."""
    started_at = time.monotonic()
    identity = identity_from(environ)
    if identity is not None:
        config = _as_rank(config, identity)
        if identity.rank > 0:
            return run_rank(config, identity, cache_root(environ))

    async def live() -> int:
        return await Service(config, environ, companion, started_at, identity).run()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(live())


def _as_rank(config: Config, identity: RankIdentity) -> Config:
    """With the number of ranks there are. Raises ConfigError for flags that go against it."""
    asked = config.engine.num_shard
    if asked not in (0, identity.size):
        raise ConfigError(
            f"--num-shard {asked}, but the launcher started {identity.size} processes (WORLD_SIZE); make them equal, "
            "or leave --num-shard out"
        )
    if config.frontend.replicas > 1:
        raise ConfigError("--replicas is for one machine without torchrun: start tokenwire itself, or leave it out")
    return replace(config, engine=replace(config.engine, num_shard=identity.size))


def download_model(model: ModelConfig, environ: Mapping[str, str]) -> str:
    """Fetch a model's files; returns where its weights are. Raises StartupError."""
    progress = choose_progress(FrontendConfig(), logging.getLogger(__name__))
    resolved = resolve_model(model, progress, cache_root(environ))
    files = resolved.weight_files
    return str(files[0] if len(files) == 1 else files[0].parent)
