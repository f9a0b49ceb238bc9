"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).

Stateless: a draw is a function of its key and counter, so it is the same bits whatever else is in the batch.
Written in int64 arithmetic, which every torch device has and which wraps around; words are unsigned 32-bit values.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
"""Of the first and third counter word."""
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Ten rounds: counter int64 [S, 4] and key int64 [S, 2], words in [0, 2**32) → int64 [S, 4] of the same range."""
    multipliers = torch.tensor(_MULTIPLIERS, dtype=torch.int64, device=counter.device)
    weyl = torch.tensor(_WEYL, dtype=torch.int64, device=counter.device)
    even, odd = counter[:, 0::2], counter[:, 1::2]
    for _ in range(_ROUNDS):
        # 64 bits each, of which int64 keeps all, the highest as its sign.
        products = (even * multipliers).flip(-1)
        even, odd = ((products >> 32) ^ odd ^ key) & _MASK, products
        key = key + weyl
    return torch.stack((even, odd & _MASK), dim=-1).flatten(-2)


def uniform(seed: Tensor, candidate: Tensor, position: Tensor) -> Tensor:
    """One draw per row, float64 [S] in (0, 1), from int64 [S] seed (any 64 bits), candidate index and position.

    The seed is the key; the counter is (position, candidate, 0, 0). 48 bits, centred, so that neither 0 nor 1 occurs.
    """
    key = torch.stack((seed & _MASK, (seed >> 32) & _MASK), dim=-1)
    zero = torch.zeros_like(position)
    words = philox4x32(torch.stack((position & _MASK, candidate & _MASK, zero, zero), dim=-1), key)
    bits = (words[:, 0] << 16) | (words[:, 1] >> 16)
    return (bits.double() + 0.5) * 2.0**-48
