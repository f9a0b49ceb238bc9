"""Graphs on the CPU: the native kernels a piece of work ran, run again in one call and one parallel region."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokenwire_service.kernels._cpu_library import CpuLibrary
from tokenwire_service.kernels._pool import Pool


class CpuGraph:
    """Recorded kernels and the memory between them."""

    def __init__(self, library: CpuLibrary, calls: Sequence[tuple[int, bytes]], pool: Pool) -> None:
        self._library = library
        self._args = [ctypes.create_string_buffer(args, len(args)) for _, args in calls]
        words = [
            word
            for (kernel, _), args in zip(calls, self._args, strict=True)
            for word in (kernel, ctypes.addressof(args))
        ]
        self._calls = (ctypes.c_void_p * len(words))(*words)
        self._pool = pool

    def __len__(self) -> int:
        return len(self._args)

    def replay(self) -> None:
        """Run the kernels on what the input tensors hold now."""
        self._library.run_all(self._calls, len(self._args))


class CpuGraphRecorder:
    """Records graphs that share one pool of memory: the results of one are valid until another is recorded or replayed,
    except for tensors that are still held."""

    def __init__(self, library: CpuLibrary) -> None:
        self._library = library
        self._pool = Pool()

    @property
    def num_bytes(self) -> int:
        """Memory all graphs share."""
        return self._pool.num_bytes

    def record(self, work: Callable[[], object]) -> CpuGraph:
        """Run `work` once and record it. Raises ValueError when it computes anything outside of native kernels."""
        tape = _Tape(self._pool)
        with self._library.recording(tape), _NativeOnly():  # type: ignore[no-untyped-call]
            work()
        return CpuGraph(self._library, tape.calls, self._pool)


class _Tape:
    def __init__(self, pool: Pool) -> None:
        self.calls: list[tuple[int, bytes]] = []
        self._pool = pool

    def add(self, kernel: int, args: bytes) -> None:
        self.calls.append((kernel, args))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._pool.empty(shape, dtype)


class _NativeOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets views pass and refuses everything else: torch's own work would be missing from the recording."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Skipping it would import it: seconds and 75 MB, for a compiler that is not used."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.is_view or func in (torch.ops.aten.detach.default, torch.ops.aten.flatten.using_ints):
            return func(*args, **(kwargs or {}))
        raise ValueError(f"{func} cannot be recorded: it is no native kernel")
