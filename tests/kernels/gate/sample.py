"""What the sampler is compiled for: a large vocabulary with few rows (each spread over the GPU) and many; a small one.

Triton makes a constant of an integer that is 1.
"""

from __future__ import annotations

from typing import Any

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.sample import _triton, _triton_edits, _triton_scores
from tokenwire_service.kernels.sample._config import OCTAVES, mass_scale, row_cut

VOCAB = 128_256
ALIGNED = ("logits", "weights", "row_stride", "num_tokens", "candidates")
TYPES = {
    **dict.fromkeys(("logits", "weights", "maxima", "candidates", "temperature", "top_p", "min_p"), "*fp32"),
    **dict.fromkeys(("repetition", "presence", "frequency", "context_frequency", "lengths", "values"), "*fp32"),
    **dict.fromkeys(("generated_counts", "total_counts", "sums", "normalizers"), "*fp32"),
    **dict.fromkeys(("masses", "seed", "top_k", "position", "token_ids", "rows", "ranks"), "*i64"),
    **dict.fromkeys(("octaves", "counts", "candidate", "words"), "*i32"),
    **dict.fromkeys(("row_stride", "num_tokens", "num_tiles", "num_pairs", "num_values", "num_words"), "i32"),
    "flags": "*u8",
    "valid": "*i1",
}


def variant(name: str, kernel: Any, num_warps: int = 4, **constants: object) -> Variant:
    """A variant whose parameters have their usual types, but for those that are constants."""
    signature = {key: "constexpr" if key in constants else TYPES[key] for key in kernel.arg_names}
    aligned = tuple(key for key in kernel.arg_names if key in ALIGNED)
    return Variant(name, kernel, signature, constants, num_warps=num_warps, aligned=aligned)


def variants() -> list[Variant]:
    found = []
    for rows, vocab in (1, VOCAB), (256, VOCAB), (1, 1000):
        cut, name = row_cut(rows, vocab), f"{rows}x{vocab}"
        tile = {"TILE": cut.tile, "OCTAVES": OCTAVES}
        sizes = tile | {"SCALE": mass_scale(vocab), "TILES": cut.num_lanes}
        chosen = sizes | {"COLUMNS": cut.columns} | ({"num_tiles": 1} if cut.num_tiles == 1 else {})
        found += [
            variant(f"maxima-{name}", _triton.tile_maxima_kernel, cut.num_warps, **tile),
            variant(f"weigh-{name}", _triton.weigh_kernel, cut.num_warps, **sizes),
            variant(f"compact-{name}", _triton.compact_kernel, cut.num_warps, **sizes),
            variant(f"choose-{name}", _triton.choose_kernel, 8, **chosen),
        ]
    cut, tiles = row_cut(256, VOCAB), {"TILE": _triton_scores.TILE}
    likeliest = {"TILE": cut.tile, "TILES": cut.num_lanes}
    pairs = {"PAIRS": _triton_edits.PAIRS}
    return [
        *found,
        variant("likeliest", _triton.choose_likeliest_kernel, cut.num_warps, **likeliest),
        variant("score", _triton_scores.score_kernel, **tiles, num_values=1),
        variant("normalizer", _triton_scores.score_kernel, **tiles, values=None, ranks=None, num_values=1),
        variant("ranks", _triton_scores.score_kernel, **tiles, maxima=None, sums=None),
        variant("combine", _triton_scores.combine_kernel, TILES=32),
        variant("penalize", _triton_edits.penalize_kernel, **pairs),
        variant("bias", _triton_edits.bias_kernel, **pairs),
        variant("take", _triton_edits.take_kernel, **pairs),
        variant("put", _triton_edits.put_kernel, **pairs),
        variant("bits", _triton_edits.mask_kernel, TILE=_triton_edits.TILE),
    ]
