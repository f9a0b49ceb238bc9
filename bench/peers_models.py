"""The one model in the formats the contenders read, all made from the embedded Q4_1 file, so that all do the same work.

Everything lands under .bench/models and is made once. Each GGUF file has a directory of its own, because OpenVINO GenAI
saves what it makes of a file beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from tokenwire_service.config import ModelConfig
from tokenwire_service.weights.resolve import ResolvedModel, resolve_model
from tokenwire_service.weights.stored import whole
from tokenwire_service.weights.stream import stream_tensors

GGUF_TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16}
_SKIPPED_KEYS = ("general.architecture", "general.file_type", "general.quantization_version")


class PeerModels:
    """Paths of the model by format: "embedded" and GGUF types are .gguf files, "safetensors" is a directory."""

    def __init__(self, directory: Path, model_id: str) -> None:
        self._directory = directory
        self.resolved: ResolvedModel = resolve_model(ModelConfig(model_id=model_id))
        if not self.resolved.is_gguf:
            raise ValueError(f"{model_id}: the peers' formats are made from a .gguf file; name one")

    def path(self, kind: str) -> Path:
        """Where the model is in this format; makes it first where it is not there yet."""
        if kind == "embedded":
            return self.resolved.weight_files[0]
        target = self._directory / self.resolved.weight_files[0].stem / kind
        if kind == "safetensors":
            return target if target.is_dir() else _whole(target, self._write_safetensors)
        made = target if target.is_dir() else _whole(target, lambda at: self._write_gguf(at, kind))
        return made / "model.gguf"

    def _write_safetensors(self, directory: Path) -> None:
        """float32, under Hugging Face's names, with config and tokenizer."""
        tensors = {name: whole(tensor).to(torch.float32) for name, tensor in stream_tensors(self.resolved)}
        if self.resolved.config.get("tie_word_embeddings"):
            tensors.pop("lm_head.weight", None)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        config = dict(self.resolved.config) | {"dtype": "float32"}
        (directory / "config.json").write_text(json.dumps(config, indent=2))
        for path in self.resolved.tokenizer_dir.iterdir():
            if path.suffix in (".json", ".jinja") and path.name != "config.json":
                shutil.copy(path, directory / path.name)

    def _write_gguf(self, directory: Path, kind: str) -> None:
        """Matrices in the type named, vectors in F32, metadata as in the source."""
        reader = gguf.GGUFReader(self.path("embedded"))
        architecture = str(reader.fields["general.architecture"].contents())
        writer = gguf.GGUFWriter(directory / "model.gguf", architecture)
        writer.add_file_type(int(_FILE_TYPES.get(kind, gguf.LlamaFileType.MOSTLY_Q8_0)))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for field in _copied(reader):
            sub_type = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
        for tensor in reader.tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            wanted = GGUF_TYPES[kind] if values.ndim > 1 else gguf.GGMLQuantizationType.F32
            if wanted in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
                writer.add_tensor(tensor.name, values.astype(np.float16 if wanted.name == "F16" else np.float32))
            else:
                writer.add_tensor(tensor.name, gguf.quantize(values, wanted), raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _copied(reader: gguf.GGUFReader) -> Iterator[gguf.ReaderField]:
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in _SKIPPED_KEYS:
            yield field


def _whole(target: Path, write: Callable[[Path], None]) -> Path:
    """A directory that appears under its name only once everything is in it."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    partial.rename(target)
    return target
