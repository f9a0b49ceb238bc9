"""Local directories: what is taken for the model, what is read from beside it, and each way it can be broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.embedded import embedded_model
from tests.support.weights import whole_tensors
from tokenwire_service.config import ModelConfig
from tokenwire_service.errors import (
    ConfigError,
    ModelResolutionError,
    StartupError,
    UnsupportedModelError,
    WeightsError,
)
from tokenwire_service.weights.resolve import GenerationDefaults, ModelKind, ResolvedModel, resolve_model
from tokenwire_service.weights.stream import stream_tensors


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A directory with everything a model needs, its weights in one file."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    (directory / "tokenizer.json").write_bytes((embedded_model().tokenizer_dir / "tokenizer.json").read_bytes())
    save_file(
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)},
        directory / "model.safetensors",
    )
    return directory


@pytest.fixture
def resolve(tmp_path: Path) -> Callable[..., ResolvedModel]:
    def run(path: Path, **options: Any) -> ResolvedModel:
        return resolve_model(ModelConfig(model_id=str(path), **options), cache_root=tmp_path / "cache")

    return run


def split(directory: Path) -> None:
    """Weights in two shards with an index, and a stray file in another layout."""
    (directory / "model.safetensors").unlink()
    save_file({"a": torch.zeros(3)}, directory / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(2)}, directory / "model-00002-of-00002.safetensors")
    save_file({"c": torch.ones(2)}, directory / "consolidated.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_one_file(model_dir: Path, resolve: Any) -> None:
    resolved = resolve(model_dir)
    assert (resolved.kind, resolved.revision) == (ModelKind.LOCAL, "")
    assert resolved.weight_files == (model_dir / "model.safetensors",)
    assert resolved.tokenizer_dir == model_dir
    assert resolved.generation == GenerationDefaults(eos_token_ids=(2,))
    tensors = whole_tensors(resolved)
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3))
    assert tensors["b"].dtype == torch.bfloat16


@pytest.mark.parametrize("indexed", [True, False])
def test_shards(model_dir: Path, resolve: Any, indexed: bool) -> None:
    split(model_dir)
    if not indexed:
        (model_dir / "model.safetensors.index.json").unlink()
    resolved = resolve(model_dir)
    assert [path.name for path in resolved.weight_files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert whole_tensors(resolved).keys() == {"a", "b"}


def test_shards_are_opened_one_after_the_other(model_dir: Path, resolve: Any) -> None:
    split(model_dir)
    stream = stream_tensors(resolve(model_dir))
    assert next(stream)[0] == "a"
    (model_dir / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="00002"):
        next(stream)


def test_a_tensor_in_two_shards(model_dir: Path, resolve: Any) -> None:
    split(model_dir)
    save_file({"a": torch.ones(2)}, model_dir / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match="in both"):
        list(stream_tensors(resolve(model_dir)))


def test_generation_defaults(model_dir: Path, resolve: Any) -> None:
    values = {"eos_token_id": [5, 6, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    (model_dir / "generation_config.json").write_text(json.dumps(values | {"repetition_penalty": 1.05, "min_p": 0.0}))
    assert resolve(model_dir).generation == GenerationDefaults(
        eos_token_ids=(5, 6), do_sample=True, temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05, min_p=0.0
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [-1]}, "eos_token_id"),
    ],
)
def test_generation_defaults_out_of_range(model_dir: Path, resolve: Any, values: dict[str, Any], message: str) -> None:
    (model_dir / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=rf"generation_config\.json: {message}"):
        resolve(model_dir)


def test_chat_templates(model_dir: Path, resolve: Any, tmp_path: Path) -> None:
    assert resolve(model_dir).chat_template is None
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    (model_dir / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert resolve(model_dir).chat_templates == {"default": "one", "tool_use": "two"}
    (model_dir / "chat_template.jinja").write_text("three")
    assert resolve(model_dir).chat_template == "three"
    other = tmp_path / "other.jinja"
    other.write_text("four")
    assert resolve(model_dir, tokenizer_config_path=str(other)).chat_templates == {"default": "four"}
    with pytest.raises(ConfigError, match="--tokenizer-config-path"):
        resolve(model_dir, tokenizer_config_path=str(tmp_path / "none.json"))
    (model_dir / "chat_template.jinja").unlink()
    (model_dir / "tokenizer_config.json").write_text(json.dumps({"chat_template": 5}))
    with pytest.raises(WeightsError, match="chat_template"):
        resolve(model_dir)


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


WEIGHTS = "model.safetensors"
BROKEN: list[tuple[str, Callable[[Path], object], type[StartupError], str]] = [
    ("no config", lambda d: (d / "config.json").unlink(), ModelResolutionError, r"no config\.json"),
    ("damaged config", lambda d: (d / "config.json").write_text("{"), WeightsError, r"config\.json: not valid JSON"),
    (
        "config a list",
        lambda d: (d / "config.json").write_text("[1]"),
        WeightsError,
        r"config\.json: not a JSON object",
    ),
    ("deep config", lambda d: (d / "config.json").write_text("[" * 100_000), WeightsError, "not valid JSON"),
    ("no weights", lambda d: (d / WEIGHTS).unlink(), ModelResolutionError, "no safetensors files"),
    (
        "pickles",
        lambda d: (d / WEIGHTS).rename(d / "pytorch_model.bin"),
        ModelResolutionError,
        "convert them to safetensors",
    ),
    ("gguf inside", lambda d: (d / WEIGHTS).rename(d / "m.gguf"), ModelResolutionError, r"--model-id path/to/m\.gguf"),
    ("adapter", lambda d: (d / WEIGHTS).rename(d / "adapter_model.safetensors"), ModelResolutionError, "adapter"),
    ("no tokenizer", lambda d: (d / "tokenizer.json").unlink(), UnsupportedModelError, r"no tokenizer\.json"),
    ("empty file", lambda d: cut(d / WEIGHTS, 0), WeightsError, "0 bytes long"),
    ("cut header", lambda d: cut(d / WEIGHTS, 30), WeightsError, "truncated"),
    ("cut data", lambda d: cut(d / WEIGHTS, -1), WeightsError, "truncated"),
    ("longer", lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes() + b"x"), WeightsError, "bytes expected"),
    (
        "huge header",
        lambda d: (d / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 62) + b"{}"),
        WeightsError,
        "header needs",
    ),
    ("no JSON", lambda d: (d / WEIGHTS).write_bytes(struct.pack("<Q", 2) + b"xx"), WeightsError, "not JSON"),
    (
        "offsets",
        lambda d: rewrite_header(d / WEIGHTS, lambda h: h["a"].pop("data_offsets")),
        WeightsError,
        "data_offsets",
    ),
]


@pytest.mark.parametrize(("damage", "kind", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_each_way_to_be_broken_is_one_line(
    model_dir: Path, resolve: Any, damage: Callable[[Path], object], kind: type[StartupError], message: str
) -> None:
    damage(model_dir)
    with pytest.raises(kind, match=message) as caught:
        resolve(model_dir)
    assert "\n" not in str(caught.value)
    assert str(model_dir) in str(caught.value)


def test_a_missing_shard_is_named(model_dir: Path, resolve: Any) -> None:
    split(model_dir)
    (model_dir / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors: missing"):
        resolve(model_dir)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sub/x.safetensors", "weights.bin"])
def test_an_index_that_points_elsewhere(model_dir: Path, resolve: Any, name: str) -> None:
    split(model_dir)
    (model_dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightsError, match="not the name of a safetensors file"):
        resolve(model_dir)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such directory"),
        ("/nowhere/at/all", "no such directory"),
        ("a/b/c", "no such directory"),
        ("nowhere.gguf", "no such file"),
    ],
)
def test_paths_that_are_not_there(resolve: Any, name: str, message: str) -> None:
    with pytest.raises(ModelResolutionError, match=message):
        resolve(Path(name) if not name.startswith("./") else name)


def test_a_file_of_another_kind(resolve: Any, model_dir: Path) -> None:
    with pytest.raises(ModelResolutionError, match="give the directory it is in"):
        resolve(model_dir / WEIGHTS)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "model", "model.gguf"])
def test_a_revision_of_what_has_none_is_refused(model_dir: Path, name: str) -> None:
    (model_dir.parent / "model.gguf").write_bytes(b"GGUF")
    model_id = name if name.startswith("smol") else str(model_dir.parent / name)
    with pytest.raises(ConfigError, match="--revision v2: only models from the Hub have revisions"):
        resolve_model(ModelConfig(model_id=model_id, revision="v2"), cache_root=model_dir.parent / "cache")
