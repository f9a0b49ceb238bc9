"""A directory in Hugging Face's layout: which of its files are the weights, and whether they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenwire_service.errors import ModelResolutionError, UnsupportedModelError, WeightsError
from tokenwire_service.weights.derived import derived_dir
from tokenwire_service.weights.json_files import read_chat_templates, read_generation_defaults, read_json
from tokenwire_service.weights.resolved import ModelKind, ResolvedModel
from tokenwire_service.weights.safetensors_file import read_safetensors
from tokenwire_service.weights.tokenizer_files import convert_tokenizer, convertible_file

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Files some repositories hold beside the model in Hugging Face's layout: other layouts, adapters.
NOT_THE_MODEL = ("consolidated", "adapter_")


def resolve_directory(
    directory: Path, cache_root: Path, *, model_id: str, kind: ModelKind = ModelKind.LOCAL, revision: str = ""
) -> ResolvedModel:
    """The model in `directory`. Raises ModelResolutionError, WeightsError or UnsupportedModelError."""
    weight_files = find_weights(directory, model_id)
    config = read_config(directory, model_id)
    for path in weight_files:
        read_safetensors(path)
    return ResolvedModel(
        model_id=model_id,
        revision=revision,
        kind=kind,
        config=config,
        weight_files=weight_files,
        tokenizer_dir=find_tokenizer(directory, cache_root, model_id),
        generation=read_generation_defaults(directory, config),
        chat_templates=read_chat_templates(directory),
    )


def read_config(directory: Path, model_id: str) -> dict[str, Any]:
    """config.json, which names the architecture."""
    config = read_json(directory / "config.json")
    if not config:
        raise ModelResolutionError(f"{model_id}: not a model directory (no config.json in {directory})")
    return config


def find_weights(directory: Path, model_id: str) -> tuple[Path, ...]:
    """The safetensors files that are the model, in order."""
    index = read_json(directory / INDEX)
    if index:
        return _indexed(directory, index)
    if (directory / _SINGLE).is_file():
        return (directory / _SINGLE,)
    found = sorted(p for p in directory.glob("*.safetensors") if not p.name.startswith(NOT_THE_MODEL))
    if found:
        return tuple(found)
    raise ModelResolutionError(f"{model_id}: {explain_no_weights(p.name for p in directory.iterdir())}")


def _indexed(directory: Path, index: dict[str, Any]) -> tuple[Path, ...]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{directory / INDEX}: has no weight_map; fetch it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise WeightsError(f"{directory / INDEX}: '{name[:200]}' is not the name of a safetensors file beside it")
        if not (directory / name).is_file():
            raise WeightsError(f"{directory / name}: missing, although {INDEX} lists it; fetch it")
    return tuple(directory / name for name in names)


def explain_no_weights(names: Any) -> str:
    """One sentence on why files called `names` hold no weights that can be served, and what to do."""
    names = list(names)
    if gguf := sorted(name for name in names if name.lower().endswith(".gguf")):
        return f"holds only GGUF files; download one and serve it, as in --model-id path/to/{gguf[0]}"
    if any(name.endswith(_PICKLES) for name in names):
        return "has only pickled weights (.bin), which can run code and are never loaded; convert them to safetensors"
    if any(name.startswith("adapter_") for name in names):
        return "is an adapter, not a model; merge it into its base model and serve that"
    return "not a model directory (no safetensors files)"


def find_tokenizer(directory: Path, cache_root: Path, model_id: str) -> Path:
    """A directory with a tokenizer.json: the model's own, or one converted once into the cache."""
    if (directory / "tokenizer.json").is_file():
        return directory
    source = convertible_file(directory)
    if source is None:
        raise UnsupportedModelError(f"{model_id}: has no tokenizer.json; add the tokenizer's files to {directory}")
    return derived_dir(cache_root, "tokenizers", source, lambda made: convert_tokenizer(directory, made))
