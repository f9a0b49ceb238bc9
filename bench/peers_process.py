"""A contender's process, seen from here: questions, answers, and the memory of everything it starts."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

_ANSWER_TIMEOUT_S = 900.0
_END_TIMEOUT_S = 30.0
_SAMPLE_INTERVAL_S = 0.2
_SHOWN_LINES = 12


class WorkerProcess:
    """One `python -m <module>`, run in `root`; a context manager that leaves no process behind."""

    def __init__(self, python: Path, module: str, root: Path, log: Path, threads: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [str(python), "-m", module],
                cwd=root,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        os.sched_setaffinity(self._process.pid, sorted(os.sched_getaffinity(0))[:threads])
        self.memory = TreeMemory(self._process.pid)

    def ask(self, message: dict[str, Any], timeout_s: float = _ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Send and wait. Raises RuntimeError with the end of the process's log when no answer comes."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._complaint("ended")) from None
        ready, _, _ = select.select([stdout], [], [], timeout_s)
        line = stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(self._complaint("ended" if ready else f"gave no answer in {timeout_s:.0f} s"))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> WorkerProcess:
        self.memory.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.memory.stop()
        stdin = self._process.stdin
        assert stdin is not None
        try:
            if kind is None:
                stdin.write(b'{"stop": true}\n')
            stdin.close()
            self._process.wait(_END_TIMEOUT_S if kind is None else 1.0)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        finally:
            self._kill_group()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _complaint(self, what: str) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        return "\n  ".join([f"the process {what}; {self._log} ends with", *lines])


class TreeMemory:
    """Peak resident memory of a process and its descendants together, in MB, sampled."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        return self._peak_bytes / 1e6

    def restart_peak(self) -> None:
        """Forget what was before."""
        self._peak_bytes = 0

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_INTERVAL_S):
            self._peak_bytes = max(self._peak_bytes, sum(_resident_bytes(pid) for pid in _tree(self._pid)))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = [
            name for path in Path(f"/proc/{pid}/task").iterdir() for name in (path / "children").read_text().split()
        ]
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
