"""The one frozen configuration: parsed once by the CLI, passed down, never read from the environment elsewhere.

Each field carries its own help text; `cli.py` derives flags (`--max-total-tokens`) and environment variables
(`MAX_TOTAL_TOKENS`) from these fields, so that there is one list. Names are TGI's where TGI has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tokenwire_service.errors import ConfigError

EMBEDDED_MODEL_ID = "smollm2-135m-instruct"
DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
OPENMP_SPIN = ("GOMP_SPINCOUNT", "3000")
"""What the engine finds in its environment unless the operator set it: how long OpenMP threads spin at a barrier. The
library's own default, about a millisecond, makes a step 3 to 10 times slower whenever anything else wants a core."""
MAX_MESSAGE_BYTES = 2**31 - 1
"""What gRPC can be told; protobuf takes no larger message either."""
MAX_SPECULATE = 16
MAX_SHARDS = 1024
KV_CACHE_DTYPES = (*DTYPES, "fp8_e4m3fn")
QUANTIZATIONS = ("none", "int8")
"""Values `--quantize` takes."""


def flag(
    default: Any, help: str, *, aliases: tuple[str, ...] = (), env: str | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A configuration field: default, help text, other flag names, environment variable when not the field's name."""
    metadata = {"help": help, "aliases": aliases, "env": env, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, and how it is held."""

    model_id: str = flag(
        EMBEDDED_MODEL_ID,
        "What to serve: a Hub id (org/name), a local directory with safetensors, a .gguf file, or "
        f"'{EMBEDDED_MODEL_ID}', the small model that needs no Hub.",
    )
    served_model_name: str = flag("", "Name callers use for the model; the model id when empty.")
    revision: str = flag("", "Hub branch, tag or commit; the default branch when empty.")
    dtype: str = flag(
        "auto",
        "Type weights are held in; 'auto' is bfloat16 on a GPU and on a CPU that multiplies it (AVX512_BF16), float16 "
        "on another CPU. A CPU computes in float32; where it multiplies bfloat16 as such, it does for that type.",
        choices=DTYPES,
    )
    trust_remote_code: bool = flag(False, "Refused when true: no code from a model repository is ever run.")
    huggingface_hub_cache: str = flag("", "Directory for downloads; huggingface_hub's own default when empty.")
    hf_token: str = flag("", "Token for gated or private repositories; huggingface_hub's stored login when empty.")
    tokenizer_config_path: str = flag(
        "", "A tokenizer_config.json or .jinja file whose chat template replaces the model's."
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine runs, and limits of the batch, the cache and a sequence."""

    num_shard: int = flag(
        0,
        "Tensor-parallel ranks: the model is cut over so many GPUs, or parts of the CPU; 0 takes one for each visible "
        "GPU, 1 without a GPU, and under torchrun its number of processes.",
    )
    quantize: str = flag(
        "none",
        "Quantize weights while loading: int8 (CPU; 8 bits, a scale for each 32 weights); none holds them in --dtype.",
        choices=QUANTIZATIONS,
    )
    kv_cache_dtype: str = flag(
        "auto",
        "Type keys and values are kept in; 'auto' is --dtype, beside --quantize too. fp8_e4m3fn halves a GPU's cache.",
        choices=KV_CACHE_DTYPES,
    )
    max_total_tokens: int = flag(
        0, "Longest sequence, prompt + generated; 0 takes the model's context length (8192 at most on CPU)."
    )
    max_batch_prefill_tokens: int = flag(
        0, "Tokens computed in one step at most (longer prompts are chunked); 0 picks 512 on CPU, 8192 on GPU."
    )
    max_decode_slowdown: float = flag(
        1.8,
        "How many times as long as without it a step may take in which others decode, when it computes some of a "
        "prompt longer than --max-batch-prefill-tokens: small keeps the others' pace, large brings such prompts to "
        "their first token sooner; 0 is no bound.",
    )
    max_batch_size: int = flag(0, "Sequences running at once; 0 picks 64 on CPU, 256 on GPU.")
    max_batch_total_tokens: int = flag(0, "Tokens the KV cache holds; 0 sizes it from free memory.")
    kv_cache_memory_fraction: float = flag(
        0.4, "Share of the memory that is free after loading given to the KV cache, when sized from memory."
    )
    block_size: int = flag(32, "Tokens in one KV block: 16, 32, 64 or 128.")
    prefix_caching: bool = flag(True, "Reuse the KV blocks of equal prefixes.")
    num_threads: int = flag(0, "CPU threads for the engine; 0 takes the cores this process may use.")
    step_timeout_s: float = flag(
        0.0,
        "An engine with work that makes no progress for this long is taken for hung and restarted; 0 picks 8, or 60 on "
        "a CPU without native kernels.",
    )
    device: str = flag("auto", "Where the model runs; 'auto' takes a GPU when there is one.", choices=DEVICES)
    speculate: int = flag(
        0, "Tokens guessed ahead at most, by what the text said before, and verified in one step; 0 is off."
    )
    speculate_max_batch: int = flag(4, "No guesses while more sequences run than this.")


@dataclass(frozen=True, slots=True)
class FrontendConfig:
    """The door: where it listens, what it admits, what it tells."""

    hostname: str = flag("0.0.0.0", "Address to bind.", env="TOKENWIRE_HOSTNAME")
    port: int = flag(50051, "gRPC port.", aliases=("-p",))
    replicas: int = flag(
        1,
        "Engines behind this frontend, each with the whole model on --num-shard GPUs of its own, or on its part of the "
        "CPU's cores and memory.",
    )
    admin_port: int = flag(
        0,
        "Port of the operators' listener (Drain, AbortRequests, FlushCache, channelz) on 127.0.0.1; 0 leaves it off.",
    )
    api_key: str = flag("", "Bearer token every call must carry; no check when empty. Health and reflection stay open.")
    tls_cert_path: str = flag("", "PEM certificate chain; with --tls-key-path the port speaks TLS.")
    tls_key_path: str = flag("", "PEM private key.")
    tls_client_ca_path: str = flag("", "PEM CA; when set, clients must present a certificate it signed.")
    reflection: bool = flag(True, "Serve gRPC reflection.")
    max_concurrent_requests: int = flag(128, "Requests in flight at most; more are refused with QUEUE_FULL.")
    max_queue_tokens: int = flag(0, "Prompt tokens waiting at most; 0 picks 32 times the longest sequence.")
    max_input_tokens: int = flag(0, "Longest prompt; 0 takes max_total_tokens - 1.", aliases=("--max-input-length",))
    max_default_tokens: int = flag(0, "max_tokens of a request that sets none; 0 takes what the context leaves.")
    max_best_of: int = flag(8, "Largest candidate_count and best_of.")
    max_stop_sequences: int = flag(16, "Stop strings in one request at most.")
    max_stop_length: int = flag(1024, "Bytes of one stop string at most.")
    max_top_n_tokens: int = flag(20, "Largest logprobs.top_n.")
    max_message_bytes: int = flag(
        32 * 1024 * 1024, "Largest gRPC message taken.", aliases=("--payload-limit",), env="PAYLOAD_LIMIT"
    )
    max_time_limit_s: float = flag(600.0, "Deadline of a call that sets none; longer ones are cut to it.")
    validation_workers: int = flag(2, "Threads that tokenize and render templates.")
    write_stall_timeout_s: float = flag(60.0, "A stream whose reader takes nothing for this long is ended.")
    graceful_termination_timeout_s: float = flag(
        90.0,
        "Seconds streams may go on after SIGTERM.",
        aliases=("--graceful-termination-timeout",),
        env="GRACEFUL_TERMINATION_TIMEOUT",
    )
    lame_duck_s: float = flag(
        0.0, "Seconds new calls are still taken after SIGTERM while load balancers notice NOT_SERVING."
    )
    prometheus_port: int = flag(
        9000, "Port of the Prometheus metrics page, bound to --prometheus-hostname; 0 leaves it off."
    )
    prometheus_hostname: str = flag("127.0.0.1", "Address of the metrics page.")
    json_output: bool = flag(False, "Log one JSON object a line.")
    log_level: str = flag("info", "debug, info, warning or error.", choices=("debug", "info", "warning", "error"))
    otlp_endpoint: str = flag(
        "", "OTLP gRPC collector for traces; the standard OTEL_EXPORTER_OTLP_* variables work too."
    )
    otlp_service_name: str = flag("tokenwire", "service.name of the traces.")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything, frozen."""

    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)

    def validate(self, port_flag: str = "--port") -> Config:
        """Check ranges and combinations that need no model. Raises ConfigError naming the flag.

        `port_flag` is what the command at hand calls the flag for the gRPC port.
        """
        _check_model(self.model)
        _check_engine(self.engine)
        _check_frontend(self.frontend, self.engine, port_flag)
        return self


def _flag_name(field_name: str) -> str:
    return f"--{field_name.replace('_', '-')}"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_model(model: ModelConfig) -> None:
    _require(bool(model.model_id), "--model-id is empty; name a model or leave the flag out for the default")
    _require(
        not model.trust_remote_code,
        "--trust-remote-code: code from a model repository is never run; use a supported architecture",
    )
    _require(model.dtype in DTYPES, f"--dtype {model.dtype}: use one of {', '.join(DTYPES)}")


def _check_engine(engine: EngineConfig) -> None:
    _require(engine.quantize in QUANTIZATIONS, f"--quantize {engine.quantize}: use {' or '.join(QUANTIZATIONS)}")
    _require(
        engine.kv_cache_dtype in KV_CACHE_DTYPES,
        f"--kv-cache-dtype {engine.kv_cache_dtype}: use one of {', '.join(KV_CACHE_DTYPES)}",
    )
    _require(engine.device in DEVICES, f"--device {engine.device}: use one of {', '.join(DEVICES)}")
    _require(0 <= engine.num_shard <= MAX_SHARDS, f"--num-shard must be in 0..{MAX_SHARDS} (0 picks)")
    _require(engine.block_size in (16, 32, 64, 128), f"--block-size {engine.block_size}: use 16, 32, 64 or 128")
    _require(0.0 < engine.kv_cache_memory_fraction <= 1.0, "--kv-cache-memory-fraction must be in (0, 1]")
    for name in (
        "max_total_tokens",
        "max_batch_prefill_tokens",
        "max_batch_size",
        "max_batch_total_tokens",
        "num_threads",
    ):
        _require(getattr(engine, name) >= 0, f"{_flag_name(name)} must be >= 0 (0 picks a default)")
    _require(0 <= engine.speculate <= MAX_SPECULATE, f"--speculate must be in 0..{MAX_SPECULATE} (0 is off)")
    _require(engine.speculate_max_batch >= 1, "--speculate-max-batch must be >= 1; --speculate 0 is off")
    _require(
        engine.max_decode_slowdown == 0 or 1 < engine.max_decode_slowdown < math.inf,
        f"--max-decode-slowdown {engine.max_decode_slowdown:g}: use more than 1, or 0 for no bound",
    )
    _require(0 <= engine.step_timeout_s < math.inf, "--step-timeout-s must be >= 0 and finite (0 picks a default)")


def _check_frontend(frontend: FrontendConfig, engine: EngineConfig, port_flag: str) -> None:
    for name in ("port", "admin_port", "prometheus_port"):
        shown = port_flag if name == "port" else _flag_name(name)
        _require(0 <= getattr(frontend, name) <= 65535, f"{shown} must be in 0..65535")
    for name in (
        "replicas",
        "max_concurrent_requests",
        "max_best_of",
        "max_stop_sequences",
        "max_stop_length",
        "validation_workers",
        "max_message_bytes",
    ):
        _require(getattr(frontend, name) >= 1, f"{_flag_name(name)} must be >= 1")
    _require(frontend.max_message_bytes <= MAX_MESSAGE_BYTES, f"--max-message-bytes must be <= {MAX_MESSAGE_BYTES}")
    for name in ("max_queue_tokens", "max_default_tokens", "max_input_tokens"):
        _require(getattr(frontend, name) >= 0, f"{_flag_name(name)} must be >= 0 (0 picks a default)")
    _require(frontend.max_top_n_tokens >= 0, "--max-top-n-tokens must be >= 0")
    for name in ("max_time_limit_s", "write_stall_timeout_s"):
        _require(0 < getattr(frontend, name) < math.inf, f"{_flag_name(name)} must be > 0 and finite")
    for name in ("graceful_termination_timeout_s", "lame_duck_s"):
        _require(0 <= getattr(frontend, name) < math.inf, f"{_flag_name(name)} must be >= 0 and finite")
    _require(
        bool(frontend.tls_cert_path) == bool(frontend.tls_key_path), "--tls-cert-path and --tls-key-path go together"
    )
    _require(
        not frontend.tls_client_ca_path or bool(frontend.tls_cert_path), "--tls-client-ca-path needs --tls-cert-path"
    )
    total, given = engine.max_total_tokens, frontend.max_input_tokens
    _require(
        not (total and given) or given < total,
        f"--max-input-tokens {given} must be less than --max-total-tokens {total}",
    )
