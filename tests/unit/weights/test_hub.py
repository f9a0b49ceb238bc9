"""Hub ids against a small server that speaks the Hub's protocol."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from tests.support.embedded import embedded_model
from tests.unit.weights.test_embedded import Recording
from tokenwire_service.config import ModelConfig
from tokenwire_service.errors import ModelResolutionError
from tokenwire_service.weights.resolve import ModelKind, ResolvedModel, resolve_model
from tokenwire_service.weights.stream import stream_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


class Hub:
    """What the server holds: repositories, which of them are gated, and how it misbehaves."""

    def __init__(self) -> None:
        weights = save({"w": torch.arange(3.0)})
        tokenizer = (embedded_model().tokenizer_dir / "tokenizer.json").read_bytes()
        base = {
            "config.json": b'{"model_type": "llama", "eos_token_id": 2}',
            "tokenizer.json": tokenizer,
            "README.md": b"#",
        }
        self.repos: dict[str, dict[str, bytes]] = {
            "org/good": base
            | {"model.safetensors": weights, "original/other.safetensors": b"x", "pytorch_model.bin": b"x"},
            "org/gated": base | {"model.safetensors": weights},
            "org/pickled": base | {"pytorch_model.bin": b"x"},
            "org/quantized": {"README.md": b"#", "good-Q4_K_M.gguf": b"x", "good-Q8_0.gguf": b"x"},
        }
        self.requests: list[str] = []
        self.cut_short = self.broken = False


class Handler(BaseHTTPRequestHandler):
    """Just enough of the Hub: repository info, file tree, and files with their metadata headers."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(path)
        if self.hub.broken:
            return self.send(500, b"oops")
        parts = path.strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[0:2])
        if repo not in self.hub.repos:
            return self.send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if repo == "org/gated" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        files = self.hub.repos[repo]
        if parts[0] == "api":
            return self.describe(repo, files, parts[4:], body=body)
        revision, name = parts[3], "/".join(parts[4:])
        if revision not in ("main", "v1", COMMIT) or name not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.send_file(files[name], body=body)

    def describe(self, repo: str, files: dict[str, bytes], rest: list[str], *, body: bool) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", "v1", COMMIT):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        if rest and rest[0] == "tree":
            listed: Any = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
        else:
            listed = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "private": False}
        return self.send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body=body)

    def send_file(self, data: bytes, *, body: bool) -> None:
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if body and self.hub.cut_short and len(data) < 1000:
            self.send(200, data[:-1], headers | {"Content-Length": str(len(data))})
            self.close_connection = True
            return
        self.send(200, data, headers, body=body)

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # huggingface_hub waits between retries of a failed request; the waiting is not what is tested.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


Resolve = Callable[..., ResolvedModel]


@pytest.fixture
def resolve(hub: Hub, tmp_path: Path) -> Resolve:
    def run(model_id: str, progress: Any = None, **options: Any) -> ResolvedModel:
        model = ModelConfig(model_id=model_id, huggingface_hub_cache=str(tmp_path / "hub"), **options)
        return resolve_model(model, progress, tmp_path / "cache", endpoint=hub.endpoint)  # type: ignore[attr-defined]

    return run


def refused(resolve: Resolve, model_id: str, **options: Any) -> str:
    with pytest.raises(ModelResolutionError) as caught:
        resolve(model_id, **options)
    message = str(caught.value)
    assert message.startswith(model_id)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_downloads_what_is_needed_and_no_more(hub: Hub, resolve: Resolve) -> None:
    progress = Recording()
    resolved = resolve("org/good", progress)
    assert (resolved.kind, resolved.revision, resolved.model_id) == (ModelKind.HUB, COMMIT, "org/good")
    assert [name for name, _ in stream_tensors(resolved)] == ["w"]
    fetched = {path.rsplit("/", 1)[-1] for path in hub.requests if "/resolve/" in path}
    assert fetched == {"config.json", "tokenizer.json", "model.safetensors"}
    total = sum(len(hub.repos["org/good"][name]) for name in fetched)
    assert progress.labels == ["Downloading org/good"]
    assert progress.reports[-1] == (total, total)


def test_a_second_start_downloads_nothing(hub: Hub, resolve: Resolve) -> None:
    first = resolve("org/good", revision="v1")
    hub.requests.clear()
    assert resolve("org/good", revision="v1") == first
    assert not [path for path in hub.requests if "/resolve/" in path]


def test_a_token_opens_a_gated_model(resolve: Resolve) -> None:
    assert resolve("org/gated", hf_token=TOKEN).revision == COMMIT


def test_refusals(resolve: Resolve) -> None:
    assert "gated; ask for access" in refused(resolve, "org/gated", hf_token="hf_wrong")
    assert "no such model on the Hub" in refused(resolve, "org/missing")
    assert "no revision 'nope'" in refused(resolve, "org/good", revision="nope")
    assert "--model-id path/to/good-Q4_K_M.gguf" in refused(resolve, "org/quantized")
    assert "convert them to safetensors" in refused(resolve, "org/pickled")
    assert "neither a directory" in refused(resolve, "not a model!")


def test_a_cut_download_is_told_and_not_kept(hub: Hub, resolve: Resolve) -> None:
    hub.cut_short = True
    assert "download failed" in refused(resolve, "org/good")
    hub.cut_short = False
    assert resolve("org/good").revision == COMMIT


def test_a_hub_that_fails(hub: Hub, resolve: Resolve) -> None:
    hub.broken = True
    assert "the Hub answered 500" in refused(resolve, "org/good")


def test_offline(hub: Hub, resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve("org/good")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert resolve("org/good") == resolved
    assert "HF_HUB_OFFLINE is set" in refused(resolve, "org/gated")
    assert not hub.requests


def test_no_network(resolve: Resolve, tmp_path: Path, hub: Hub) -> None:
    model = ModelConfig(model_id="org/good", huggingface_hub_cache=str(tmp_path / "hub"))
    with pytest.raises(ModelResolutionError, match="Hub cannot be reached"):
        resolve_model(model, cache_root=tmp_path, endpoint="http://127.0.0.1:9")
    resolved = resolve("org/good")
    assert resolve_model(model, cache_root=tmp_path / "cache", endpoint="http://127.0.0.1:9") == resolved
