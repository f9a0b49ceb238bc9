"""What `--model-id` turned out to be: everything a start needs to know before it reads a weight."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class ModelKind(enum.StrEnum):
    """Where the weights came from."""

    HUB = "hub"
    LOCAL = "local"
    GGUF = "gguf"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """generation_config.json: what ends a generation, and the sampling the model's authors advise (None: not said)."""

    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model whose files are on this machine and look whole. Picklable; opens nothing."""

    model_id: str
    """As the operator gave it."""
    revision: str
    """Commit of a Hub model, SHA-256 of the embedded one; empty for local files."""
    kind: ModelKind
    config: Mapping[str, Any]
    """config.json (made from metadata for GGUF)."""
    weight_files: tuple[Path, ...]
    """safetensors files, or one .gguf."""
    tokenizer_dir: Path
    """Holds tokenizer.json and, where the model has them, tokenizer_config.json and special_tokens_map.json."""
    generation: GenerationDefaults
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    """Jinja sources by name; 'default' is the one used when a request asks for none."""

    @property
    def chat_template(self) -> str | None:
        """The default chat template; None when the model has none."""
        return self.chat_templates.get("default")

    @property
    def is_gguf(self) -> bool:
        return self.weight_files[0].suffix.lower() == ".gguf"
