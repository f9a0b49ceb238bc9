"""For every test: engines behave under a crowded machine as the `tokenwire` command makes them, Triton interprets."""

import os

from tokenwire_service.config import OPENMP_SPIN

# Before anything imports torch: OpenMP reads it when it is loaded.
os.environ.setdefault(*OPENMP_SPIN)
# Before any kernel module is imported: Triton reads it when it decorates a kernel.
if os.environ.get("TOKENWIRE_KERNEL_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
