"""A .gguf file as a model: its config and tokenizer are made from its metadata once and kept in the cache."""

from __future__ import annotations

import json
from pathlib import Path

from tokenwire_service.errors import WeightsError
from tokenwire_service.weights.derived import derived_dir
from tokenwire_service.weights.directory import read_config
from tokenwire_service.weights.gguf_config import config_from_gguf
from tokenwire_service.weights.gguf_file import GgufFile
from tokenwire_service.weights.json_files import MAX_TEMPLATE_BYTES, read_chat_templates, read_generation_defaults
from tokenwire_service.weights.progress import Progress
from tokenwire_service.weights.resolved import ModelKind, ResolvedModel
from tokenwire_service.weights.tokenizer_files import write_gguf_tokenizer


def resolve_gguf(
    path: Path,
    cache_root: Path,
    progress: Progress,
    *,
    model_id: str,
    kind: ModelKind = ModelKind.GGUF,
    revision: str = "",
) -> ResolvedModel:
    """The model in `path`. Raises WeightsError or UnsupportedModelError."""

    def build(directory: Path) -> None:
        with progress.task("Reading the GGUF file's tokenizer", 1, "file") as task:
            _write_files(GgufFile.read(path), directory)
            task.set_done(1)

    directory = derived_dir(cache_root, "gguf", path, build)
    config = read_config(directory, model_id)
    return ResolvedModel(
        model_id=model_id,
        revision=revision,
        kind=kind,
        config=config,
        weight_files=(path,),
        tokenizer_dir=directory,
        generation=read_generation_defaults(directory, config),
        chat_templates=read_chat_templates(directory),
    )


def _write_files(file: GgufFile, directory: Path) -> None:
    config = config_from_gguf(file)
    (directory / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    write_gguf_tokenizer(file, directory)
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        if len(template) > MAX_TEMPLATE_BYTES:
            raise WeightsError(f"{file.path}: its chat template is larger than {MAX_TEMPLATE_BYTES >> 20} MiB")
        # newline="" keeps the template's own line ends on every system.
        (directory / "chat_template.jinja").write_text(template, "utf-8", newline="")
