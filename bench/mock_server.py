"""The service over a mock engine, in a process of its own: `python -m bench.mock_server`; prints its port as a line.

Everything but the engine is what `tokenwire serve` runs: server, admission, tokenizer, telemetry.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time

from bench import mock_engine
from tokenwire_client.event_loop import new_event_loop
from tokenwire_service.app.served_model import load_text_parts, served_model
from tokenwire_service.app.service import batch_limits
from tokenwire_service.config import Config, EngineConfig, FrontendConfig, ModelConfig
from tokenwire_service.engine.process_client import ProcessEngineClient
from tokenwire_service.observability.recorder import Recorder
from tokenwire_service.rpc.server import RpcServer
from tokenwire_service.rpc.serving import Serving
from tokenwire_service.weights.resolve import resolve_model

# The watch would take a step every few seconds for a hang.
ENGINE = EngineConfig(step_timeout_s=600.0)


async def serve() -> None:
    """Serve until stdin ends."""
    config = Config(ModelConfig(), ENGINE, FrontendConfig(hostname="127.0.0.1", port=0, max_concurrent_requests=4096))
    resolved = resolve_model(config.model)
    engine = ProcessEngineClient(resolved, config.model.dtype, config.engine, module=mock_engine.__name__)
    serving, recorder = Serving(), Recorder()
    server = RpcServer(config.frontend, serving, recorder, "mock")
    await asyncio.gather(server.start(), engine.start())
    model = served_model(config, resolved, load_text_parts(resolved), engine.info, time.time())
    recorder.attach_engine(lambda: (engine.stats, engine.state))
    serving.set_engine(engine, batch_limits(engine.info))
    serving.set_model(model)
    # As the service does once it is ready.
    gc.collect()
    gc.freeze()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()
    await engine.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())
