"""`tokenwire launch`: the service in this process, the REST gateway as a child of it.

The gateway is another distribution and is never imported. It lives in a session of its own, so that a terminal's Ctrl-C
reaches only this process, which ends the two in order: the gateway first, while the service still answers it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tokenwire_service.config import Config, FrontendConfig, flag
from tokenwire_service.errors import ConfigError, StartupError

log = logging.getLogger(__name__)

MODULE = "tokenwire_gateway"
# A child whose parent is killed is told to end too (Linux), so that no gateway is left holding its port.
BOOTSTRAP = """\
import runpy, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
# The gateway is told these by its flags, or, the key, anew.
OWN_VARIABLES = frozenset({"API_KEY", "OTLP_SERVICE_NAME", "TOKENWIRE_TLS", "TOKENWIRE_TLS_CA_PATH"})
GRACE_TO_EXIT_S = 5.0
ANY_ADDRESS = frozenset({"0.0.0.0", "::", "[::]"})


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The REST gateway of `tokenwire launch`."""

    port: int = flag(8080, "REST port: OpenAI's API and TGI's.", aliases=("-p",))
    max_client_batch_size: int = flag(32, "Prompts in one REST request at most.")
    cors_allow_origin: tuple[str, ...] = flag(
        (), "Origin browsers may call from; repeat for more. Any when empty, 'none' allows none."
    )

    def validate(self, frontend: FrontendConfig) -> GatewayConfig:
        """Check ranges and what goes together. Raises ConfigError naming the flag."""
        if not 1 <= self.port <= 65535:
            raise ConfigError("--port must be in 1..65535")
        if self.port == frontend.port:
            raise ConfigError(f"--port and --grpc-port are both {self.port}; REST and gRPC need a port each")
        if self.max_client_batch_size < 1:
            raise ConfigError("--max-client-batch-size must be >= 1")
        if frontend.tls_client_ca_path:
            raise ConfigError(
                "--tls-client-ca-path: the gateway has no client certificate; start tokenwire serve and a gateway apart"
            )
        return self


def gateway_arguments(gateway: GatewayConfig, frontend: FrontendConfig, grpc_port: int) -> list[str]:
    """The gateway's command line."""
    wildcard = "localhost" if frontend.tls_cert_path else "127.0.0.1"
    host = wildcard if frontend.hostname in ANY_ADDRESS else frontend.hostname
    address = f"[{host}]" if ":" in host and not host.startswith("[") else host
    arguments = [
        f"--target={address}:{grpc_port}",
        f"--hostname={frontend.hostname}",
        f"--port={gateway.port}",
        f"--max-client-batch-size={gateway.max_client_batch_size}",
        f"--graceful-termination-timeout={frontend.graceful_termination_timeout_s:g}",
        f"--log-level={frontend.log_level}",
        *(f"--cors-allow-origin={origin}" for origin in gateway.cors_allow_origin),
    ]
    if frontend.max_message_bytes != FrontendConfig().max_message_bytes:
        arguments.append(f"--payload-limit={frontend.max_message_bytes}")
    if frontend.json_output:
        arguments.append("--json-output")
    arguments.append(f"--otlp-service-name={frontend.otlp_service_name}-gateway")
    if frontend.otlp_endpoint:
        arguments.append(f"--otlp-endpoint={frontend.otlp_endpoint}")
    if frontend.tls_cert_path:
        arguments += ["--tls", f"--tls-ca-path={frontend.tls_cert_path}"]
    return arguments


class Gateway:
    """The child process. `app.service.Service` starts it, watches it and ends it."""

    def __init__(self, config: GatewayConfig, frontend: FrontendConfig, environ: Mapping[str, str]) -> None:
        self._config = config
        self._frontend = frontend
        self._environ = {name: value for name, value in environ.items() if name not in OWN_VARIABLES}
        if frontend.api_key:
            self._environ["API_KEY"] = frontend.api_key
        self._process: asyncio.subprocess.Process | None = None

    @property
    def port(self) -> int:
        return self._config.port

    async def start(self, grpc_port: int) -> None:
        """Start the process; it waits for the service by itself. Raises StartupError when it is not installed."""
        if importlib.util.find_spec(MODULE) is None:
            raise StartupError(
                "the REST gateway is not installed; pip install tokenwire-gateway-openai, "
                "or start the gRPC service alone: tokenwire serve"
            )
        arguments = gateway_arguments(self._config, self._frontend, grpc_port)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            BOOTSTRAP,
            MODULE,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            env=self._environ,
            start_new_session=True,
        )

    async def listening(self) -> None:
        """Return once the REST port takes connections."""
        host = "127.0.0.1" if self._frontend.hostname in ANY_ADDRESS else self._frontend.hostname
        while True:
            try:
                _, writer = await asyncio.open_connection(host.strip("[]"), self._config.port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    async def ended(self) -> int:
        """Wait for the process's end and return its exit code."""
        if self._process is None:
            never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            return await never
        return await self._process.wait()

    async def stop(self) -> None:
        """Let it finish what it answers; then, past its grace, end it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._frontend.graceful_termination_timeout_s + GRACE_TO_EXIT_S):
                await process.wait()
        except TimeoutError:
            log.warning("the gateway did not end in time and is killed")
            process.kill()
            await process.wait()

    async def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def launch(config: Config, gateway: GatewayConfig, environ: Mapping[str, str]) -> int:
    """Run both until a signal or the end of either; returns the exit code. Raises StartupError."""
    from tokenwire_service.app.main import run_service

    return run_service(config, environ, Gateway(gateway, config.frontend, environ))
