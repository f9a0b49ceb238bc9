"""gRPC reflection that knows methods too, which `grpcurl describe SERVICE.METHOD` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection


def serve_reflection(services: Sequence[str], server: grpc.aio.Server) -> None:
    """Let callers list `services` and read their descriptors."""
    shown = [*services, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(shown, server, pool=_Symbols(Default()))  # type: ignore[no-untyped-call]


class _Symbols:
    """A descriptor pool that finds the file of a method as it finds that of any other symbol."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
