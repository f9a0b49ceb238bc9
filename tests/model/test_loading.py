from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.paged import PagedModel
from tokenwire_service.errors import UnsupportedModelError, WeightsError
from tokenwire_service.kernels.backend import Backend, reference_backend
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import checkpoint_tensors, load_weights
from tokenwire_service.models.spec import ModelSpec
from tokenwire_service.parallel.group import TensorParallelGroup

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def spec_of(**overrides: Any) -> ModelSpec:
    return read_spec({**CONFIG, **overrides})


def random_tensors(spec: ModelSpec) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) * 0.3 for name, shape in checkpoint_tensors(spec)}


def load(spec: ModelSpec, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Decoder:
    return load_weights(spec, tensors.items(), dtype, TensorParallelGroup(), reference_backend())


def logits(decoder: Decoder) -> Tensor:
    (result,) = PagedModel(decoder, block_size=4).step([(0, torch.arange(9))])
    return result


def test_names_and_shapes_of_a_checkpoint() -> None:
    tensors = dict(checkpoint_tensors(spec_of(attention_bias=True, num_hidden_layers=1)))
    assert tensors["model.embed_tokens.weight"] == (31, 16)
    assert tensors["model.layers.0.self_attn.k_proj.weight"] == (8, 16)
    assert tensors["model.layers.0.self_attn.k_proj.bias"] == (8,)
    assert tensors["model.layers.0.mlp.down_proj.weight"] == (16, 24)
    assert tensors["lm_head.weight"] == (31, 16)
    assert len(tensors) == 3 + 9 + 4


def test_order_and_precision_of_the_source_do_not_matter() -> None:
    spec = spec_of()
    tensors = {name: tensor.bfloat16() for name, tensor in random_tensors(spec).items()}
    backwards = dict(reversed({name: tensor.float() for name, tensor in tensors.items()}.items()))
    assert torch.equal(logits(load(spec, tensors)), logits(load(spec, backwards)))


def test_the_decoder_keeps_no_hold_on_the_source() -> None:
    spec = spec_of()
    tensors = random_tensors(spec)
    decoder = load(spec, tensors)
    before = logits(decoder)
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    assert torch.equal(logits(decoder), before)


def test_packed_weights_are_the_only_copy(backends: dict[str, Backend]) -> None:
    spec = spec_of()
    for backend in backends.values():
        decoder = load_weights(spec, random_tensors(spec).items(), torch.float32, TensorParallelGroup(), backend)
        assert decoder.layers[0].attention.qkv.weight.format is backend.linear_format


def test_lower_precision_runs(backends: dict[str, Backend]) -> None:
    del backends
    spec = spec_of()
    exact = logits(load(spec, random_tensors(spec)))
    rough = logits(load(spec, random_tensors(spec), torch.bfloat16))
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.2 * exact.abs().max()


def test_values_beyond_float16_are_refused_by_name() -> None:
    tensors = random_tensors(spec := spec_of())
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 70_000.0
    load(spec, tensors, torch.bfloat16)
    with pytest.raises(WeightsError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' has values beyond .* --dtype"):
        load(spec, tensors, torch.float16)


def test_every_missing_tensor_is_found() -> None:
    spec = spec_of(num_hidden_layers=1, attention_bias=True)
    whole = random_tensors(spec)
    for name in whole:
        with pytest.raises(WeightsError, match=rf"lack tensor '{name}' of shape \["):
            load(spec, {other: tensor for other, tensor in whole.items() if other != name})


def test_left_over_repeated_and_misshapen_tensors_are_named() -> None:
    spec = spec_of()
    tensors = random_tensors(spec)
    with pytest.raises(WeightsError, match=r"'model\.layers\.2\.mlp\.up_proj\.weight', which a LlamaForCausalLM"):
        load(spec, {**tensors, "model.layers.2.mlp.up_proj.weight": torch.zeros(24, 16)})
    twice = [*tensors.items(), ("model.norm.weight", torch.ones(16))]
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight' twice"):
        load_weights(spec, twice, torch.float32, TensorParallelGroup(), reference_backend())
    with pytest.raises(WeightsError, match=r"'lm_head\.weight' has shape \[30, 16\], config\.json asks for \[31, 16\]"):
        load(spec, {**tensors, "lm_head.weight": torch.zeros(30, 16)})
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight' holds torch\.int8"):
        load(spec, {**tensors, "model.norm.weight": torch.ones(16, dtype=torch.int8)})


def test_redundant_tensors_are_passed_over() -> None:
    spec = spec_of(tie_word_embeddings=True)
    tensors = random_tensors(spec)
    assert "lm_head.weight" not in tensors
    extras = {"lm_head.weight": torch.zeros(31, 16), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    assert torch.equal(logits(load(spec, {**tensors, **extras})), logits(load(spec, tensors)))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_hold_their_parts(size: int) -> None:
    spec = spec_of(mlp_bias=True)
    tensors = random_tensors(spec)
    ranks = [
        load_weights(spec, tensors.items(), torch.float32, TensorParallelGroup(rank, size), reference_backend())
        for rank in range(size)
    ]
    prefix = "model.layers.1"
    rows = [16 // size, 8 // min(size, 2), 8 // min(size, 2)]
    heads = [rank.layers[1].attention.qkv.weight.data.split_with_sizes(rows) for rank in ranks]
    assert torch.equal(torch.cat([q for q, _, _ in heads]), tensors[f"{prefix}.self_attn.q_proj.weight"])
    repeats = max(size // 2, 1)
    assert torch.equal(torch.cat([k for _, k, _ in heads[::repeats]]), tensors[f"{prefix}.self_attn.k_proj.weight"])
    assert all(rank.num_kv_heads == 2 // min(size, 2) for rank in ranks)
    down = torch.cat([rank.layers[1].mlp.down.weight.data for rank in ranks], dim=1)
    assert torch.equal(down, tensors[f"{prefix}.mlp.down_proj.weight"])
    biases = [rank.layers[1].mlp.down.bias for rank in ranks]
    assert torch.equal(sum(b for b in biases if b is not None), tensors[f"{prefix}.mlp.down_proj.bias"])
    table = torch.cat([rank.embedding.table.data for rank in ranks])
    assert torch.equal(table[:31], tensors["model.embed_tokens.weight"])
    assert not table[31:].any()


def test_a_model_that_does_not_divide_is_refused() -> None:
    spec = spec_of()
    with pytest.raises(UnsupportedModelError, match="does not divide over 3 shards"):
        load_weights(spec, (), torch.float32, TensorParallelGroup(0, 3), reference_backend())
