"""How this process logs: as every process of the service does."""

from __future__ import annotations

from tokenwire_service.core.logging import configure_logging

__all__ = ["configure_logging"]
