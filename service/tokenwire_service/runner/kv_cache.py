"""The keys and values of every block, in one allocation."""

from __future__ import annotations

import torch

from tokenwire_service.layers.batch import LayerKV


class KVCache:
    """One tensor [layers, 2, N, K, B, D]; memory of a block is first touched when the block is first written."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim)
        self._storage = torch.empty(shape, dtype=dtype, device=device)
        self.layers = tuple(LayerKV(key=layer[0], value=layer[1]) for layer in self._storage)
        """One entry per layer: views of the allocation."""

    @property
    def num_bytes(self) -> int:
        return self._storage.nbytes


def kv_block_bytes(num_layers: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, key and value."""
    return num_layers * 2 * num_kv_heads * block_size * head_dim * dtype.itemsize
