"""Ports of the server: channel arguments, addresses, TLS."""

from __future__ import annotations

from pathlib import Path

import grpc

from tokenwire_service.config import FrontendConfig
from tokenwire_service.errors import StartupError

MIN_CONCURRENT_STREAMS = 1024


def channel_options(config: FrontendConfig) -> list[tuple[str, int]]:
    """C-core channel arguments of a listener. Unknown keys would be ignored silently: tests show that these work."""
    grace_s = max(900.0, config.max_time_limit_s + 60.0)
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", max(config.max_message_bytes, 32 * 1024 * 1024)),
        ("grpc.max_concurrent_streams", max(MIN_CONCURRENT_STREAMS, config.max_concurrent_requests + 64)),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.absolute_max_metadata_size", 32 * 1024),
        ("grpc.max_connection_age_ms", 1_800_000),
        ("grpc.max_connection_age_grace_ms", int(grace_s * 1000)),
        ("grpc.max_connection_idle_ms", 900_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]


def server_credentials(config: FrontendConfig) -> grpc.ServerCredentials | None:
    """TLS as configured, or None. Raises StartupError naming the flag whose file cannot be read."""
    if not config.tls_cert_path:
        return None
    key = _read(config.tls_key_path, "--tls-key-path")
    chain = _read(config.tls_cert_path, "--tls-cert-path")
    ca = _read(config.tls_client_ca_path, "--tls-client-ca-path") if config.tls_client_ca_path else None
    return grpc.ssl_server_credentials([(key, chain)], root_certificates=ca, require_client_auth=ca is not None)


def bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None, flag: str) -> int:
    """Bind and return the port (chosen by the system for 0). Raises StartupError naming the port and the remedy."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        tls = "" if credentials is None else ", or the TLS key and certificate do not match"
        raise StartupError(
            f"cannot listen on {address}: the port is taken or the address is not this machine's{tls}; "
            f"choose another with {flag}"
        )
    return bound


def _read(path: str, flag: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StartupError(f"{flag} {path}: {error.strerror}") from None
