"""What a lower precision costs in quality: `python -m bench.perplexity`.

Perplexity of the model on a text that ships with Python (the reference manual's topics), in windows of a fixed length,
each position scored from the second on. Every precision runs through the kernels that serve it, keys and values too.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.record import write
from bench.workload import make_prompts
from tokenwire_service.config import EMBEDDED_MODEL_ID, ModelConfig
from tokenwire_service.kernels.backend import select_backend
from tokenwire_service.layers.batch import AttentionBatch
from tokenwire_service.models.decoder import Decoder
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.loading import load_weights
from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.runner.dtypes import choose_dtype, choose_kv_dtype
from tokenwire_service.runner.kv_cache import KVCache
from tokenwire_service.text.tokenizer import Tokenizer
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolve import ResolvedModel, resolve_model
from tokenwire_service.weights.stream import stream_tensors

_BLOCK_SIZE = 32
_CHUNK = 256
"""Positions whose logits are held at once."""
PRECISIONS: Mapping[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "float16": ("float16", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("auto", "int8"),
}
"""--dtype and --quantize of each."""


class Scorer:
    """One model in one precision."""

    def __init__(self, resolved: ResolvedModel, name: str, window: int) -> None:
        given, quantize = PRECISIONS[name]
        dtype = choose_dtype(given, torch.device("cpu"))
        spec, backend = read_spec(resolved.config), select_backend(torch.device("cpu"), dtype, quantize)
        tensors = stream_tensors(resolved, SilentProgress())
        self._decoder: Decoder = load_weights(spec, tensors, dtype, TensorParallelGroup(), backend)
        num_blocks = -(-window // _BLOCK_SIZE)
        self._kv = KVCache(
            num_layers=spec.num_layers,
            num_blocks=num_blocks,
            num_kv_heads=self._decoder.num_kv_heads,
            block_size=_BLOCK_SIZE,
            head_dim=spec.head_dim,
            dtype=choose_kv_dtype("auto", dtype, backend),
            device=backend.device,
        )

    @torch.inference_mode()
    def surprises(self, tokens: Tensor) -> Tensor:
        """int64 [L] → float64 [L - 1]: minus log-probability of each token but the first."""
        length = len(tokens)
        positions = torch.arange(length)
        batch = AttentionBatch(
            query_start_loc=torch.tensor([0, length], dtype=torch.int32),
            seq_lens=torch.tensor([length], dtype=torch.int32),
            block_tables=torch.arange(-(-length // _BLOCK_SIZE), dtype=torch.int32)[None],
            slot_mapping=positions,
            max_query_len=length,
            max_seq_len=length,
        )
        hidden = self._decoder.forward(tokens, positions, batch, self._kv.layers)
        found = []
        for at in range(0, length - 1, _CHUNK):
            targets = tokens[at + 1 : at + 1 + _CHUNK]
            logits = self._decoder.logits(hidden[at : at + len(targets)]).double()
            found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        return torch.cat(found)


def measure(resolved: ResolvedModel, name: str, windows: list[Tensor], exact: list[Tensor] | None) -> dict[str, Any]:
    """Perplexity, and against `exact` surprises of the same windows the mean of their absolute differences."""
    scorer = Scorer(resolved, name, len(windows[0]))
    surprises = [scorer.surprises(window) for window in windows]
    row: dict[str, Any] = {"precision": name, "perplexity": math.exp(float(torch.cat(surprises).mean()))}
    if exact is not None:
        row["mean_difference"] = float((torch.cat(surprises) - torch.cat(exact)).abs().mean())
    return row | {"surprises": surprises}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-id", default=EMBEDDED_MODEL_ID)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window")
    given = parser.parse_args()
    resolved = resolve_model(ModelConfig(model_id=given.model_id))
    tokenizer = Tokenizer.from_dir(resolved.tokenizer_dir)
    prompts = make_prompts(lambda text: tokenizer.encode(text, add_special_tokens=False), given.windows, given.length)
    windows = [torch.tensor(prompt) for prompt in prompts]
    rows: list[dict[str, Any]] = []
    exact = None
    for name in PRECISIONS:
        row = measure(resolved, name, windows, exact)
        exact = exact or row["surprises"]
        rows.append({key: value for key, value in row.items() if key != "surprises"})
        ratio = row["perplexity"] / rows[0]["perplexity"]
        print(f"{name:<10}{row['perplexity']:>10.4f}{ratio:>9.4f}x of float32")
    workload = {"model": given.model_id, "windows": given.windows, "length": given.length}
    print(f"written to {write('perplexity', workload, rows, ('torch',))}")


if __name__ == "__main__":
    main()
