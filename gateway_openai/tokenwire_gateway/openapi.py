"""/openapi.json: the routes read their bodies themselves, so their shapes are added here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"


def takes(shape: type[BaseModel]) -> dict[str, Any]:
    """Says that a route takes a JSON body of `shape`."""
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=shape.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI, shapes: Sequence[type[BaseModel]]) -> None:
    """Make `app` describe its routes with the schemas of `shapes`."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, models = models_json_schema([(shape, "validation") for shape in shapes], ref_template=_REFERENCE)
            found.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]
