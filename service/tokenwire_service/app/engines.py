"""The engines behind the door: one, or `--replicas`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

from tokenwire_service.app.replica_shares import shares, visible_gpus
from tokenwire_service.config import Config
from tokenwire_service.engine.client import OwnedEngine
from tokenwire_service.engine.process_client import LoadCallback, Overseer, ProcessEngineClient
from tokenwire_service.engine.replicas import ReplicatedEngineClient
from tokenwire_service.parallel.identity import RankIdentity
from tokenwire_service.weights.resolved import ResolvedModel


def make_engine(
    config: Config,
    resolved: ResolvedModel,
    environ: Mapping[str, str],
    logger: logging.Logger,
    on_load: LoadCallback,
    identity: RankIdentity | None = None,
) -> OwnedEngine:
    """Not started; `identity` is rank 0's where a launcher starts the other ranks. Raises ConfigError when the machine
    has too little for all replicas."""
    frontend, num_replicas = config.frontend, config.frontend.replicas
    one = partial(
        ProcessEngineClient,
        resolved,
        config.model.dtype,
        log_level=frontend.log_level,
        json_output=frontend.json_output,
    )
    if num_replicas == 1:
        return one(config.engine, logger=logger, on_load=on_load, identity=identity)
    parts = shares(config.engine, num_replicas, environ, visible_gpus(environ))

    def replica(index: int, overseer: Overseer, on_load: LoadCallback) -> ProcessEngineClient:
        own = logger.getChild(f"replica{index}")
        part = parts[index]
        return one(part.config, logger=own, on_load=on_load, overseer=overseer, environ=part.environment)

    caching = config.engine.prefix_caching
    return ReplicatedEngineClient(num_replicas, replica, logger=logger, on_load=on_load, prefix_caching=caching)
