"""Whole GGUF files: names, row order, config and tokenizer, against the model they were made from and transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from tests.support.embedded import embedded_model
from tests.support.texts import TEXTS
from tests.support.weights import whole_tensors
from tokenwire_service.config import ModelConfig
from tokenwire_service.errors import StartupError, UnsupportedModelError, WeightsError
from tokenwire_service.text.tokenizer import Tokenizer
from tokenwire_service.weights.gguf_config import config_from_gguf
from tokenwire_service.weights.gguf_file import GgufFile
from tokenwire_service.weights.gguf_rope import llama3_divisors
from tokenwire_service.weights.resolve import ModelKind, ResolvedModel, resolve_model
from tokenwire_service.weights.stream import stream_tensors

FAMILIES = [
    ("llama", True, False, {}),
    ("llama", True, True, {"attention_bias": True}),
    ("qwen2", False, False, {}),
    ("qwen3", False, True, {"head_dim": 32}),
    ("smollm3", True, True, {"pad_token_id": None}),
]


def resolve(path: Path, cache: Path) -> ResolvedModel:
    return resolve_model(ModelConfig(model_id=str(path)), cache_root=cache)


@pytest.mark.parametrize(("family", "permute", "tied", "options"), FAMILIES)
def test_tensors_are_the_models_own(
    family: str,
    permute: bool,
    tied: bool,
    options: dict[str, Any],
    tiny_model: Callable[..., Any],
    state_of: Callable[..., dict[str, torch.Tensor]],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = tiny_model(family, tied=tied, **options)
    state = state_of(model)
    path = write_gguf(family, state, permute=permute, head_dim=options.get("head_dim", 16))
    resolved = resolve(path, tmp_path / "cache")
    loaded = whole_tensors(resolved)
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor), name
    assert resolved.kind is ModelKind.GGUF
    ours, theirs = resolved.config, model.config.to_dict()
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert ours[key] == theirs[key], key
    for key in ("vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "model_type"):
        assert ours[key] == theirs[key], key
    assert ours["head_dim"] == options.get("head_dim", 16)
    assert ours["attention_bias"] == (options.get("attention_bias", False) or family == "qwen2")
    if family == "smollm3":
        assert ours["no_rope_layers"] == theirs["no_rope_layers"]
    assert resolved.generation.eos_token_ids == (2, 0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logits_equal_transformers_own_reader(
    family: str,
    tiny_model: Callable[..., Any],
    state_of: Callable[..., dict[str, torch.Tensor]],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """transformers reads the file itself; our tensors in our config must give the same model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # transformers takes Qwen3's head size from hidden_size / heads where its own default does not apply.
    options = {"head_dim": 128} if family == "qwen3" else {}
    state = state_of(tiny_model(family, **options))
    path = write_gguf(family, state, permute=family == "llama", head_dim=options.get("head_dim", 16))
    oracle = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    resolved = resolve(path, tmp_path / "cache")
    config = AutoConfig.for_model(**resolved.config)
    ours = AutoModelForCausalLM.from_config(config).eval()
    ours.load_state_dict(whole_tensors(resolved), strict=True)
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        assert torch.allclose(ours(ids).logits, oracle(ids).logits, atol=1e-5)


def test_half_precision_stays_half(
    tiny_model: Callable[..., Any], state_of: Callable[..., Any], write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_gguf("qwen2", state_of(tiny_model("qwen2")), permute=False, dtype=np.float16)
    loaded = whole_tensors(resolve(path, tmp_path / "cache"))
    assert loaded["model.embed_tokens.weight"].dtype == torch.float16
    assert loaded["model.norm.weight"].dtype == torch.float32


def with_freqs(values: list[float]) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.array(values, dtype=np.float32))


def replacing(key: str, add: Callable[[gguf.GGUFWriter], None]) -> Callable[[gguf.GGUFWriter], None]:
    """gguf-py refuses to write a key twice, so the one there goes first."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(key)
        add(writer)

    return change


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        (
            lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(4.0)),
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            lambda w: (
                w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                w.add_rope_scaling_factor(4.0),
                w.add_rope_scaling_orig_ctx_len(32),
                w.add_rope_scaling_yarn_beta_slow(1.0),
            ),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        (
            lambda w: (
                w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                w.add_rope_scaling_factor(2.0),
                w.add_rope_scaling_yarn_attn_factor(1.0),
                w.add_rope_scaling_yarn_beta_fast(48.0),
                w.add_rope_scaling_yarn_beta_slow(0.1),
            ),
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": 48.0, "beta_slow": 0.1},
        ),
        (
            with_freqs(llama3_divisors(10_000.0, 16, 8.0)),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        (lambda w: None, None),
    ],
    ids=["linear", "yarn", "yarn-bounds", "llama3", "none"],
)
def test_rope_scaling(
    metadata: Any, scaling: Any, tiny_model: Callable[..., Any], state_of: Any, write_gguf: Callable[..., Path]
) -> None:
    path = write_gguf("llama", state_of(tiny_model("llama")), permute=True, metadata=metadata)
    config = config_from_gguf(GgufFile.read(path))
    assert config.get("rope_scaling") == scaling
    assert config["rope_theta"] == 10_000.0


def test_llama3_divisors_equal_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    rope = {"rope_theta": 500_000.0, **scaling}
    config = LlamaConfig(head_dim=128, rope_parameters=rope, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500_000.0 ** (torch.arange(0, 128, 2).float() / 128)
    assert torch.allclose(plain / scaled, torch.tensor(llama3_divisors(500_000.0, 128, 8.0)), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_freqs([1.0, 1.5, 1.0, 1.0, 2.0, 3.0, 4.0, 9.0]), "rope_freqs"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "longrope"),
        (
            lambda w: (
                w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                w.add_rope_scaling_factor(2.0),
                w.add_rope_scaling_attn_factors(0.8),
            ),
            "attn_factor other than 1",
        ),
        (lambda w: w.add_expert_count(8), "mixture-of-experts"),
        (lambda w: w.add_uint16("split.count", 3), "llama-gguf-split"),
        (replacing("tokenizer.ggml.tokens", lambda w: w.add_token_list(["x"] * 301)), "more tokens than rows"),
        (lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32)), "attn_sinks"),
        (replacing("tokenizer.ggml.pre", lambda w: w.add_tokenizer_pre("chatglm-bpe")), "chatglm-bpe"),
        (replacing("tokenizer.ggml.model", lambda w: w.add_tokenizer_model("rwkv")), "rwkv"),
        (replacing("tokenizer.ggml.token_type", lambda w: w.add_token_types([1])), "token_type"),
        (replacing("tokenizer.ggml.merges", lambda w: w.add_token_merges(["zz yy"])), "vocabulary"),
        (replacing("tokenizer.ggml.eos_token_id", lambda w: w.add_eos_token_id(999_999)), "eos_token_id"),
        (replacing("llama.attention.head_count", lambda w: w.add_head_count([4, 4])), "head_count"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    change: Any, message: str, tiny_model: Any, state_of: Any, write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_gguf("llama", state_of(tiny_model("llama")), permute=True, metadata=change)
    with pytest.raises((UnsupportedModelError, WeightsError), match=message) as caught:
        list(stream_tensors(resolve(path, tmp_path / "cache")))
    assert "\n" not in str(caught.value)


def test_unknown_architecture(tiny_model: Any, state_of: Any, write_gguf: Any, tmp_path: Path) -> None:
    path = write_gguf("mamba", state_of(tiny_model("llama")), permute=False)
    with pytest.raises(UnsupportedModelError, match=r"architecture 'mamba' is not supported; use one of llama"):
        resolve(path, tmp_path / "cache")


def test_derived_files_are_made_once_and_again_when_the_file_changes(
    tiny_model: Any, state_of: Any, write_gguf: Any, tmp_path: Path
) -> None:
    state = state_of(tiny_model("llama"))
    cache = tmp_path / "cache"
    path = write_gguf("llama", state, permute=True)
    first = resolve(path, cache).tokenizer_dir
    before = (first / "tokenizer.json").stat().st_mtime_ns
    assert resolve(path, cache).tokenizer_dir == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == before
    write_gguf("llama", state, permute=True, metadata=lambda w: w.add_chat_template("{{ messages }}"))
    again = resolve(path, cache)
    assert again.tokenizer_dir != first
    assert again.chat_template == "{{ messages }}"
    assert not list(cache.rglob(".making-*"))


def test_a_cache_that_cannot_be_written(tiny_model: Any, state_of: Any, write_gguf: Any, tmp_path: Path) -> None:
    path = write_gguf("llama", state_of(tiny_model("llama")), permute=True)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StartupError, match="cache cannot be written"):
        resolve(path, tmp_path / "cache")


def test_the_embedded_models_tokenizer_equals_transformers_conversion() -> None:
    from transformers import AutoTokenizer

    resolved = embedded_model()
    gguf_path = resolved.weight_files[0]
    oracle = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # The converter forgets that this vocabulary splits digits one by one, as the model's own tokenizer.json says.
    oracle.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours = Tokenizer.from_dir(resolved.tokenizer_dir)
    for text in [*TEXTS, "In 1984, 12345 people paid $3.14 or ½ or ²; \u0661\u0662 too.", "def f(x):\n\n\treturn  x"]:
        ids = ours.encode(text)
        assert ids == oracle.encode(text), text
        assert ours.decode(ids, skip_special_tokens=False) == oracle.decode(ids)
    assert resolved.chat_template == oracle.chat_template
    assert resolved.kind is ModelKind.EMBEDDED
    assert resolved.generation.eos_token_ids == (2,)
