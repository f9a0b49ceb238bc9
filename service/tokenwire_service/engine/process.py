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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.logging import configure_logging
from tokenwire_service.engine.client import EngineInfo
from tokenwire_service.engine.codec import configure_from_pb, info_to_pb
from tokenwire_service.engine.engine import Engine
from tokenwire_service.engine.inbox import Outbox, SocketInbox
from tokenwire_service.errors import StartupError
from tokenwire_service.runner.executor import LocalExecutor
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.scheduler import Scheduler
from tokenwire_service.weights.progress import CallbackTask, ProgressTask


def main(arguments: list[str]) -> int:
    """The exit status: 0 when asked to stop, 1 when loading failed or going on was pointless."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    descriptor, log_level, *log_format = arguments[1:]
    configure_logging(log_level, json_output=log_format == ["json"])
    logger = logging.getLogger("tokenwire_service.engine")
    connection = socket.socket(fileno=int(descriptor))
    inbox, outbox = SocketInbox(connection, logger), Outbox(connection)
    configuration = inbox.configuration()
    if configuration is None:
        return 0
    loaded = _load(configuration, outbox, logger)
    if loaded is None:
        return 1
    worker, scheduler, info = loaded
    # What loading left behind lives as long as the process: no collection need look at it again.
    gc.collect()
    gc.freeze()
    outbox.send(pb.EngineMessage(ready=info_to_pb(info)))
    executor = LocalExecutor(worker)
    try:
        Engine(scheduler, executor, inbox, outbox.publish, logger=logger).run()
    except Exception:
        logger.critical("the engine cannot go on", exc_info=True)
        return 1
    finally:
        executor.close()
    return 0


def _load(
    configuration: pb.Configure, outbox: Outbox, logger: logging.Logger
) -> tuple[Worker, Scheduler, EngineInfo] | None:
    """None when it failed, which the frontend was told then."""
    try:
        resolved, dtype, config = configure_from_pb(configuration)
        worker = Worker(resolved, dtype, config, _SocketProgress(outbox))
        limits = replace(
            worker.sizes.scheduler_limits(prefix_caching=config.prefix_caching),
            num_draft_tokens=config.speculate,
            draft_max_batch=config.speculate_max_batch,
            max_decode_slowdown=config.max_decode_slowdown,
        )
        return worker, Scheduler(limits, model_name=resolved.model_id), _info(worker, config)
    except StartupError as error:
        failure = pb.StartupFailure(kind=type(error).__name__, message=str(error))
    except Exception as error:
        logger.exception("loading failed")
        first_line = (str(error).splitlines() or [""])[0][:300]
        failure = pb.StartupFailure(
            kind="StartupError", message=f"loading the model failed: {type(error).__name__}: {first_line}"
        )
    outbox.send(pb.EngineMessage(startup_failure=failure))
    return None


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
