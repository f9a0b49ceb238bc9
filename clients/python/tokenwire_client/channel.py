"""How a channel is opened: options, retries by service config, TLS."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# Requests up to this size are kept to be sent again; larger ones get one attempt.
RETRY_BUFFER_BYTES = 4 * 1024 * 1024
# gRPC caps attempts at five whatever the service config says.
MAX_ATTEMPTS = 5
RETRIED_SERVICES = (
    "tokenwire.v1.TextGenerationService",
    "tokenwire.v1.TokenizationService",
    "tokenwire.v1.ModelService",
)

ChannelOption = tuple[str, str | int | bytes]


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS of a channel. Each of `ca`, `cert` and `key` is PEM: the bytes themselves, or the path of a file.

    ca: certificates to trust; None takes gRPC's own roots.
    cert, key: the client's certificate chain and private key, for mutual TLS; both or neither.
    server_name: name expected in the server's certificate, when it is not the target's.
    """

    ca: bytes | str | Path | None = None
    cert: bytes | str | Path | None = None
    key: bytes | str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls: give cert and key together, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files and makes channel credentials. Raises OSError when a file cannot be read."""
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """Everything a channel is opened with; `options` override the defaults by key."""

    target: str
    tls: TlsConfig | None
    max_retries: int
    options: tuple[ChannelOption, ...] = ()

    def __post_init__(self) -> None:
        scheme = self.target.partition("://")[0]
        if not self.target or scheme in {"http", "https", "grpc", "grpcs"}:
            raise ValueError(
                f"target: {self.target!r} is not host:port, dns:///host:port or unix:path; TLS is chosen by tls=True"
            )
        if self.max_retries < 0:
            raise ValueError(f"max_retries: {self.max_retries} is negative; 0 turns retries off")

    def merged_options(self) -> list[ChannelOption]:
        """The channel options in use."""
        merged: dict[str, str | int | bytes] = dict(_defaults(self.max_retries))
        if self.tls is not None and self.tls.server_name is not None:
            merged["grpc.ssl_target_name_override"] = self.tls.server_name
        merged.update(self.options)
        return list(merged.items())


def tls_config(tls: bool | TlsConfig) -> TlsConfig | None:
    """The TLS meant by a client's `tls` argument; None for plaintext."""
    if isinstance(tls, TlsConfig):
        return tls
    return TlsConfig() if tls else None


def service_config(max_retries: int) -> str:
    """gRPC's service config as JSON: spread over all addresses, retry UNAVAILABLE before the response begins."""
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if max_retries > 0:
        config["retryThrottling"] = {"maxTokens": 10, "tokenRatio": 0.1}
        config["methodConfig"] = [
            {
                "name": [{"service": service} for service in RETRIED_SERVICES],
                "retryPolicy": {
                    "maxAttempts": min(MAX_ATTEMPTS, max_retries + 1),
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return json.dumps(config)


def _defaults(max_retries: int) -> Sequence[ChannelOption]:
    return (
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_retries", 1),
        ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
        ("grpc.service_config", service_config(max_retries)),
        ("grpc.primary_user_agent", f"tokenwire-client-python/{_version()}"),
    )


def _version() -> str:
    try:
        return importlib.metadata.version("tokenwire-client")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _pem(source: bytes | str | Path | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    return Path(source).read_bytes()
