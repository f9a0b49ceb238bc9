"""The embedded model's files, fetched once into the user's own cache."""

from __future__ import annotations

from functools import cache

from tokenwire_service.config import ModelConfig
from tokenwire_service.text.tokenizer import Tokenizer
from tokenwire_service.weights.resolve import ResolvedModel, resolve_model


@cache
def embedded_model() -> ResolvedModel:
    """The embedded model, resolved."""
    return resolve_model(ModelConfig())


@cache
def embedded_tokenizer() -> Tokenizer:
    """Its tokenizer."""
    return Tokenizer.from_dir(embedded_model().tokenizer_dir)
