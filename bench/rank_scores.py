"""How far N ranks' log-probabilities lie from one's, by precision: `python -m bench.rank_scores`.

Sums over ranks are made in another order. Where activations are rounded after them, a sum next to the middle of two
16-bit numbers rounds the other way, and from there on all that follows is rounded anew: as far from one rank's as each
of them is from float32, and no further. Each precision is served by one rank and by N, and both score the same text.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from bench import record
from bench.workload import source_text
from tests.support.stack import running_stack
from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc
from tokenwire.v1 import types_pb2

PRECISIONS = (("float32", ()), ("float16", ()), ("bfloat16", ()), ("int8", ("--quantize", "int8")))
NUM_CHARS = 8_000
_TIMEOUT_S = 120.0
Scores = NDArray[np.float64]


def scores(name: str, flags: tuple[str, ...], ranks: int) -> Scores:
    """Log-probability of each token of the text but the first."""
    dtype = () if name == "int8" else ("--dtype", name)
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory), [*flags, *dtype, "--num-shard", str(ranks)]) as stack,
        grpc.insecure_channel(stack.grpc) as channel,
    ):
        request = pb.GenerateRequest(
            text=source_text(NUM_CHARS),
            stopping=types_pb2.StoppingCriteria(max_tokens=1),
            output=types_pb2.OutputOptions(prompt_logprobs=types_pb2.LogprobsOptions()),
        )
        answer = pb_grpc.TextGenerationServiceStub(channel).Generate(request, timeout=_TIMEOUT_S)
    return np.array(answer.prompt.logprobs.logprobs[1:], dtype=np.float64)


def difference(one: Scores, other: Scores) -> dict[str, float]:
    apart = np.abs(one - other)
    return {"mean": float(apart.mean()), "p99": float(np.quantile(apart, 0.99)), "max": float(apart.max())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-shard", type=int, default=2)
    parser.add_argument("--out", type=Path, help="result file; bench/results/<date>-rank-scores.json when left out")
    args = parser.parse_args()
    exact: Scores | None = None
    rows: list[dict[str, Any]] = []
    print(f"{'log-probabilities, mean apart:':32}{'ranks of one':>16}{'one of float32':>16}{'ranks of float32':>18}")
    for name, flags in PRECISIONS:
        one, several = (scores(name, flags, ranks) for ranks in (1, args.num_shard))
        exact = one if exact is None else exact
        row = {
            "ranks_of_one": difference(several, one),
            "one_of_float32": difference(one, exact),
            "ranks_of_float32": difference(several, exact),
        }
        print(f"{name:30}" + "".join(f"{found['mean']:17.1e}" for found in row.values()), flush=True)
        rows.append({"precision": name, "tokens": len(one), **row})
    workload = {"num_shard": args.num_shard, "num_chars": NUM_CHARS}
    print(record.write("rank-scores", workload, rows, ("torch", "grpcio"), path=args.out))


if __name__ == "__main__":
    main()
