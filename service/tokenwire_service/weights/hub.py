"""A Hub repository on this machine: downloaded through huggingface_hub, its failures told in one line each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

from tokenwire_service.config import ModelConfig
from tokenwire_service.errors import ModelResolutionError
from tokenwire_service.weights.directory import NOT_THE_MODEL, explain_no_weights
from tokenwire_service.weights.progress import Progress, ProgressTask

_ALLOW = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "spiece.model", "merges.txt", "vocab.txt")
_IGNORE = ("*/*", *(f"{prefix}*" for prefix in NOT_THE_MODEL))


def download(model: ModelConfig, progress: Progress, endpoint: str | None = None) -> tuple[Path, str]:
    """The snapshot directory of `model.model_id` and its commit. Raises ModelResolutionError."""
    try:
        with progress.task(f"Downloading {model.model_id}") as task:
            path = snapshot_download(
                model.model_id,
                revision=model.revision or None,
                cache_dir=model.huggingface_hub_cache or None,
                token=model.hf_token or None,
                allow_patterns=list(_ALLOW),
                ignore_patterns=list(_IGNORE),
                tqdm_class=_bytes_bar(task),
                endpoint=endpoint,
            )
    except Exception as error:  # huggingface_hub lets its HTTP library's own errors through
        raise _explain(model, error) from error
    directory = Path(path)
    if not any(directory.glob("*.safetensors")):
        reason = explain_no_weights(_remote_names(model, endpoint) or (p.name for p in directory.iterdir()))
        raise ModelResolutionError(f"{model.model_id}: {reason}")
    return directory, directory.name


def _remote_names(model: ModelConfig, endpoint: str | None) -> list[str]:
    """Names of all files in the repository, to explain a failure; none when the Hub does not tell."""
    try:
        api = HfApi(endpoint=endpoint, token=model.hf_token or None)
        return api.list_repo_files(model.model_id, revision=model.revision or None)
    except Exception:
        return []


def _explain(model: ModelConfig, error: Exception) -> ModelResolutionError:
    name = f"{model.model_id}@{model.revision}" if model.revision else model.model_id
    match error:
        case HFValidationError():
            text = "neither a directory, a .gguf file nor a Hub id (org/name)"
        case GatedRepoError():
            text = "gated; ask for access on its page on the Hub and set HF_TOKEN to a token of that account"
        case RevisionNotFoundError():
            text = f"the model has no revision '{model.revision or 'main'}'; check --revision"
        case RepositoryNotFoundError():
            text = "no such model on the Hub, or a private one; check --model-id, or set HF_TOKEN"
        case OfflineModeIsEnabled():
            text = "not in the local cache, and HF_HUB_OFFLINE is set; unset it or download the model first"
        case LocalEntryNotFoundError():
            text = _explain_not_cached(error)
        case HfHubHTTPError() if error.response is not None:
            text = f"the Hub answered {error.response.status_code}; try again later"
        case _:
            text = f"download failed ({_first_line(error)}); try again"
    return ModelResolutionError(f"{name}: {text}")


def _explain_not_cached(error: LocalEntryNotFoundError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled):
            return "not (wholly) in the local cache, and HF_HUB_OFFLINE is set; unset it or download the model first"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return (
                f"not (wholly) in the local cache, and the Hub answered {cause.response.status_code}; try again later"
            )
        cause = cause.__cause__ or cause.__context__
    return "not (wholly) in the local cache, and the Hub cannot be reached; check the network"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _bytes_bar(task: ProgressTask) -> type[tqdm]:
    """A tqdm class for huggingface_hub that shows nothing itself and passes bytes on disk to `task`.

    Of the bars huggingface_hub opens, those counting files and those counting bytes on the wire are let be.
    """
    lock = threading.Lock()

    class BytesBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts = kwargs.get("unit") == "B" and not str(kwargs.get("name", "")).endswith(".transfer")
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            self._sum = 0

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                with lock:
                    self._sum += int(n or 0)
                    task.set_total(int(getattr(self, "total", 0) or 0))
                    task.set_done(self._sum)
            return None

    return BytesBar
