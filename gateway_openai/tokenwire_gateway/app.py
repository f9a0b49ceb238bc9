"""Wires the gateway together: routes, middleware, error handlers, and the channel's life."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tokenwire_gateway.backend import Backend
from tokenwire_gateway.config import GatewayConfig
from tokenwire_gateway.errors import GatewayError, Problem
from tokenwire_gateway.facts import facts_of
from tokenwire_gateway.middleware import Around, render
from tokenwire_gateway.observability.metrics import Metrics
from tokenwire_gateway.observability.tracing import open_tracing
from tokenwire_gateway.openai.routes import openai_routes
from tokenwire_gateway.openai.schemas import ChatCompletionRequest, CompletionRequest
from tokenwire_gateway.openapi import describe
from tokenwire_gateway.serving import Gateway, gateway_of
from tokenwire_gateway.tgi.routes import tgi_routes
from tokenwire_gateway.tgi.schemas import CompatGenerateRequest, GenerateRequest, TokenizeRequest

_SHAPES = (ChatCompletionRequest, CompletionRequest, GenerateRequest, CompatGenerateRequest, TokenizeRequest)
_EXPOSED = ("x-request-id", "retry-after", "x-compute-type", "x-prompt-tokens", "x-generated-tokens")


def version() -> str:
    """Version of the distribution."""
    try:
        return importlib.metadata.version("tokenwire-gateway-openai")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def create_app(config: GatewayConfig) -> FastAPI:
    """The ASGI application. Its channel opens when the server starts and closes when it stops."""
    metrics, tracing = Metrics(), open_tracing(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway = app.state.gateway = Gateway(config, Backend(config))
        try:
            yield
        finally:
            await gateway.backend.close()
            tracing.close()

    app = FastAPI(
        title="Tokenwire gateway",
        version=version(),
        description="OpenAI's and TGI's REST over tokenwire.v1.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.metrics = metrics
    app.include_router(openai_routes())
    app.include_router(tgi_routes())
    for path in ("/", "/health", "/ping"):
        app.add_api_route(path, health, methods=["GET"], tags=["Operation"])
        app.add_api_route(path, health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", metrics_page, methods=["GET"], tags=["Operation"])
    app.add_api_route("/api-doc/openapi.json", openapi_alias, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(GatewayError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    describe(app, _SHAPES)
    app.add_middleware(Around, api_key=config.api_key, metrics=metrics, tracing=tracing)
    _add_cors(app, config)
    return app


async def health(request: Request) -> Response:
    """200 while the service answers requests, 503 while it loads, drains or is away."""
    if await gateway_of(request).backend.is_serving():
        return Response()
    return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, status_code=503)


async def metrics_page(request: Request) -> Response:
    """Prometheus metrics of the gateway and the load of the service."""
    try:
        load = await gateway_of(request).backend.load()
    except GatewayError:
        load = None
    metrics = request.app.state.metrics
    assert isinstance(metrics, Metrics)
    return Response(metrics.page(load), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi_alias(request: Request) -> Response:
    """The description, where TGI has it."""
    return JSONResponse(request.app.openapi())


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    facts = facts_of(request.scope)
    facts.failure = error.problem.reason
    return render(error.problem, request.url.path, facts.names)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            problem = Problem(404, "NOT_FOUND", f"{request.method} {path[:200]}: no such route; see /docs.")
        case 405:
            allowed = dict(error.headers or {})
            problem = Problem(
                405, "METHOD_NOT_ALLOWED", f"{path[:200]} does not take {request.method}.", headers=allowed
            )
        case status:
            problem = Problem(status, "HTTP_ERROR", str(error.detail))
    return render(problem, path)


def _add_cors(app: FastAPI, config: GatewayConfig) -> None:
    if not config.cors_allow_origin:
        return
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(config.cors_allow_origin),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=list(_EXPOSED),
    )
