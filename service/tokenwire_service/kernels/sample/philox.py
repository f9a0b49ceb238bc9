"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).

Stateless: a draw is a function of its key and counter, so it is the same bits whatever else is in the batch.
Written in int64 arithmetic, which every torch device has; each word holds an unsigned 32-bit value.
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
        high, low = _multiply(even, multipliers)
        even, odd = high.flip(-1) ^ odd ^ key, low.flip(-1)
        key = (key + weyl) & _MASK
    return torch.stack((even, odd), dim=-1).flatten(-2)


def uniform(seed: Tensor, candidate: Tensor, position: Tensor) -> Tensor:
    """One draw per row, float64 [S] in (0, 1), from int64 [S] seed (any 64 bits), candidate index and position.

    The seed is the key; the counter is (position, candidate, 0, 0). 48 bits, centred, so that neither 0 nor 1 occurs.
    """
    key = torch.stack((seed & _MASK, (seed >> 32) & _MASK), dim=-1)
    zero = torch.zeros_like(position)
    words = philox4x32(torch.stack((position & _MASK, candidate & _MASK, zero, zero), dim=-1), key)
    bits = (words[:, 0] << 16) | (words[:, 1] >> 16)
    return (bits.double() + 0.5) * 2.0**-48


def _multiply(word: Tensor, multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 64-bit product, by 16-bit halves so that int64 never overflows."""
    low = (word & 0xFFFF) * multiplier
    high = (word >> 16) * multiplier + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
