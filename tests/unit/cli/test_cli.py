"""The command line: parsing, precedence and errors, in this process; nothing is started."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from typer.testing import CliRunner

import tokenwire_service.cli as cli
from tokenwire_service.config import Config, EngineConfig, FrontendConfig, ModelConfig
from tokenwire_service.errors import ModelResolutionError
from tokenwire_service.launch import GatewayConfig

SECTIONS = (ModelConfig, EngineConfig, FrontendConfig, GatewayConfig)
Invoke = Callable[..., Any]


class Started(list[tuple[Config, GatewayConfig | None]]):
    """What would have been started."""

    @property
    def config(self) -> Config:
        (config, _), *_ = self
        return config


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    calls = Started()

    def serve(model: ModelConfig, engine: EngineConfig, frontend: FrontendConfig) -> int:
        calls.append((Config(model, engine, frontend).validate(), None))
        return 0

    def launch(config: Config, gateway: GatewayConfig, environ: Mapping[str, str]) -> int:
        calls.append((config, gateway))
        return 0

    app = type(sys)("tokenwire_service.app.main")
    app.run_service = lambda config, environ: serve(config.model, config.engine, config.frontend)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tokenwire_service.app.main", app)
    monkeypatch.setattr(cli, "launch", launch)
    monkeypatch.setattr(cli, "configure_logging", lambda level, json_output: None)
    return calls


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs `tokenwire ARGUMENTS` in an environment that holds nothing but what is given."""
    for section in SECTIONS:
        for field in dataclasses.fields(section):
            monkeypatch.delenv(field.metadata["env"] or field.name.upper(), raising=False)
    monkeypatch.delenv("GRPC_PORT", raising=False)

    def run(*arguments: str, **environ: str) -> Any:
        return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"} | environ).invoke(cli.app, arguments)

    return run


def changed(field: dataclasses.Field[Any]) -> tuple[str, Any]:
    """Another value than the default: as typed, and as parsed."""
    if field.metadata["choices"]:
        other = next(choice for choice in field.metadata["choices"] if choice != field.default)
        return other, other
    if isinstance(field.default, int):
        return str(field.default + 1), field.default + 1
    if isinstance(field.default, float):
        return str(field.default + 0.5), field.default + 0.5
    return "some-value", "some-value"


def serve_fields() -> list[Any]:
    return [
        pytest.param(section, field, id=field.name) for section in SECTIONS[:3] for field in dataclasses.fields(section)
    ]


@pytest.mark.parametrize(("section", "field"), serve_fields())
def test_every_field_has_a_flag_a_variable_and_help(
    section: type, field: dataclasses.Field[Any], invoke: Invoke
) -> None:
    lines = invoke("serve", "--help").stdout.splitlines()
    flag = f"--{field.name.replace('_', '-')}"
    start = next(
        number for number, line in enumerate(lines) if line.startswith("  -") and flag in re.split(r"[ ,]+", line)
    )
    entry = " ".join(" ".join(lines[start : start + 7]).split())
    assert f"[env var: {field.metadata['env'] or field.name.upper()}" in entry
    assert field.metadata["help"].split()[0] in entry
    for alias in field.metadata["aliases"]:
        assert alias in entry


@pytest.mark.parametrize(("section", "field"), serve_fields())
def test_every_flag_and_variable_sets_its_field(
    section: type, field: dataclasses.Field[Any], invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(cli, "_prepare", lambda *parts: seen.append(parts) or _stop())

    def value(*arguments: str, **environ: str) -> Any:
        seen.clear()
        invoke("serve", *arguments, **environ)
        ((model, engine, frontend),) = seen
        return getattr({ModelConfig: model, EngineConfig: engine, FrontendConfig: frontend}[section], field.name)

    flag = f"--{field.name.replace('_', '-')}"
    variable = field.metadata["env"] or field.name.upper()
    assert value() == field.default
    assert value(**{variable: ""}) == field.default
    if isinstance(field.default, bool):
        assert value(f"--no-{flag[2:]}") is False
        assert value(flag) is True
        assert value(**{variable: "true"}) is True
        assert value(**{variable: "0"}) is False
        assert value(f"--no-{flag[2:]}", **{variable: "1"}) is False
        return
    typed, parsed = changed(field)
    default = str(field.default)
    assert value(f"{flag}={typed}") == parsed
    assert value(**{variable: typed}) == parsed
    assert value(f"{flag}={default}", **{variable: typed}) == field.default
    for alias in field.metadata["aliases"]:
        assert value(alias, typed) == parsed


def test_tgis_older_name_of_the_longest_prompt_is_a_variable_too(invoke: Invoke, started: Started) -> None:
    assert invoke("serve", MAX_INPUT_LENGTH="77").exit_code == 0
    assert started.config.frontend.max_input_tokens == 77


def _stop() -> Any:
    raise ModelResolutionError("stopped by the test")


def test_tgis_line_works(invoke: Invoke, started: Started) -> None:
    result = invoke("launch", "--model-id", "org/name", "--port", "80", "--max-input-length", "100", "--num-shard", "1")
    assert result.exit_code == 0, result.output
    ((config, gateway),) = started
    assert config.model.model_id == "org/name"
    assert config.frontend.max_input_tokens == 100
    assert config.frontend.port == 50051
    assert gateway is not None
    assert gateway.port == 80


def test_launch_has_two_ports_and_takes_them_from_the_environment(invoke: Invoke, started: Started) -> None:
    result = invoke(
        "launch", "--cors-allow-origin", "https://a", "--cors-allow-origin", "https://b", PORT="81", GRPC_PORT="82"
    )
    assert result.exit_code == 0, result.output
    ((config, gateway),) = started
    assert config.frontend.port == 82
    assert gateway == GatewayConfig(port=81, cors_allow_origin=("https://a", "https://b"))


def test_the_machines_name_is_not_the_address_to_bind(invoke: Invoke, started: Started) -> None:
    assert invoke("serve", HOSTNAME="some-container").exit_code == 0
    assert started.config.frontend.hostname == "0.0.0.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "99999"], "tokenwire: error: --port must be in 0..65535"),
        (["serve", "--trust-remote-code"], "tokenwire: error: --trust-remote-code: code from"),
        (["serve", "--num-shard", "1025"], "tokenwire: error: --num-shard must be in 0..1024"),
        (["serve", "--replicas", "0"], "tokenwire: error: --replicas must be >= 1"),
        (["launch", "--port", "7", "--grpc-port", "7"], "tokenwire: error: --port and --grpc-port are both 7"),
        (["launch", "--port", "0"], "tokenwire: error: --port must be in 1..65535"),
        (["launch", "--grpc-port", "99999"], "tokenwire: error: --grpc-port must be in 0..65535"),
        (["serve", "--max-default-tokens", "-1"], "tokenwire: error: --max-default-tokens must be >= 0"),
        (["serve", "--max-queue-tokens", "-1"], "tokenwire: error: --max-queue-tokens must be >= 0"),
        (["serve", "--max-top-n-tokens", "-1"], "tokenwire: error: --max-top-n-tokens must be >= 0"),
        (["serve", "--payload-limit", "2147483648"], "tokenwire: error: --max-message-bytes must be <= 2147483647"),
        (["serve", "--lame-duck-s", "-1"], "tokenwire: error: --lame-duck-s must be >= 0"),
        (["serve", "--speculate", "17"], "tokenwire: error: --speculate must be in 0..16 (0 is off)"),
        (["serve", "--speculate-max-batch", "0"], "tokenwire: error: --speculate-max-batch must be >= 1"),
        (["serve", "--max-decode-slowdown", "1"], "tokenwire: error: --max-decode-slowdown 1: use more than 1, or 0"),
        (["serve", "--step-timeout-s", "inf"], "tokenwire: error: --step-timeout-s must be >= 0 and finite"),
        (
            ["serve", "--graceful-termination-timeout", "nan"],
            "tokenwire: error: --graceful-termination-timeout-s must be >= 0 and finite",
        ),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, invoke: Invoke, started: Started
) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(message)
    assert not started


@pytest.mark.parametrize(
    ("arguments", "environ", "parts"),
    [
        (["--port", "http"], {}, ["--port", "valid integer"]),
        ([], {"MAX_TOTAL_TOKENS": "many"}, ["MAX_TOTAL_TOKENS", "valid integer"]),
        (["--log-level", "loud"], {}, ["--log-level", "'info'"]),
        (["--dtype", "float8"], {}, ["--dtype", "'bfloat16'"]),
        (["--no-such-flag"], {}, ["No such option: --no-such-flag"]),
        (["--waiting-served-ratio", "1.2"], {}, ["No such option: --waiting-served-ratio", "not needed"]),
        (["--cuda-graphs=1,2"], {}, ["No such option: --cuda-graphs", "not needed"]),
        (["--sharded", "true"], {}, ["No such option: --sharded", "use --num-shard"]),
        (["--cuda-memory-fraction", "0.5"], {}, ["use --kv-cache-memory-fraction"]),
        (["--grpc-port", "1"], {}, ["belongs to tokenwire launch"]),
    ],
)
def test_what_cannot_be_parsed_is_named_with_the_remedy(
    arguments: list[str], environ: dict[str, str], parts: list[str], invoke: Invoke, started: Started
) -> None:
    result = invoke("serve", *arguments, **environ)
    assert result.exit_code == 2
    for part in parts:
        assert part in result.stderr
    assert not started


def test_no_hint_speaks_of_a_flag_that_exists(invoke: Invoke) -> None:
    own = {f"--{field.name.replace('_', '-')}" for section in SECTIONS for field in dataclasses.fields(section)}
    assert not own & set(cli.TGI_HINTS)


def test_a_failed_start_is_one_line_and_exit_code_1(
    invoke: Invoke, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: Config, environ: Mapping[str, str]) -> int:
        raise ModelResolutionError("--model-id org/none:\n  no such model")

    monkeypatch.setattr(sys.modules["tokenwire_service.app.main"], "run_service", fail)
    result = invoke("serve")
    assert result.exit_code == 1
    assert result.stderr == "tokenwire: error: --model-id org/none: no such model\n"


def test_a_variable_of_tgi_without_effect_is_told(
    invoke: Invoke, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    invoke("serve", ROPE_SCALING="linear", MAX_WAITING_TOKENS="20")
    assert [record.getMessage() for record in caplog.records] == [
        "the environment variable ROPE_SCALING has no effect: position scaling is read from the model's own config.json"
    ]


def test_version(invoke: Invoke) -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("tokenwire 0.")


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "grpc", "numpy", "prometheus_client", "opentelemetry"}
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from tokenwire_service.cli import app\n"
        "result = CliRunner().invoke(app, ['serve', '--help'])\n"
        f"sys.exit(str(sorted({heavy!r} & set(sys.modules))) if {heavy!r} & set(sys.modules) else result.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0, done.stderr
