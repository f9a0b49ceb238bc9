"""Sums over ranks beside computing: a large batch in two halves, of which one computes while the other is summed.

A layer ends twice in a sum over ranks, which occupies the links between GPUs and leaves their arithmetic idle. With two
halves in turn on lanes of their own, each sum has the other half's attention or MLP beside it (DeepSeek-V3's two
micro-batches, 2024, and TokenWeave, Gond et al. 2025, do this to prefill). Rows of a batch do not depend on each other
but by the keys and values a half stores for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenwire_service.layers.batch import LayerKV
from tokenwire_service.models.passing import DecoderLayer, PartialPass
from tokenwire_service.parallel.lanes import Lane

LEAST_BYTES = 32 << 20
"""Of the tensor that is summed. Half of it is more than goes through symmetric memory, whose one buffer two sums at the
same time would share; and enough that half of the tokens keeps a GPU as busy as all of them."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How a decoder takes large batches through its layers where ranks sum."""

    lanes: tuple[Lane, Lane]
    least_bytes: int = LEAST_BYTES

    def suits(self, passing: PartialPass) -> bool:
        """Depends on nothing that ranks differ in."""
        return passing.residual.nbytes >= self.least_bytes and len(passing.residual) > 1

    def go_on(self, layers: Sequence[DecoderLayer], passing: PartialPass, kv: Sequence[LayerKV]) -> None:
        """Through `layers`, the next ones, whose `kv` are given too."""
        first, second = halves = passing.halves()
        for lane in self.lanes:
            lane.fork()
        for layer, layer_kv in zip(layers, kv, strict=True):
            self._attend(layer, first, second, layer_kv)
            for half, lane in zip(halves, self.lanes, strict=True):
                with lane.on():
                    half.delta = layer.mlp(layer.mlp_norm(half.residual, half.delta))
        for lane in self.lanes:
            lane.join()
        if first.delta is not None and second.delta is not None:
            passing.delta = torch.cat([first.delta, second.delta])
        passing.num_layers += len(layers)

    def _attend(self, layer: DecoderLayer, first: PartialPass, second: PartialPass, kv: LayerKV) -> None:
        ahead, behind = self.lanes
        with ahead.on():
            queries = layer.store(first.residual, first.delta, first.cos_sin, first.batch, kv)
            stored = ahead.mark()
            first.delta = layer.attention.mix(queries, first.batch, kv)
        with behind.on():
            queries = layer.store(second.residual, second.delta, second.cos_sin, second.batch, kv)
            behind.wait(stored)
            second.delta = layer.attention.mix(queries, second.batch, kv)
