"""The JSON and text files beside the weights, read with a limit on their size."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenwire_service.errors import WeightsError
from tokenwire_service.weights.resolved import GenerationDefaults

_MAX_JSON_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20

_RANGES = MappingProxyType(
    {
        "temperature": (0.0, math.inf),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "typical_p": (0.0, 1.0),
        # Logits are divided by it.
        "repetition_penalty": (0.001, 100.0),
    }
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty when there is no such file. Raises WeightsError naming the file."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise WeightsError(f"{path}: larger than {_MAX_JSON_BYTES >> 20} MiB; this is not a model's file")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: not a JSON object; fetch it again")
    return value


def read_chat_templates(directory: Path) -> dict[str, str]:
    """Templates by name, from chat_template.jinja, chat_template.json, tokenizer_config.json: the first with any."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return {"default": read_template(file)}
    for name in ("chat_template.json", "tokenizer_config.json"):
        templates = templates_of(read_json(directory / name), directory / name)
        if templates:
            return templates
    return {}


def read_template(path: Path) -> str:
    """A .jinja file. Raises WeightsError."""
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise WeightsError(f"{path}: larger than {MAX_TEMPLATE_BYTES >> 20} MiB; this is not a chat template")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def templates_of(config: dict[str, Any], path: Path) -> dict[str, str]:
    """`chat_template` of a tokenizer_config.json: one source, or a list of named ones."""
    value = config.get("chat_template")
    if value is None:
        return {}
    templates = {"default": value} if isinstance(value, str) else _named_templates(value)
    if not templates:
        raise WeightsError(f"{path}: chat_template is neither a string nor a list of named templates")
    if any(len(source) > MAX_TEMPLATE_BYTES for source in templates.values()):
        raise WeightsError(f"{path}: chat_template is larger than {MAX_TEMPLATE_BYTES >> 20} MiB")
    return templates


def _named_templates(value: Any) -> dict[str, str]:
    entries = value if isinstance(value, list) else []
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    return {name: source for name, source in named.items() if isinstance(name, str) and isinstance(source, str)}


def read_generation_defaults(directory: Path, config: dict[str, Any]) -> GenerationDefaults:
    """generation_config.json, with config.json's end tokens where it names none. Raises WeightsError."""
    path = directory / "generation_config.json"
    values = read_json(path)
    end = values.get("eos_token_id")
    if end is None:
        end = config.get("eos_token_id")
    ids = [] if end is None else end if isinstance(end, list) else [end]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise WeightsError(f"{path}: eos_token_id must be a token id or a list of them")
    top_k, do_sample = values.get("top_k"), values.get("do_sample")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0):
        raise WeightsError(f"{path}: top_k must be an integer >= 0")
    return GenerationDefaults(
        eos_token_ids=tuple(dict.fromkeys(ids)),
        do_sample=do_sample if isinstance(do_sample, bool) else None,
        top_k=top_k,
        **{name: _number(values.get(name), name, path) for name in _RANGES},
    )


def _number(value: Any, name: str, path: Path) -> float | None:
    if value is None:
        return None
    low, high = _RANGES[name]
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not valid or not low <= value <= high:
        raise WeightsError(f"{path}: {name} must be a number in [{low:g}, {high:g}]")
    return float(value)
