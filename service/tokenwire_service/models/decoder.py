"""The decoder: embed, then per layer attention and MLP on a residual stream, then norm and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.layers.batch import AttentionBatch, KeptTokens, LayerKV
from tokenwire_service.layers.embedding import VocabParallelEmbedding, VocabParallelHead
from tokenwire_service.layers.norm import AddRMSNorm
from tokenwire_service.layers.rotary import Rotary, RotaryTable
from tokenwire_service.models.overlap import Overlap
from tokenwire_service.models.passing import DecoderLayer, PartialPass
from tokenwire_service.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Decoder:
    """One rank's part of a model. It keeps no state between calls: keys and values live in the caller's blocks."""

    spec: ModelSpec
    num_kv_heads: int
    """KV heads of this rank: K of the LayerKV it is given."""
    backend: Backend
    """Where the model's tensors and the KV blocks live."""
    embedding: VocabParallelEmbedding
    rotary: Rotary | RotaryTable
    layers: tuple[DecoderLayer, ...]
    norm: AddRMSNorm
    head: VocabParallelHead
    overlap: Overlap | None = None
    """How large batches go through the layers where ranks sum on devices with several lanes."""

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        kv: Sequence[LayerKV],
        kept: KeptTokens | None = None,
    ) -> Tensor:
        """input_ids and positions int64 [T] → hidden [T, E] after the final norm, or [R, E] of the kept tokens; kv has
        one entry per layer.

        Writes the keys and values of all T tokens into kv. Call under torch.inference_mode().
        """
        passing = self.begin(input_ids, positions, batch)
        if self.overlap is not None and self.overlap.suits(passing):
            self.overlap.go_on(self.layers[:-1], passing, kv[:-1])
        else:
            self.go_on(passing, len(self.layers) - 1, kv)
        if kept is not None and not len(kept.tokens):
            self.go_on(passing, len(self.layers), kv)
            return passing.residual[:0]
        residual, delta, cos_sin, last = passing.residual, passing.delta, passing.cos_sin, self.layers[-1]
        if kept is None:
            return self.norm(residual, last(residual, delta, cos_sin, batch, kv[-1]))
        return self.norm(*last.for_kept(residual, delta, cos_sin, batch, kv[-1], kept))

    def begin(self, input_ids: Tensor, positions: Tensor, batch: AttentionBatch) -> PartialPass:
        """Before the first layer; see `forward`."""
        return PartialPass(batch, self.rotary(positions), self.embedding(input_ids))

    def go_on(self, passing: PartialPass, end: int, kv: Sequence[LayerKV]) -> None:
        """Through the layers up to before `end`. Of the last layer only keys and values are computed: nobody wants what
        comes after it."""
        residual, cos_sin, batch = passing.residual, passing.cos_sin, passing.batch
        for number in range(passing.num_layers, end):
            layer, delta = self.layers[number], passing.delta
            if number + 1 == len(self.layers):
                layer.store(residual, delta, cos_sin, batch, kv[number])
            else:
                passing.delta = layer(residual, delta, cos_sin, batch, kv[number])
        passing.num_layers = end

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden [R, E], rows of what `forward` returned → this rank's float32 [R, V'], written into `out` when that is
        given; see VocabParallelHead."""
        return self.head(hidden, out)

    def with_positions(self, max_positions: int) -> Decoder:
        """The same decoder for positions below `max_positions`, whose rotations are looked up instead of computed."""
        return replace(
            self, rotary=RotaryTable(Rotary(self.spec.rope, self.backend.device), max_positions, self.backend)
        )
