"""Ours and what a user would pick instead, one after the other on the same work: `python -m bench.peers`.

Every contender runs in a process, and every peer in a virtual environment, of its own (.bench/<peer>). All get the same
prompts as token ids, generate greedily, ignore end tokens, cache no prefixes, guess no tokens, and use the same number
of threads. Each figure is the best of its repeats: noise only ever makes a run slower. Rows are kept in .bench/rows, so
that after a peer failed `--reuse` runs only what is missing; the result file says which rows are not of its own run.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import record
from bench.peers_list import COMPARED, Contender, contenders
from bench.peers_measure import ENOUGH_S, MakePrompts, max_tokens, measure
from bench.peers_models import PeerModels
from bench.peers_process import WorkerProcess
from bench.peers_table import table
from bench.peers_venv import peer_python
from bench.workload import Workload, make_prompts
from tokenwire_service.config import EMBEDDED_MODEL_ID, QUANTIZATIONS
from tokenwire_service.text.tokenizer import Tokenizer

_ROOT = Path(__file__).parent.parent
_WORK = _ROOT / ".bench"


class Peers:
    """One run's surroundings: what every contender's turn needs."""

    def __init__(self, given: argparse.Namespace, workload: Workload) -> None:
        self._given = given
        self._workload = workload
        self._models = PeerModels(_WORK / "models", given.model_id)
        self._prompts = _prompt_maker(self._models)

    def turn(self, contender: Contender) -> dict[str, Any]:
        """Measure one contender and keep its rows. Raises RuntimeError."""
        python = self._python(contender)
        model = self._models.path(contender.model)
        setup = {
            "model": str(model),
            "threads": self._given.threads,
            "max_sequences": max(self._workload.concurrency),
            "max_tokens": max_tokens(self._workload),
            "options": dict(contender.options) | self._needed(contender),
        }
        if contender.convert and not (model.parent / "openvino_model.xml").exists():
            with self._worker(contender, python) as worker:
                worker.ask(setup | {"options": setup["options"] | {"save": True}})
        with self._worker(contender, python) as worker:
            # What is compared with nothing need not be the best of several.
            repeats = self._workload.repeats if contender.precision_class in COMPARED else 1
            workload = replace(self._workload, repeats=repeats)
            measured = measure(contender, worker, setup, workload, self._prompts)
        kept = {
            "contender": contender.name,
            **self._work,
            "commit": record.commit(),
            "finished": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
            **measured,
        }
        path = self._rows_path(contender)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=2) + "\n")
        return kept

    def kept(self, contender: Contender) -> dict[str, Any] | None:
        """The rows of an earlier run of the same work on the same processor."""
        path = self._rows_path(contender)
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def _work(self) -> dict[str, Any]:
        """What must be the same for rows to be used again."""
        return {
            "model": self._given.model_id,
            "workload": self._workload.to_json(),
            "threads": self._given.threads,
            "cpu": record.machine()["cpu"],
        }

    def _rows_path(self, contender: Contender) -> Path:
        """Another directory for other work: a trial run takes nothing from a long one."""
        digest = hashlib.sha256(json.dumps(self._work, sort_keys=True).encode()).hexdigest()[:12]
        return _WORK / "rows" / digest / f"{contender.name}.json"

    def _python(self, contender: Contender) -> Path:
        if not contender.venv:
            return Path(sys.executable)
        return peer_python(contender.venv, _WORK, _ROOT / "requirements", install=not self._given.skip_install)

    def _needed(self, contender: Contender) -> dict[str, Any]:
        """What an engine must be told about the model or the work."""
        if contender.worker == "openvino":
            return {"eos_token_id": self._models.resolved.generation.eos_token_ids[0]}
        if contender.worker == "vllm":
            return {"max_length": 2 * self._workload.ttft_prompt_tokens}
        return {}

    def _worker(self, contender: Contender, python: Path) -> WorkerProcess:
        log = _WORK / "logs" / f"{contender.name}.log"
        return WorkerProcess(python, f"bench.contenders.{contender.worker}", _ROOT, log, self._given.threads)


def _prompt_maker(models: PeerModels) -> MakePrompts:
    tokenizer = Tokenizer.from_dir(models.resolved.tokenizer_dir)

    def make(num: int, length: int, offset: int) -> list[list[int]]:
        return make_prompts(lambda text: tokenizer.encode(text, add_special_tokens=False), num, length, offset)

    return make


@contextmanager
def alone() -> Iterator[None]:
    """Keeps a second run from starting beside this one."""
    _WORK.mkdir(exist_ok=True)
    with (_WORK / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("bench.peers is running already: two at once would measure each other") from None
        yield


def run(
    peers: Peers, chosen: list[Contender], given: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(What each contender brought, why others failed)."""
    results, failed = [], {}
    for contender in chosen:
        kept = peers.kept(contender) if given.reuse and contender.name not in given.only else None
        if kept is not None:
            results.append(kept | {"reused": True})
            continue
        if given.only and contender.name not in given.only:
            continue
        start = time.monotonic()
        print(f"{contender.name} ...", file=sys.stderr, end=" ", flush=True)
        try:
            results.append(peers.turn(contender))
        except (RuntimeError, OSError) as error:
            failed[contender.name] = str(error)
            print(f"failed: {error}", file=sys.stderr)
        else:
            print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return results, failed


def note_agreement(results: list[dict[str, Any]]) -> None:
    """Into each contender's rows: leading tokens of the first lone run that equal the float32 reference's."""
    reference = next((r["first_output"] for r in results if r["contender"] == "transformers-generate"), None)
    for result in results:
        own = result.pop("first_output")
        if reference is not None:
            equal = next((i for i, (a, b) in enumerate(zip(own, reference, strict=True)) if a != b), len(own))
            for row in result["rows"]:
                row["tokens_as_transformers"] = equal


def parse() -> argparse.Namespace:
    names = [contender.name for contender in contenders(QUANTIZATIONS)]
    default = Workload()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-id", default=EMBEDDED_MODEL_ID, help="the embedded model or a .gguf file")
    parser.add_argument("--only", choices=names, action="append", default=[], metavar="NAME", help=", ".join(names))
    parser.add_argument("--reuse", action="store_true", help="take kept rows of the same work, except for --only's")
    parser.add_argument("--skip-install", action="store_true", help="take the environments as they are")
    parser.add_argument("--repeats", type=int, default=default.repeats)
    parser.add_argument("--prompt-tokens", type=int, default=default.prompt_tokens)
    parser.add_argument("--new-tokens", type=int, default=default.new_tokens, help="2 or more")
    parser.add_argument("--ttft-prompt-tokens", type=int, default=default.ttft_prompt_tokens)
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(default.concurrency))
    parser.add_argument("--threads", type=int, default=record.machine()["cores"], help="every core unless given")
    parser.add_argument("--out", type=Path, help="result file; bench/results/<date>-peers.json unless given")
    return parser.parse_args()


def main() -> None:
    given = parse()
    workload = Workload(
        prompt_tokens=given.prompt_tokens,
        new_tokens=given.new_tokens,
        concurrency=tuple(given.concurrency),
        ttft_prompt_tokens=given.ttft_prompt_tokens,
        repeats=given.repeats,
    )
    with alone():
        results, failed = run(Peers(given, workload), list(contenders(QUANTIZATIONS)), given)
    if not results:
        raise SystemExit("nothing was measured")
    note_agreement(results)
    rows = [row for result in results for row in result.pop("rows")]
    print(table(rows))
    more = {
        "threads": given.threads,
        "one_run": not any(result.get("reused") for result in results),
        "contenders": results,
        "failed": failed,
    }
    described = workload.to_json() | {"model": given.model_id, "enough_s": ENOUGH_S}
    path = record.write("peers", described, rows, (), more=more, path=given.out)
    print(f"written to {path}", file=sys.stderr)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
