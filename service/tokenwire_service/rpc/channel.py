"""Ports of the server: channel arguments, addresses, TLS."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from pathlib import Path

import grpc

from tokenwire_service.config import FrontendConfig
from tokenwire_service.errors import StartupError

MIN_CONCURRENT_STREAMS = 1024
MAX_ARGUMENT = 2**31 - 1


def channel_options(config: FrontendConfig) -> list[tuple[str, int]]:
    """C-core channel arguments of a listener. Unknown keys would be ignored silently: tests show that these work."""
    grace_s = max(900.0, config.max_time_limit_s + 60.0)
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", max(config.max_message_bytes, 32 * 1024 * 1024)),
        ("grpc.max_concurrent_streams", _argument(max(MIN_CONCURRENT_STREAMS, config.max_concurrent_requests + 64))),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.absolute_max_metadata_size", 32 * 1024),
        ("grpc.max_connection_age_ms", 1_800_000),
        ("grpc.max_connection_age_grace_ms", _argument(grace_s * 1000)),
        ("grpc.max_connection_idle_ms", 900_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]


def _argument(value: float) -> int:
    return int(min(value, MAX_ARGUMENT))


def server_credentials(config: FrontendConfig) -> grpc.ServerCredentials | None:
    """TLS as configured, or None. Raises StartupError naming the flag whose file cannot be used."""
    if not config.tls_cert_path:
        return None
    key = _read(config.tls_key_path, "--tls-key-path")
    chain = _read(config.tls_cert_path, "--tls-cert-path")
    ca = _read(config.tls_client_ca_path, "--tls-client-ca-path") if config.tls_client_ca_path else None
    _check_pem(config)
    return grpc.ssl_server_credentials([(key, chain)], root_certificates=ca, require_client_auth=ca is not None)


def _check_pem(config: FrontendConfig) -> None:
    """gRPC would only say that the port cannot be added."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would ask the terminal for its password.
        context.load_cert_chain(config.tls_cert_path, config.tls_key_path, password="")
    except (ssl.SSLError, ValueError):
        raise StartupError(
            f"--tls-cert-path {config.tls_cert_path}, --tls-key-path {config.tls_key_path}: "
            "not a PEM certificate chain and its unencrypted PEM private key"
        ) from None
    if config.tls_client_ca_path:
        try:
            context.load_verify_locations(config.tls_client_ca_path)
        except ssl.SSLError:
            raise StartupError(f"--tls-client-ca-path {config.tls_client_ca_path}: not PEM certificates") from None


def bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None, flag: str) -> int:
    """Bind and return the port (chosen by the system for 0). Raises StartupError with cause and remedy.

    `flag` is the one that chooses the port.
    """
    address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
    _try_address(host.strip("[]"), port, address, flag)
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise StartupError(f"cannot listen on {address}: the port is taken; choose another with {flag}")
    return bound


def _try_address(host: str, port: int, address: str, flag: str) -> None:
    """Learn why one cannot listen there, which gRPC keeps to itself. Raises StartupError."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except socket.gaierror as error:
        raise StartupError(f"cannot listen on {address}: {error.strerror}; choose another with --hostname") from None
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        remedy = "--hostname" if error.errno == errno.EADDRNOTAVAIL else flag
        raise StartupError(f"cannot listen on {address}: {cause}; choose another with {remedy}") from None


def _read(path: str, flag: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StartupError(f"{flag} {path}: {error.strerror}") from None
