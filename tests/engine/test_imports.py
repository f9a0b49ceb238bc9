"""Each side of the socket starts without what only the other side needs."""

import subprocess
import sys

import pytest

NOT_IN_THE_ENGINE = (
    "typer",
    "prometheus_client",
    "opentelemetry",
    "fastapi",
    "uvicorn",
    "jinja2",
    "uvloop",
    "grpc_health",
    "tokenwire_client",
)


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("tokenwire_service.engine.process", NOT_IN_THE_ENGINE),
        ("tokenwire_service.engine.process_client", ("torch", "numpy", "safetensors", "transformers")),
    ],
)
def test_starts_without(module: str, blocked: tuple[str, ...]) -> None:
    program = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not to be needed here")
sys.meta_path.insert(0, Block())
importlib.import_module({module!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
