from __future__ import annotations

from typing import Any

import pytest

from tokenwire_service.errors import UnsupportedModelError
from tokenwire_service.models.families import FAMILIES, read_spec

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def test_smollm2() -> None:
    spec = read_spec(CONFIG)
    assert (spec.head_dim, spec.num_kv_heads, spec.num_layers) == (64, 3, 30)
    assert spec.rope.theta == 100000.0
    assert spec.tied_embeddings
    assert spec.windows == (None,) * 30
    assert not spec.qkv_bias


def test_what_a_missing_field_means() -> None:
    bare = {name: CONFIG[name] for name in CONFIG if name not in ("tie_word_embeddings", "rope_theta")}
    spec = read_spec(bare)
    assert not spec.tied_embeddings
    assert spec.rope.theta == 10000.0
    mistral = read_spec({**bare, "architectures": ["MistralForCausalLM"]})
    assert mistral.windows == (4096,) * 30
    smollm3 = read_spec({**bare, "architectures": ["SmolLM3ForCausalLM"]})
    assert smollm3.tied_embeddings
    assert smollm3.rope.theta == 2_000_000.0
    assert smollm3.rope_layers[:8] == (True, True, True, False, True, True, True, False)
    qwen3 = read_spec({**bare, "architectures": ["Qwen3ForCausalLM"]})
    assert qwen3.head_dim == 128
    assert qwen3.qk_norm


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], None, [""], [{"x": 1}]])
def test_an_unknown_architecture_lists_what_is_supported(architectures: object) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read_spec({**CONFIG, "architectures": architectures})
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in FAMILIES)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "576"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 2}, "must divide num_attention_heads"),
        ({"num_key_value_heads": 10}, "num_key_value_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 7}, "head_dim"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "linear, dynamic, llama3, yarn"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters.low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read_spec({**CONFIG, **changes})
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("architecture", "changes", "problem"),
    [
        ("MistralForCausalLM", {"sliding_window": 0}, "sliding_window"),
        (
            "Qwen2ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["x"] * 30},
            "layer_types",
        ),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 8, "layer_types": []}, "layer_types"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 2]}, "no_rope_layers"),
    ],
)
def test_bad_fields_of_a_family_are_named(architecture: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read_spec({**CONFIG, "architectures": [architecture], **changes})
    assert problem in str(caught.value)
