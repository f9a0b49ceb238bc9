"""The engine process: `python -m tokenwire_service.engine.process FD LOG_LEVEL [json]`, started by ProcessEngineClient.

FD is its end of a socket pair. It loads what the first message says, then steps until a stop message, or until the
other end closes. Signals are the frontend's business: this process outlives them, so that the frontend can drain.
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.logging import configure_logging
from tokenwire_service.engine.client import EngineInfo
from tokenwire_service.engine.codec import configure_from_pb, info_to_pb, place_from_pb
from tokenwire_service.engine.engine import Engine
from tokenwire_service.engine.inbox import Outbox, SocketInbox
from tokenwire_service.engine.rank_group import RankGroup, local_identity
from tokenwire_service.engine.startup_failure import failure_to_pb
from tokenwire_service.engine.vigil import step_timeout_s
from tokenwire_service.errors import StartupError
from tokenwire_service.runner.executor import Executor, LocalExecutor, ShardedExecutor
from tokenwire_service.runner.machine import choose_device, choose_num_shards
from tokenwire_service.runner.threaded_executor import ThreadedExecutor
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.scheduler import Scheduler
from tokenwire_service.weights.progress import CallbackTask, ProgressTask

_SIGN_S = 1.0
"""How often this process says that it lives."""


def main(arguments: list[str]) -> int:
    """The exit status: 0 when asked to stop, 1 when loading failed or going on was pointless."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    descriptor, log_level, *log_format = arguments[1:]
    configure_logging(log_level, json_output=log_format == ["json"])
    logger = logging.getLogger("tokenwire_service.engine")
    connection = socket.socket(fileno=int(descriptor))
    inbox, outbox = SocketInbox(connection, logger), Outbox(connection)
    pulse = _Pulse(outbox)
    configuration = inbox.configuration()
    if configuration is None:
        return 0
    loaded = _load(configuration, outbox, arguments[2:], logger)
    if loaded is None:
        return 1
    # What loading left behind lives as long as the process: no collection need look at it again.
    gc.collect()
    gc.freeze()
    pulse.work_done = lambda: loaded.worker.work_done
    outbox.send(pb.EngineMessage(ready=info_to_pb(loaded.info)))
    executor = loaded.make_executor(configuration.limits.step_timeout_s)
    try:
        Engine(loaded.scheduler, executor, inbox, outbox.publish, logger=logger).run()
    except Exception:
        logger.critical("the engine cannot go on", exc_info=True)
        if loaded.ranks is not None:
            loaded.ranks.fail("cannot go on")
        return 1
    executor.close()
    if loaded.ranks is not None:
        loaded.ranks.close()
    return 0


@dataclass(frozen=True, slots=True)
class _Loaded:
    worker: Worker
    scheduler: Scheduler
    info: EngineInfo
    ranks: RankGroup | None
    """The others, if there are any."""

    def make_executor(self, asked_timeout_s: float) -> Executor:
        local = LocalExecutor(self.worker)
        if self.ranks is None:
            return local
        threaded = local if local.runs_ahead else ThreadedExecutor(self.worker)
        executor = ShardedExecutor(threaded, self.ranks.plans, self.ranks.fail)
        # A little before the frontend's patience ends.
        timeout_s = 0.9 * step_timeout_s(asked_timeout_s, self.info)
        self.ranks.watch(lambda: executor.waits_for, lambda: self.worker.work_done, timeout_s)
        return executor


def _load(
    configuration: pb.Configure, outbox: Outbox, log_arguments: Sequence[str], logger: logging.Logger
) -> _Loaded | None:
    """None when it failed, which the frontend was told then."""
    ranks: RankGroup | None = None

    def report(failure: pb.StartupFailure) -> None:
        outbox.send(pb.EngineMessage(startup_failure=failure))

    try:
        ranks = _open_group(configuration, report, logger)
        if ranks is not None:
            ranks.form(configuration, log_arguments, spawn=not configuration.HasField("place"))
        return _load_model(configuration, outbox, ranks)
    except StartupError as error:
        failure = failure_to_pb(error)
    except Exception as error:
        if ranks is not None:
            ranks.let_others_speak()
        logger.exception("loading failed")
        failure = failure_to_pb(error)
    report(failure)
    if ranks is not None:
        ranks.close(refused=f"rank 0 cannot start: {failure.message}")
    return None


def _open_group(
    configuration: pb.Configure, report: Callable[[pb.StartupFailure], None], logger: logging.Logger
) -> RankGroup | None:
    """None where this is the only rank; `configuration` says how many there are afterwards. Raises StartupError."""
    if configuration.HasField("place"):
        identity = place_from_pb(configuration.place)
    else:
        identity = local_identity(choose_num_shards(configuration.limits.num_shard, configuration.limits.device))
    configuration.limits.num_shard = identity.size
    return None if identity.size == 1 else RankGroup(identity, report, logger)


def _load_model(configuration: pb.Configure, outbox: Outbox, ranks: RankGroup | None) -> _Loaded:
    """Raises StartupError, and whatever torch does."""
    resolved, dtype, config = configure_from_pb(configuration)
    progress = _SocketProgress(outbox)
    if ranks is None:
        worker = Worker(resolved, dtype, config, progress)
    else:
        group = ranks.join(choose_device(config.device, ranks.local.rank))
        worker = Worker(resolved, dtype, config, progress, group, ranks.local)
    limits = replace(
        worker.sizes.scheduler_limits(prefix_caching=config.prefix_caching),
        num_draft_tokens=config.speculate,
        draft_max_batch=config.speculate_max_batch,
        max_decode_slowdown=config.max_decode_slowdown,
        num_layers=worker.num_layers_apart,
    )
    return _Loaded(worker, Scheduler(limits, model_name=resolved.model_id), _info(worker, config), ranks)


class _Pulse:
    """Says each second that this process lives, from now on, and whether it computes once `work_done` is told."""

    def __init__(self, outbox: Outbox) -> None:
        self.work_done: Callable[[], int] = int
        self._outbox = outbox
        threading.Thread(target=self._beat, name="alive", daemon=True).start()

    def _beat(self) -> None:
        while True:
            self._outbox.send(pb.EngineMessage(alive=pb.Alive(work_done=self.work_done())))
            time.sleep(_SIGN_S)


def _info(worker: Worker, config: EngineConfig) -> EngineInfo:
    sizes, facts = worker.sizes, worker.facts
    return EngineInfo(
        dtype=facts.dtype,
        device=facts.device,
        num_shards=config.num_shard,
        num_blocks=sizes.num_blocks,
        block_size=sizes.block_size,
        max_total_tokens=sizes.max_total_tokens,
        max_batch_size=sizes.max_num_sequences,
        max_batch_prefill_tokens=sizes.max_batch_tokens,
        num_parameters=facts.num_parameters,
        quantization="" if config.quantize == "none" else config.quantize,
        attention_backend=facts.attention_backend,
    )


class _SocketProgress:
    """Progress of loading, told to the frontend at each whole percent."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    @contextmanager
    def task(self, label: str, total: int = 0, unit: str = "B") -> Iterator[ProgressTask]:
        told = -1

        def report(done: int, total: int) -> None:
            nonlocal told
            percent = 100 * done // total if total else 0
            if percent != told:
                told = percent
                self._send(label, percent / 100)

        self._send(label, 0.0)
        yield CallbackTask(report, total)

    def _send(self, phase: str, fraction: float) -> None:
        self._outbox.send(pb.EngineMessage(load_progress=pb.LoadProgress(phase=phase, fraction=fraction)))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
