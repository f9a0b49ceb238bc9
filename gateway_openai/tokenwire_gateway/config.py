"""The one frozen configuration of the gateway: parsed once by the CLI, passed down."""

from __future__ import annotations

from dataclasses import dataclass

LOG_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """A flag or environment variable is wrong; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where the gateway listens, what it stands before, what it takes. Times in seconds, sizes in bytes."""

    target: str = "localhost:50051"
    hostname: str = "0.0.0.0"
    port: int = 8080
    api_key: str = ""
    payload_limit: int = 2_000_000
    max_client_batch_size: int = 32
    request_timeout_s: float = 0.0
    keep_alive_s: float = 15.0
    graceful_termination_timeout_s: float = 90.0
    cors_allow_origin: tuple[str, ...] = ("*",)
    tls_ca_path: str = ""
    tls: bool = False
    json_output: bool = False
    log_level: str = "info"
    tracing: bool = False
    otlp_endpoint: str = ""
    otlp_service_name: str = "tokenwire-gateway"

    def validate(self) -> GatewayConfig:
        """Check ranges. Raises ConfigError naming the flag."""
        _require(bool(self.target), "--target is empty; name the gRPC service as host:port")
        _require(0 <= self.port <= 65535, "--port must be in 0..65535")
        _require(self.payload_limit >= 1, "--payload-limit must be >= 1")
        _require(self.max_client_batch_size >= 1, "--max-client-batch-size must be >= 1")
        _require(self.request_timeout_s >= 0, "--request-timeout must be >= 0 (0 leaves the limit to the service)")
        _require(self.keep_alive_s > 0, "--keep-alive must be > 0")
        _require(self.graceful_termination_timeout_s >= 0, "--graceful-termination-timeout must be >= 0")
        _require(self.api_key.isascii() and self.api_key.isprintable(), "--api-key must be printable ASCII")
        _require(self.log_level in LOG_LEVELS, f"--log-level must be one of {', '.join(LOG_LEVELS)}")
        _require(self.tls or not self.tls_ca_path, "--tls-ca-path needs --tls")
        return self


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
