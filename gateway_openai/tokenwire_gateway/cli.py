"""`tokenwire-gateway`: flags and environment variables into one frozen configuration, then the server."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tokenwire_gateway.config import ConfigError, GatewayConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_DEFAULTS = GatewayConfig()
_TRACING_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@app.command()
def serve(
    target: Annotated[
        str,
        typer.Option(
            envvar="TOKENWIRE_TARGET", help="The generation service: host:port, dns:///host:port or unix:path."
        ),
    ] = _DEFAULTS.target,
    hostname: Annotated[
        str,
        typer.Option(envvar="TOKENWIRE_HOSTNAME", help="Address to bind. HOSTNAME, which containers set, is not read."),
    ] = _DEFAULTS.hostname,
    port: Annotated[int, typer.Option("--port", "-p", envvar="PORT", help="Port to bind.")] = _DEFAULTS.port,
    api_key: Annotated[
        str,
        typer.Option(
            envvar="API_KEY",
            help="Bearer token that POST routes and /v1 require; sent to the service with the gateway's own calls too. "
            "Empty: no check here, and callers' tokens are handed on for the service to judge.",
        ),
    ] = _DEFAULTS.api_key,
    payload_limit: Annotated[
        int, typer.Option(envvar="PAYLOAD_LIMIT", help="Largest body taken, in bytes.")
    ] = _DEFAULTS.payload_limit,
    max_client_batch_size: Annotated[
        int, typer.Option(envvar="MAX_CLIENT_BATCH_SIZE", help="Prompts in one /v1/completions request at most.")
    ] = _DEFAULTS.max_client_batch_size,
    request_timeout: Annotated[
        float,
        typer.Option(envvar="REQUEST_TIMEOUT", help="Seconds a request may take; 0 leaves the limit to the service."),
    ] = _DEFAULTS.request_timeout_s,
    keep_alive: Annotated[
        float,
        typer.Option(
            envvar="KEEP_ALIVE",
            help="Seconds of silence after which a stream gets a comment. A stream still queued after this long is "
            "answered 200 early, so that proxies do not give up on it; its errors are then events.",
        ),
    ] = _DEFAULTS.keep_alive_s,
    graceful_termination_timeout: Annotated[
        float,
        typer.Option(envvar="GRACEFUL_TERMINATION_TIMEOUT", help="Seconds requests may go on after SIGTERM."),
    ] = _DEFAULTS.graceful_termination_timeout_s,
    cors_allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CORS_ALLOW_ORIGIN",
            help="Origin that browsers may call from; repeat it. Default: any. 'none' allows none.",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option(envvar="TOKENWIRE_TLS", help="Speak TLS to the service.")] = _DEFAULTS.tls,
    tls_ca_path: Annotated[
        str,
        typer.Option(
            envvar="TOKENWIRE_TLS_CA_PATH", help="PEM certificates to trust, with --tls; the system's when empty."
        ),
    ] = _DEFAULTS.tls_ca_path,
    json_output: Annotated[
        bool, typer.Option(envvar="JSON_OUTPUT", help="Log one JSON object a line.")
    ] = _DEFAULTS.json_output,
    log_level: Annotated[
        str, typer.Option(envvar="LOG_LEVEL", help="debug, info, warning or error.")
    ] = _DEFAULTS.log_level,
    otlp_endpoint: Annotated[
        str,
        typer.Option(
            envvar="OTLP_ENDPOINT", help="OTLP gRPC collector for traces; the standard OTEL_ variables work too."
        ),
    ] = _DEFAULTS.otlp_endpoint,
    otlp_service_name: Annotated[
        str, typer.Option(envvar="OTLP_SERVICE_NAME", help="service.name of the traces; OTEL_SERVICE_NAME comes first.")
    ] = _DEFAULTS.otlp_service_name,
) -> None:
    """Serve OpenAI's and TGI's REST before a tokenwire.v1 gRPC service."""
    try:
        config = GatewayConfig(
            target=target,
            hostname=hostname,
            port=port,
            api_key=api_key,
            payload_limit=payload_limit,
            max_client_batch_size=max_client_batch_size,
            request_timeout_s=request_timeout,
            keep_alive_s=keep_alive,
            graceful_termination_timeout_s=graceful_termination_timeout,
            cors_allow_origin=_origins(cors_allow_origin),
            tls=tls,
            tls_ca_path=tls_ca_path,
            json_output=json_output,
            log_level=log_level.lower(),
            tracing=bool(otlp_endpoint) or any(os.environ.get(name) for name in _TRACING_VARIABLES),
            otlp_endpoint=otlp_endpoint,
            otlp_service_name=otlp_service_name,
        ).validate()
        from tokenwire_gateway.server import run

        run(config)
    except (ConfigError, OSError, ValueError) as error:
        typer.echo(f"tokenwire-gateway: {error}", err=True)
        raise typer.Exit(2) from error


def _origins(given: list[str] | None) -> tuple[str, ...]:
    if not given:
        return ("*",)
    return () if given == ["none"] else tuple(given)


def main() -> None:
    """Console entry point."""
    app()
