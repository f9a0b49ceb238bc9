"""Sums over the GPUs of one machine through symmetric memory (torch.distributed._symmetric_memory, torch 2.11 to 2.13).

For small messages NCCL's latency is what counts: one kernel in which every GPU reads everybody's part over NVLink needs
a third of it. Where the switch can add (multicast), it does, and larger messages gain too. Larger still is NCCL's.
Recordable in CUDA graphs, as NCCL's own kernels are. The plain twin is torch.distributed's all_reduce.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from tokenwire_service.parallel.group import TensorParallelGroup

_LOG = logging.getLogger(__name__)
_KIB, _MIB = 1 << 10, 1 << 20
_ALIGNMENT = 16
"""Bytes the kernels read at once."""
_ONE_SHOT_BYTES: Mapping[int, int] = MappingProxyType({2: 1 * _MIB, 4: 512 * _KIB, 8: 256 * _KIB})
"""Largest message by number of ranks; other numbers add in an order that differs from rank to rank."""
_MULTICAST_BYTES: Mapping[int, int] = MappingProxyType({4: 8 * _MIB, 8: 8 * _MIB})


class Way(enum.Enum):
    """How a sum is made."""

    ONE_SHOT = "every GPU reads and adds everybody's part"
    MULTICAST = "the switch adds"


def choose_way(num_bytes: int, size: int, *, multicast: bool) -> Way | None:
    """For a message of so many bytes over `size` ranks; None leaves it to NCCL. Raises nothing, so that every rank
    chooses the same."""
    if num_bytes % _ALIGNMENT:
        return None
    if num_bytes <= _ONE_SHOT_BYTES.get(size, 0):
        return Way.ONE_SHOT
    return Way.MULTICAST if multicast and num_bytes <= _MULTICAST_BYTES.get(size, 0) else None


class Kernels(Protocol):
    """torch.ops.symm_mem, of which these are used. `group` names a process group."""

    def one_shot_all_reduce_out(self, input: Tensor, reduce_op: str, group: str, out: Tensor) -> Tensor: ...

    def multimem_all_reduce_(self, input: Tensor, reduce_op: str, group: str) -> Tensor: ...


class SymmetricSum:
    """A Shortcut for sums alone. Both kernels end when every rank has read: the buffer is free for the next sum."""

    def __init__(self, buffer: Tensor, size: int, group: str, kernels: Kernels, *, multicast: bool) -> None:
        """`buffer`, flat, in symmetric memory, of the type that is summed."""
        self._buffer = buffer
        self._size = size
        self._group = group
        self._kernels = kernels
        self._multicast = multicast

    def all_reduce(self, x: Tensor) -> bool:
        """See Shortcut.all_reduce."""
        if x.dtype is not self._buffer.dtype or not x.is_contiguous() or not 0 < x.numel() <= self._buffer.numel():
            return False
        way = choose_way(x.nbytes, self._size, multicast=self._multicast)
        if way is None:
            return False
        part = self._buffer[: x.numel()]
        part.copy_(x.view(-1))
        if way is Way.ONE_SHOT:
            self._kernels.one_shot_all_reduce_out(part, "sum", self._group, x.view(-1))
        else:
            self._kernels.multimem_all_reduce_(part, "sum", self._group)
            x.view(-1).copy_(part)
        return True

    def gather(self, x: Tensor) -> Tensor | None:
        """See Shortcut.gather."""
        return None


def make_symmetric_sum(group: TensorParallelGroup, dtype: torch.dtype, device: torch.device) -> SymmetricSum | None:
    """For the ranks of one machine, called by all of them together; None where the hardware has no such thing."""
    lacking = torch.tensor([not _can_share(group.size, device)], dtype=torch.int64, device=device)
    if bool(group.all_max(lacking)):
        _LOG.info("sums over ranks go by NCCL alone: not every two GPUs reach each other's memory")
        return None
    import torch.distributed._symmetric_memory as symmetric

    process_group = group.process_group or dist.group.WORLD
    assert process_group is not None
    size = max(_ONE_SHOT_BYTES[group.size], _MULTICAST_BYTES.get(group.size, 0)) // dtype.itemsize
    try:
        buffer = symmetric.empty(size, dtype=dtype, device=device)
        handle = symmetric.rendezvous(buffer, process_group)
    except RuntimeError as error:
        # The same on every rank: it is the machine that lacks something.
        _LOG.info("sums over ranks go by NCCL alone: %s", (str(error).splitlines() or [""])[0])
        return None
    name, multicast = process_group.group_name, bool(handle.multicast_ptr)
    return SymmetricSum(buffer, group.size, name, torch.ops.symm_mem, multicast=multicast)


def _can_share(size: int, device: torch.device) -> bool:
    others = [index for index in range(torch.cuda.device_count()) if index != device.index]
    return (
        size in _ONE_SHOT_BYTES
        and torch.cuda.device_count() >= size
        and all(torch.cuda.can_device_access_peer(device, other) for other in others[: size - 1])
    )
