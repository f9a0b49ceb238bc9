"""What a benchmark is to do, checked and complete."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tokenwire_service.errors import ConfigError

KINDS = ("sharegpt-like", "fixed", "shared-prefix")
APIS = ("completions", "chat")
MAX_TOKENS = 1_000_000

T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True)
class Workload:
    """Which prompts and how long answers. Token counts are means for `sharegpt-like`, and exact wishes otherwise."""

    kind: str = "sharegpt-like"
    prompt_tokens: int = 160
    """Without the shared prefix."""
    output_tokens: int = 128
    prefix_tokens: int = 1000
    """Of `shared-prefix`: what every prompt but the misses begins with."""
    prefix_share: float = 0.9
    """Of `shared-prefix`: share of the requests that begin with it; the others have a beginning of their own."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The server, and how to speak to it."""

    target: str = "localhost:50051"
    """HOST:PORT for gRPC, http:// or https:// for OpenAI's REST."""
    api: str = "completions"
    model: str = ""
    """Empty: the server's own."""
    api_key: str = ""
    tls: bool = False
    tls_ca_path: str = ""
    timeout_s: float = 600.0
    """Of one request."""

    @property
    def rest(self) -> bool:
        return self.target.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Slo:
    """What a user would call good; infinite when nothing was said."""

    ttft_s: float = math.inf
    itl_s: float = math.inf

    @property
    def given(self) -> bool:
        return math.isfinite(self.ttft_s) or math.isfinite(self.itl_s)


@dataclass(frozen=True, slots=True)
class Load:
    """How requests come: at `rate` a second, whatever becomes of them, or always `concurrency` at once."""

    rate: float = 0.0
    concurrency: int = 0

    @property
    def label(self) -> str:
        return f"{self.rate:g} requests/s" if self.rate else f"{self.concurrency} at once"

    @property
    def value(self) -> float:
        return self.rate or float(self.concurrency)


@dataclass(frozen=True, slots=True)
class Settings:
    """One benchmark: each load in turn."""

    endpoint: Endpoint
    workload: Workload
    loads: tuple[Load, ...]
    slo: Slo = Slo()
    duration_s: float = 30.0
    """Requests begin during this time; those under way then are waited for."""
    max_requests: int = 0
    """0: as many as the duration brings."""
    ignore_eos: bool = True

    def validate(self) -> Settings:
        """Raises ConfigError naming the flag."""
        workload, endpoint = self.workload, self.endpoint
        _one_of("--workload", workload.kind, KINDS)
        _one_of("--api", endpoint.api, APIS)
        for flag, count in (("--prompt-tokens", workload.prompt_tokens), ("--output-tokens", workload.output_tokens)):
            _between(flag, count, 1, MAX_TOKENS)
        _between("--prefix-tokens", workload.prefix_tokens, 1, MAX_TOKENS)
        _between("--prefix-share", workload.prefix_share, 0.0, 1.0)
        _between("--duration", self.duration_s, 0.1, 86_400)
        _between("--requests", self.max_requests, 0, 10_000_000)
        _between("--timeout", endpoint.timeout_s, 0.1, 86_400)
        if not self.loads:
            raise ConfigError("--rate or --concurrency needs at least one number")
        for load in self.loads:
            _between("--rate", load.rate, 0.0 if load.concurrency else 1e-3, 100_000)
            _between("--concurrency", load.concurrency, 0, 65_536)
        if min(self.slo.ttft_s, self.slo.itl_s) <= 0:
            raise ConfigError("--slo-ttft-ms and --slo-itl-ms must be > 0")
        if not endpoint.rest and "://" in endpoint.target:
            raise ConfigError(f"--target {endpoint.target}: give HOST:PORT for gRPC, or http:// or https:// for REST")
        if endpoint.tls and endpoint.rest:
            raise ConfigError("--tls is for gRPC; over REST give an https:// target")
        return self


def loads_of(rates: str, concurrencies: str) -> tuple[Load, ...]:
    """From the flags' comma-separated numbers, of which only one may be given; one request a second by default."""
    if rates and concurrencies:
        raise ConfigError("--rate and --concurrency exclude each other: requests come by the clock, or one for another")
    if concurrencies:
        return tuple(Load(concurrency=_number("--concurrency", part, int)) for part in concurrencies.split(","))
    return tuple(Load(rate=_number("--rate", part, float)) for part in (rates or "1").split(","))


def _number(flag: str, text: str, kind: Callable[[str], T]) -> T:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{flag} {text!r}: give a number, or several with commas between them") from None


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{flag} {value!r}: choose one of {', '.join(known)}")


def _between(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{flag} must be in {low:g}..{high:g}")
