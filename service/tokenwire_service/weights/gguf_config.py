"""GGUF metadata as a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.weights.gguf_file import GgufFile
from tokenwire_service.weights.gguf_rope import llama3_scaling

ARCHITECTURES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "llama": ("llama", "LlamaForCausalLM"),
        "qwen2": ("qwen2", "Qwen2ForCausalLM"),
        "qwen3": ("qwen3", "Qwen3ForCausalLM"),
        "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
    }
)
"""GGUF architecture → (model_type, class name) of config.json."""

_CONTROL = 3
# End-of-turn tokens llama.cpp knows by their text, for files whose metadata name only one end token.
_END_TEXTS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"})
# SmolLM3 leaves rotary embedding out of every fourth layer; llama.cpp has that in its code, not in the file.
_SMOLLM3_NO_ROPE_INTERVAL = 4


def config_from_gguf(file: GgufFile) -> dict[str, Any]:
    """config.json of a supported architecture. Raises UnsupportedModelError or WeightsError."""
    architecture = file.architecture
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(
            f"{file.path}: GGUF architecture '{architecture}' is not supported; use one of {known}"
        )
    keys = _Keys(file, architecture)
    if keys.integer("expert_count", 0):
        raise UnsupportedModelError(f"{file.path}: mixture-of-experts GGUF files are not supported; use a dense model")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModelError(f"{file.path}: one part of a split GGUF file; join the parts with llama-gguf-split")
    names = {tensor.name for tensor in file.tensors}
    num_heads = keys.integer("attention.head_count")
    hidden_size, num_layers = keys.integer("embedding_length"), keys.integer("block_count")
    if hidden_size < 1 or num_heads < 1 or num_layers < 1:
        raise WeightsError(f"{file.path}: damaged GGUF metadata (sizes must be positive)")
    model_type, class_name = ARCHITECTURES[architecture]
    window = keys.integer("attention.sliding_window", 0)
    config = {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", num_heads),
        "head_dim": keys.integer("attention.key_length", hidden_size // num_heads),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": _tidy(keys.number("attention.layer_norm_rms_epsilon")),
        "vocab_size": _vocab_size(file),
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": _token_id(file, "bos"),
        "eos_token_id": _end_token_ids(file),
        "pad_token_id": _token_id(file, "padding"),
        "sliding_window": window or None,
        "use_sliding_window": bool(window),
        **_rope(keys, hidden_size // num_heads),
    }
    if model_type == "smollm3":
        config["no_rope_layers"] = [int((layer + 1) % _SMOLLM3_NO_ROPE_INTERVAL != 0) for layer in range(num_layers)]
    return config


class _Keys:
    """Metadata under the architecture's own prefix."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file, self._prefix = file, architecture

    def _get(self, key: str, kinds: tuple[type, ...], default: Any) -> Any:
        name = f"{self._prefix}.{key}"
        value = self.file.metadata.get(name, default)
        if isinstance(value, bool) or not isinstance(value, kinds):
            what = "is missing" if value is None else f"is {value!r:.40}"
            raise WeightsError(f"{self.file.path}: damaged GGUF metadata ({name} {what})")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self._get(key, (int,), default))

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._get(key, (int, float), default))

    def text(self, key: str, default: str) -> str:
        return str(self._get(key, (str,), default))


def _tidy(value: float) -> float:
    """A float32 as the shortest decimal that rounds to it: 9.99999974e-06 was 1e-05 in config.json."""
    return float(f"{value:.7g}")


def _vocab_size(file: GgufFile) -> int:
    """Rows of the embedding, which some files pad past the vocabulary."""
    for tensor in file.tensors:
        if tensor.name == "token_embd.weight":
            if len(file.metadata.get("tokenizer.ggml.tokens", ())) > tensor.shape[0]:
                raise WeightsError(f"{file.path}: damaged GGUF file (more tokens than rows of token_embd.weight)")
            return tensor.shape[0]
    raise WeightsError(f"{file.path}: tensor token_embd.weight is missing")


def _token_id(file: GgufFile, name: str) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) else None


def _end_token_ids(file: GgufFile) -> list[int]:
    """Every token that ends a generation: the file's eos, eot and eom, and control tokens known by their text."""
    ids = [_token_id(file, name) for name in ("eos", "eot", "eom")]
    tokens, types = file.metadata.get("tokenizer.ggml.tokens"), file.metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, list):
        ids += [
            i
            for i, (text, kind) in enumerate(zip(tokens, types, strict=False))
            if kind == _CONTROL and text in _END_TEXTS
        ]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _rope(keys: _Keys, head_dim: int) -> dict[str, Any]:
    """rope_theta, and rope_scaling where the file asks for it."""
    rope: dict[str, Any] = {"rope_theta": _tidy(keys.number("rope.freq_base", 10_000.0))}
    head_dim = keys.integer("attention.key_length", head_dim)
    rotary_dim = keys.integer("rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        rope["partial_rotary_factor"] = rotary_dim / head_dim
    kind = keys.text("rope.scaling.type", "none")
    original = keys.integer("rope.scaling.original_context_length", 0)
    if kind == "linear":
        rope["rope_scaling"] = {"rope_type": "linear", "factor": _tidy(keys.number("rope.scaling.factor"))}
    elif kind == "yarn":
        rope["rope_scaling"] = _yarn(keys) | ({"original_max_position_embeddings": original} if original else {})
    elif kind != "none":
        raise UnsupportedModelError(
            f"{keys.file.path}: rope scaling '{kind}' is not supported; use none, linear or yarn"
        )
    elif any(tensor.name == "rope_freqs.weight" for tensor in keys.file.tensors):
        rope["rope_scaling"] = llama3_scaling(keys.file, rope["rope_theta"], rotary_dim)
    return rope


def _yarn(keys: _Keys) -> dict[str, Any]:
    """YaRN with the two bounds a file may move; what else it may change is refused."""
    for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"):
        if keys.number(f"rope.scaling.{name}", 1.0) != 1.0:
            raise UnsupportedModelError(f"{keys.file.path}: rope.scaling.{name} other than 1 is not supported")
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": _tidy(keys.number("rope.scaling.factor"))}
    for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        value = _tidy(keys.number(f"rope.scaling.yarn_{name}", default))
        if value != default:
            scaling[name] = value
    return scaling
