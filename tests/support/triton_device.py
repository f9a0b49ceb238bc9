"""Where kernel tests run Triton: interpreted on the CPU, or with TOKENWIRE_KERNEL_DEVICE=cuda compiled on a GPU.

TOKENWIRE_KERNEL_DEVICE=cuda python -m pytest tests/kernels -q -k "triton or advance"
"""

from __future__ import annotations

import os

import torch

from tokenwire_service.kernels.backend import Backend, reference_backend

DEVICE = torch.device(os.environ.get("TOKENWIRE_KERNEL_DEVICE", "cpu"))
TRITON = Backend(DEVICE, triton=True)
REFERENCE = reference_backend(DEVICE)
