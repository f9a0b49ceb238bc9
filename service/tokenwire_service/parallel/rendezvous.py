"""Joins the ranks' tensors: one torch.distributed group, whose store lives as long as the group.

A group that is formed anew has a new store at another port, so that it never meets what the old one left.
"""

from __future__ import annotations

import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from tokenwire_service.parallel.group import TensorParallelGroup
from tokenwire_service.parallel.identity import RankIdentity

_TIMEOUT = timedelta(minutes=30)
"""Of a collective. Long, because ranks load at different speeds; what hangs is found by other means."""
_STORE_TIMEOUT = timedelta(seconds=60)


class Store:
    """Rank 0's, at a free port of the address that the others know it by."""

    def __init__(self, address: str, size: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, 0), family=family, backlog=max(128, size))
        self.port = int(listener.getsockname()[1])
        self.store = TCPStore(
            address,
            self.port,
            size,
            is_master=True,
            timeout=_STORE_TIMEOUT,
            wait_for_workers=False,
            # The store takes the descriptor over.
            master_listen_fd=listener.detach(),
        )


def connect_store(address: str, port: int, size: int) -> TCPStore:
    """Another rank's."""
    return TCPStore(address, port, size, is_master=False, timeout=_STORE_TIMEOUT, wait_for_workers=False)


def join(identity: RankIdentity, store: TCPStore, device: torch.device, own_address: str) -> TensorParallelGroup:
    """This rank's view of the group, once all have come. `own_address`: of this machine, as the others reach it.

    Raises RuntimeError (torch's) when they cannot reach each other. Once in a process's life.
    """
    rank, size = identity.rank, identity.size
    if device.type == "cuda":
        dist.init_process_group("nccl", store=store, rank=rank, world_size=size, timeout=_TIMEOUT, device_id=device)
        return TensorParallelGroup(rank, size)
    return TensorParallelGroup(rank, size, _gloo_group(rank, size, store, own_address))


def leave() -> None:
    """End what `join` began; without it torch complains at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _gloo_group(rank: int, size: int, store: TCPStore, own_address: str) -> dist.ProcessGroup:
    """What init_process_group makes, which would listen at whatever the machine's name resolves to."""
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = _TIMEOUT
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own_address)]
    prefixed = PrefixStore("gloo", store)
    kind = dist.ProcessGroup.BackendType.GLOO
    group = dist.ProcessGroup(prefixed, rank, size)
    group._set_default_backend(kind)
    group._register_backend(torch.device("cpu"), kind, dist.ProcessGroupGloo(prefixed, rank, size, options))
    return group
