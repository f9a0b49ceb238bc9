"""Rules of the house a machine can keep: import layers, who reads the environment, no state in modules, file sizes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "service/tokenwire_service",
    ROOT / "gateway_openai/tokenwire_gateway",
    ROOT / "clients/python/tokenwire_client",
]
MAX_LINES = 400


def python_files() -> Iterator[Path]:
    for source in SOURCES:
        yield from sorted(source.rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_import_layers_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--config", str(ROOT / ".importlinter"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", list(python_files()), ids=relative)
def test_only_config_and_cli_read_the_environment(path: Path) -> None:
    if path.name in {"config.py", "cli.py"}:
        return
    reads = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    ]
    assert not reads, f"{relative(path)} reads the environment at lines {reads}; pass the value from config or cli"


@pytest.mark.parametrize("path", list(python_files()), ids=relative)
def test_no_mutable_state_in_modules(path: Path) -> None:
    found = [node.lineno for node in ast.parse(path.read_text()).body if _is_mutable_state(node)]
    assert not found, f"{relative(path)} holds mutable module state at lines {found}; annotate constants as Mapping"


def _is_mutable_state(node: ast.stmt) -> bool:
    """A module-level list, dict or set, unless its annotation keeps the type checker from letting anyone change it."""
    literal = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    if isinstance(node, ast.AnnAssign):
        read_only = ("Mapping", "Sequence", "Collection", "Final[Mapping", "Final[Sequence")
        return isinstance(node.value, literal) and not ast.unparse(node.annotation).startswith(read_only)
    if isinstance(node, ast.Assign):
        is_all = any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        return isinstance(node.value, literal) and not is_all
    return False


@pytest.mark.parametrize("path", list(python_files()), ids=relative)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines: what is it really two of?"


@pytest.mark.parametrize("path", list(python_files()), ids=relative)
def test_nothing_unpickles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & set(names), (
                f"{relative(path)}:{node.lineno}"
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "pickle.loads", "pickle.load"}, f"{relative(path)}:{node.lineno}"


def test_the_engine_side_starts_with_the_packages_of_a_gpu_image() -> None:
    """It must import where OpenTelemetry, the web framework, prometheus and the CLI library are not installed."""
    blocked = ("opentelemetry", "fastapi", "starlette", "prometheus_client", "typer", "uvicorn", "openai", "llguidance")
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import tokenwire_service.engine.process, tokenwire_service.runner, tokenwire_service.models\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
