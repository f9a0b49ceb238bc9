"""`--model-id` to files on this machine. Imports no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tokenwire_service.config import EMBEDDED_MODEL_ID, ModelConfig
from tokenwire_service.errors import ConfigError, ModelResolutionError
from tokenwire_service.weights.directory import resolve_directory
from tokenwire_service.weights.embedded import GGUF_SHA256, embedded_gguf
from tokenwire_service.weights.gguf_model import resolve_gguf
from tokenwire_service.weights.json_files import read_json, read_template, templates_of
from tokenwire_service.weights.progress import Progress, SilentProgress
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel

__all__ = ["GenerationDefaults", "ModelKind", "ResolvedModel", "default_cache_root", "resolve_model"]


def default_cache_root() -> Path:
    """~/.cache/tokenwire; the CLI passes $XDG_CACHE_HOME/tokenwire where that is set."""
    return Path("~/.cache/tokenwire").expanduser()


def resolve_model(
    model: ModelConfig,
    progress: Progress | None = None,
    cache_root: Path | None = None,
    *,
    endpoint: str | None = None,
) -> ResolvedModel:
    """Find, and where needed fetch, the model `model.model_id` names.

    In order: the embedded model, a directory, a .gguf file, a Hub id. `cache_root` holds the embedded model and what is
    derived from GGUF files; Hub downloads go to huggingface_hub's own cache. `endpoint` is another Hub than the public
    one. Raises ModelResolutionError, WeightsError, UnsupportedModelError or ConfigError, each one line with the remedy.
    """
    resolved = _resolve(model, progress or SilentProgress(), cache_root or default_cache_root(), endpoint)
    if not model.tokenizer_config_path:
        return resolved
    return dataclasses.replace(resolved, chat_templates=_replacement_templates(model.tokenizer_config_path))


def _resolve(model: ModelConfig, progress: Progress, cache_root: Path, endpoint: str | None) -> ResolvedModel:
    model_id = model.model_id
    if model_id == EMBEDDED_MODEL_ID:
        _refuse_revision(model)
        path = embedded_gguf(cache_root, progress)
        return resolve_gguf(
            path, cache_root, progress, model_id=model_id, kind=ModelKind.EMBEDDED, revision=GGUF_SHA256
        )
    path = Path(model_id).expanduser()
    if path.is_dir():
        _refuse_revision(model)
        return resolve_directory(path, cache_root, model_id=model_id)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelResolutionError(f"{model_id}: no such file")
        _refuse_revision(model)
        return resolve_gguf(path, cache_root, progress, model_id=model_id)
    if path.is_file():
        raise ModelResolutionError(f"{model_id}: a file, but not a .gguf one; give the directory it is in")
    if model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1:
        raise ModelResolutionError(f"{model_id}: no such directory")
    # Imported here: it brings an HTTP client that local models never need.
    from tokenwire_service.weights.hub import download

    directory, commit = download(model, progress, endpoint)
    return resolve_directory(directory, cache_root, model_id=model_id, kind=ModelKind.HUB, revision=commit)


def _refuse_revision(model: ModelConfig) -> None:
    if model.revision:
        raise ConfigError(
            f"--revision {model.revision}: only models from the Hub have revisions, and {model.model_id} is none; "
            "leave it out (or unset REVISION)"
        )


def _replacement_templates(name: str) -> dict[str, str]:
    """Templates of --tokenizer-config-path."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"--tokenizer-config-path {name}: no such file")
    templates = templates_of(read_json(path), path) if path.suffix == ".json" else {"default": read_template(path)}
    if not templates:
        raise ConfigError(f"--tokenizer-config-path {name}: has no chat_template")
    return templates
