"""The `tokenwire` command. Flags and environment variables come from the fields of the configuration's dataclasses.

What takes long to import (torch, transformers, grpc) is imported inside the commands that need it.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn, get_type_hints

import typer
from typer.core import TyperCommand

from tokenwire_service.config import OPENMP_SPIN, Config, EngineConfig, FrontendConfig, ModelConfig
from tokenwire_service.errors import ConfigError, StartupError
from tokenwire_service.launch import GatewayConfig, launch
from tokenwire_service.observability.logging import configure_logging

log = logging.getLogger(__name__)

PANELS = MappingProxyType(
    {ModelConfig: "Model", EngineConfig: "Engine", FrontendConfig: "Frontend", GatewayConfig: "Gateway"}
)
NO_RENAMES: Mapping[str, str] = MappingProxyType({})
# In `launch` --port is the port of the REST gateway, as in TGI's command line.
LAUNCH_RENAMES: Mapping[str, str] = MappingProxyType({"port": "grpc_port"})

_ONE_BATCH = "not needed: prompts are computed in chunks beside running sequences; see --max-batch-prefill-tokens"
_ROPE = "position scaling is read from the model's own config.json"
_NO_NGROK = "not supported; put a tunnel or a reverse proxy in front of the port"
_SHARDS = "not needed: ranks of one machine find each other; see --num-shard"
TGI_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "--waiting-served-ratio": _ONE_BATCH,
        "--max-waiting-tokens": _ONE_BATCH,
        "--sharded": "use --num-shard N",
        "--cuda-graphs": "not needed: the engine chooses what it captures",
        "--disable-custom-kernels": "not needed: kernels are chosen by the device",
        "--cuda-memory-fraction": "use --kv-cache-memory-fraction, the KV cache's share of free memory",
        "--lora-adapters": "not supported yet",
        "--rope-scaling": _ROPE,
        "--rope-factor": _ROPE,
        "--watermark-gamma": "watermarking is not supported",
        "--watermark-delta": "watermarking is not supported",
        "--weights-cache-override": "use --huggingface-hub-cache, or give --model-id a directory",
        "--tokenizer-name": "the tokenizer is read from the model; give --model-id a directory to replace it",
        "--shard-uds-path": _SHARDS,
        "--master-addr": _SHARDS,
        "--master-port": _SHARDS,
        "--disable-grammar-support": "not needed: requests with an output constraint are refused by name",
        "--enable-prefill-logprobs": "not needed: prompt log-probabilities are always on offer",
        "--usage-stats": "not needed: nothing is ever reported home",
        "--disable-usage-stats": "not needed: nothing is ever reported home",
        "--disable-crash-reports": "not needed: nothing is ever reported home",
        "--env": "use the command: tokenwire env",
        "--ngrok": _NO_NGROK,
        "--ngrok-authtoken": _NO_NGROK,
        "--ngrok-edge": _NO_NGROK,
        "--grpc-port": "with tokenwire serve, --port is the gRPC port; --grpc-port belongs to tokenwire launch",
    }
)

# Environment variables of these names mean something else to other programs.
COMMON_NAMES = frozenset({"--env", "--grpc-port", "--ngrok-authtoken"})

app = typer.Typer(
    name="tokenwire",
    help="Text generation inference, gRPC first.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain text: boxes cut long flag names short.
    rich_markup_mode=None,
)


class ServerCommand(TyperCommand):
    """Groups its many flags by section in --help; says what to use for a TGI flag that has no meaning here."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            hint = TGI_HINTS.get(getattr(error, "option_name", None) or "")
            if hint:
                error.message = f"{error.message}: {hint}."  # type: ignore[attr-defined]
            raise


def main() -> None:
    """The console script."""
    app()


@contextmanager
def reported() -> Iterator[None]:
    """Turn a failed start into one line on stderr: exit code 2 for configuration, 1 for everything else."""
    try:
        yield
    except StartupError as error:
        _fail(str(error), 2 if isinstance(error, ConfigError) else 1)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"tokenwire: error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def _option(field: dataclasses.Field[Any], kind: Any, name: str, panel: str) -> inspect.Parameter:
    """One flag (`--name`, aliases) with its environment variable, help and default, from one field."""
    renamed = name != field.name
    flag = f"--{name.replace('_', '-')}"
    aliases = () if renamed else field.metadata["aliases"]
    env = name.upper() if renamed else (field.metadata["env"] or name.upper())
    variables = [env, *(alias[2:].replace("-", "_").upper() for alias in aliases if alias.startswith("--"))]
    choices = field.metadata["choices"]
    option = typer.Option(
        *([f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag, *aliases]),
        help=field.metadata["help"],
        envvar=env if set(variables) == {env} else list(dict.fromkeys(variables)),
        rich_help_panel=panel,
        show_default=_shown(field.default),
    )
    taken: Any = Literal[choices] if choices else list[str] if kind == tuple[str, ...] else kind
    annotation = Annotated[taken, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def _shown(default: Any) -> bool | str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return True if isinstance(default, int | float) else default or "empty"


def _command(
    run: Callable[..., int], sections: tuple[type, ...], renames: Mapping[str, str], doc: str
) -> Callable[..., None]:
    """A command whose options are the fields of `sections`; calls `run` with one instance of each."""
    plans: list[tuple[type, dict[str, str]]] = []
    parameters: list[inspect.Parameter] = []
    for section in sections:
        hints = get_type_hints(section)
        change = renames if section is FrontendConfig else NO_RENAMES
        names = {field.name: change.get(field.name, field.name) for field in dataclasses.fields(section)}
        plans.append((section, names))
        parameters += [
            _option(field, hints[field.name], names[field.name], PANELS[section])
            for field in dataclasses.fields(section)
        ]

    def command(**values: Any) -> None:
        with reported():
            frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            parts = [section(**{own: frozen[name] for own, name in names.items()}) for section, names in plans]
            code = run(*parts)
        raise typer.Exit(code)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = doc
    return command


def _prepare(model: ModelConfig, engine: EngineConfig, frontend: FrontendConfig, port_flag: str = "--port") -> Config:
    config = Config(model, engine, frontend).validate(port_flag)
    configure_logging(frontend.log_level, frontend.json_output)
    # gRPC's handlers for fork() are of no use to processes that only fork to exec, and complain on stderr.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    # Its C core writes to stderr past our log; what matters of that we say ourselves.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault(*OPENMP_SPIN)
    for name, hint in TGI_HINTS.items():
        variable = name[2:].replace("-", "_").upper()
        if os.environ.get(variable) and name not in COMMON_NAMES and not hint.startswith("not needed"):
            log.warning("the environment variable %s has no effect: %s", variable, hint)
    return config


def _serve(model: ModelConfig, engine: EngineConfig, frontend: FrontendConfig) -> int:
    config = _prepare(model, engine, frontend)
    from tokenwire_service.app.main import run_service

    return run_service(config, os.environ)


def _launch(model: ModelConfig, engine: EngineConfig, frontend: FrontendConfig, gateway: GatewayConfig) -> int:
    config = _prepare(model, engine, frontend, "--grpc-port")
    return launch(config, gateway.validate(frontend), os.environ)


SERVE_DOC = "Serve a model over gRPC. Every flag is also an environment variable; a flag wins over it."
LAUNCH_DOC = "Serve a model over gRPC and, through the gateway, over REST: OpenAI's API and TGI's."
app.command("serve", cls=ServerCommand)(
    _command(_serve, (ModelConfig, EngineConfig, FrontendConfig), NO_RENAMES, SERVE_DOC)
)
app.command("launch", cls=ServerCommand)(
    _command(_launch, (ModelConfig, EngineConfig, FrontendConfig, GatewayConfig), LAUNCH_RENAMES, LAUNCH_DOC)
)


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show_version:
        typer.echo(f"tokenwire {version('tokenwire-service')}")
        raise typer.Exit


@app.command()
def env() -> None:
    """Show versions and devices, for bug reports."""
    from tokenwire_service.app.environment import describe_environment

    for name, value in describe_environment():
        typer.echo(f"{name:<26}{value}")


@app.command()
def download(
    model_id: Annotated[str, typer.Argument(metavar="MODEL", help="As --model-id of serve.")],
    revision: Annotated[str, typer.Option(envvar="REVISION", help="Hub branch, tag or commit.")] = "",
    huggingface_hub_cache: Annotated[
        str, typer.Option(envvar="HUGGINGFACE_HUB_CACHE", help="Directory for downloads.")
    ] = "",
    hf_token: Annotated[str, typer.Option(envvar="HF_TOKEN", help="Token for gated or private repositories.")] = "",
) -> None:
    """Fetch a model's files, and print where they are."""
    with reported():
        config = ModelConfig(
            model_id=model_id, revision=revision, huggingface_hub_cache=huggingface_hub_cache, hf_token=hf_token
        )
        configure_logging("info", json_output=False)
        from tokenwire_service.app.main import download_model

        typer.echo(download_model(config, os.environ))


@app.command()
def bench(
    target: Annotated[
        str, typer.Option(help="HOST:PORT of a gRPC server, or http(s):// of any server with OpenAI's REST.")
    ] = "localhost:50051",
    api: Annotated[Literal["completions", "chat"], typer.Option(help="What to ask for.")] = "completions",
    model: Annotated[str, typer.Option(help="As the server names it; empty takes its own.")] = "",
    api_key: Annotated[str, typer.Option(envvar="API_KEY", help="Bearer token.", show_default=False)] = "",
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS to a gRPC server.")] = False,
    tls_ca_path: Annotated[str, typer.Option(help="PEM certificates to trust; the system's when empty.")] = "",
    rate: Annotated[
        str,
        typer.Option(help="Requests a second, Poisson arrivals; several with commas between, run in turn. 1 if unset."),
    ] = "",
    concurrency: Annotated[
        str, typer.Option(help="Instead of --rate: always this many requests at once; several with commas between.")
    ] = "",
    workload: Annotated[
        Literal["sharegpt-like", "fixed", "shared-prefix"], typer.Option(help="Which prompts, and how long answers.")
    ] = "sharegpt-like",
    prompt_tokens: Annotated[
        int, typer.Option(help="Prompt tokens, shared prefix aside; the mean of sharegpt-like.")
    ] = 160,
    output_tokens: Annotated[int, typer.Option(help="Tokens of an answer; the mean of sharegpt-like.")] = 128,
    prefix_tokens: Annotated[int, typer.Option(help="Of shared-prefix: tokens that prompts begin with.")] = 1000,
    prefix_share: Annotated[float, typer.Option(help="Of shared-prefix: share of requests that begin so.")] = 0.9,
    duration: Annotated[float, typer.Option(help="Seconds during which requests begin, for each load.")] = 30.0,
    requests: Annotated[int, typer.Option(help="Requests for each load at most; 0 leaves it to --duration.")] = 0,
    slo_ttft_ms: Annotated[float, typer.Option(help="Good requests have a first token in this time.")] = math.inf,
    slo_itl_ms: Annotated[float, typer.Option(help="Good requests take this long for a token on average.")] = math.inf,
    ignore_eos: Annotated[
        bool, typer.Option(help="Generate to the full length, whatever the model would end with.")
    ] = True,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Same seed, same requests at the same times.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write charts to this SVG file.", show_default=False)] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.", show_default=False)] = None,
) -> None:
    """Put load on a running server, and show latencies, throughput and goodput."""
    from tokenwire_service.bench_command.settings import Endpoint, Settings, Slo, Workload, loads_of

    with reported():
        settings = Settings(
            Endpoint(target, api, model, api_key, tls, tls_ca_path, timeout),
            Workload(workload, prompt_tokens, output_tokens, prefix_tokens, prefix_share, seed),
            loads_of(rate, concurrency),
            Slo(slo_ttft_ms / 1000, slo_itl_ms / 1000),
            duration,
            requests,
            ignore_eos,
        ).validate()
        # gRPC's C core would write to stderr past us.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from tokenwire_service.bench_command.command import run_bench

        raise typer.Exit(run_bench(settings, plot, json))
