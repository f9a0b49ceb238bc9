"""What the operator sees when everything serves: where, what, and lines to paste."""

from __future__ import annotations

import json

from tokenwire_service.config import FrontendConfig
from tokenwire_service.engine.client import EngineInfo
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.server import ADMIN_HOST

ANY_ADDRESS = frozenset({"0.0.0.0", "::", "[::]"})


def address(hostname: str, port: int) -> str:
    """`host:port` a client on this machine can use."""
    host = "localhost" if hostname in ANY_ADDRESS else hostname
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def banner(
    frontend: FrontendConfig,
    model: ServedModel,
    engine: EngineInfo,
    version: str,
    grpc_port: int,
    rest_port: int | None,
    ready_s: float,
) -> str:
    """Several lines of plain text."""
    cached = engine.num_blocks * engine.block_size
    device = engine.device if engine.num_shards == 1 else f"{engine.num_shards} x {engine.device}"
    grpc = address(frontend.hostname, grpc_port)
    lines = [
        f"Tokenwire {version} is ready after {ready_s:.1f} s",
        f"  model    {model.name} ({engine.dtype} on {device}, {cached:,} tokens of KV cache)",
        f"  gRPC     {grpc}",
    ]
    if rest_port is not None:
        lines.append(f"  REST     http://{address(frontend.hostname, rest_port)}")
    if frontend.admin_port:
        lines.append(f"  admin    {address(ADMIN_HOST, frontend.admin_port)}")
    if frontend.prometheus_port:
        lines.append(f"  metrics  http://{address(frontend.prometheus_hostname, frontend.prometheus_port)}/metrics")
    paste = _rest_line(frontend, rest_port) if rest_port is not None else _grpc_line(frontend, model, grpc)
    return "\n".join([*lines, "", "Try it:", f"  {paste}", ""])


def _rest_line(frontend: FrontendConfig, port: int) -> str:
    body = {"messages": [{"role": "user", "content": "What is gRPC?"}], "max_tokens": 64, "stream": True}
    key = " -H 'Authorization: Bearer $API_KEY'".replace("'", '"') if frontend.api_key else ""
    url = f"http://{address(frontend.hostname, port)}/v1/chat/completions"
    return f"curl -N {url} -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"


def _grpc_line(frontend: FrontendConfig, model: ServedModel, target: str) -> str:
    transport = "" if frontend.tls_cert_path else " -plaintext"
    key = ' -H "authorization: Bearer $API_KEY"' if frontend.api_key else ""
    body: dict[str, object] = {"stopping": {"max_tokens": 64}}
    if model.chat_template is None:
        method, body["text"] = "GenerateStream", "gRPC is"
    else:
        method, body["messages"] = "ChatStream", [{"role": "ROLE_USER", "content": [{"text": "What is gRPC?"}]}]
    return f"grpcurl{transport}{key} -d '{json.dumps(body)}' {target} tokenwire.v1.TextGenerationService/{method}"
