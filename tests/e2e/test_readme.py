"""Every example of the README runs as printed, against a running stack (its ports apart)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import BIN, Stack

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [(match[1], match[2]) for match in BLOCK.finditer(README.read_text())]


def test_the_readme_has_all_the_doors() -> None:
    text = "\n".join(code for _, code in EXAMPLES)
    for door in (
        "grpcurl",
        "buf curl",
        "Client(",
        "AsyncClient(",
        "curl -sN",
        "OpenAI(",
        "InferenceClient(",
        "/generate",
    ):
        assert door in text


@pytest.mark.parametrize("example", range(len(EXAMPLES)), ids=lambda at: EXAMPLES[at][1].strip().splitlines()[0][:48])
def test_example_runs(stack: Stack, example: int) -> None:
    language, code = EXAMPLES[example]
    rest = stack.rest.removeprefix("http://")
    for written, real in (("localhost:50051", stack.grpc), ("localhost:8080", rest), ("127.0.0.1:8080", rest)):
        code = code.replace(written, real)
    command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip() or "InvalidArgument" in result.stderr
