"""Another implementation of gRPC as an oracle: Node's, with the proto files and no generated code of ours."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.stack import Stack

HERE = Path(__file__).parent / "node"
PROTOS = Path(__file__).resolve().parents[2] / "protos"


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not installed")
def test_grpc_js(stack: Stack, tmp_path: Path) -> None:
    for name in ("package.json", "client.js"):
        shutil.copy(HERE / name, tmp_path / name)
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=150, capture_output=True)
    result = subprocess.run(
        ["node", "client.js", stack.grpc, str(PROTOS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert "Paris" in seen["text"]
    assert seen["streamed"]["text"] == seen["text"]
    assert seen["streamed"]["events"][0] == "started"
    assert seen["streamed"]["events"][-1] == "completed"
    assert seen["cancelledCode"] == 1
    assert seen["badCode"] == 3
    assert "sampling.top_p" in seen["badDetails"]
    assert seen["tokenCount"] == 2
