"""Files made once from a model's own files and kept in Tokenwire's cache, such as the tokenizer.json of a GGUF file."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tokenwire_service.errors import ModelResolutionError

# Part of every key: raise it when what is derived changes.
_FORMAT = 2


def derived_dir(cache_root: Path, kind: str, source: Path, build: Callable[[Path], None]) -> Path:
    """The directory `build` filled from `source`, made on first use.

    Keyed by the source's path, size and time of change. Appears whole or not at all, whoever else is starting.
    """
    status = source.stat()
    key = f"{_FORMAT}\0{source.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
    final = cache_root / kind / hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=final.parent))
    except OSError as error:
        raise ModelResolutionError(
            f"{cache_root}: the cache cannot be written ({error.strerror}); free space or rights"
        ) from error
    try:
        build(made)
        _publish(made, final)
    except OSError as error:
        raise ModelResolutionError(f"{final}: cannot be written ({error.strerror}); free space or rights") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return final


def _publish(made: Path, final: Path) -> None:
    """Rename into place; somebody else having done so first is as good."""
    try:
        made.rename(final)
    except OSError:
        if not final.is_dir():
            raise
