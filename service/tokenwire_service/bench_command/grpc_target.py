"""tokenwire.v1 over gRPC."""

from __future__ import annotations

from typing import Any

from tokenwire_client import AsyncClient, TlsConfig, TokenwireError
from tokenwire_client.options import CommonOptions
from tokenwire_service.bench_command.settings import Endpoint
from tokenwire_service.bench_command.target import Answer
from tokenwire_service.errors import ConfigError, StartupError

REACH_TIMEOUT_S = 15.0


class GrpcTarget:
    """See Target. One channel; its streams are HTTP/2's."""

    def __init__(self, endpoint: Endpoint, *, ignore_eos: bool) -> None:
        self._endpoint = endpoint
        self._ignore_eos = ignore_eos
        self._model = endpoint.model
        tls = TlsConfig(ca=endpoint.tls_ca_path or None) if endpoint.tls or endpoint.tls_ca_path else False
        self._client = AsyncClient(
            endpoint.target, tls=tls, token=endpoint.api_key or None, timeout=endpoint.timeout_s, max_retries=0
        )

    @property
    def description(self) -> str:
        return f"{self._endpoint.target} (gRPC), {self._model}"

    async def prepare(self) -> None:
        try:
            await self._client.wait_until_ready(REACH_TIMEOUT_S)
            self._model = (await self._client.get_model(self._endpoint.model, timeout=REACH_TIMEOUT_S)).name
        except TokenwireError as error:
            raise self._unusable(error) from None
        except OSError as error:
            raise ConfigError(f"--tls-ca-path {self._endpoint.tls_ca_path}: {error.strerror}") from None

    async def count_tokens(self, text: str) -> int:
        try:
            if self._endpoint.api == "chat":
                return await self._client.count_tokens(_messages(text), model=self._endpoint.model)
            return await self._client.count_tokens(text, model=self._endpoint.model)
        except TokenwireError as error:
            raise self._unusable(error) from None

    async def ask(self, answer: Answer) -> None:
        options: CommonOptions = {
            "model": self._endpoint.model,
            "max_tokens": answer.job.output_tokens,
            "temperature": 0.0,
            "ignore_eos": self._ignore_eos,
        }
        try:
            if self._endpoint.api == "chat":
                await _read(self._client.chat_stream(_messages(answer.job.prompt), **options), "content", answer)
            else:
                await _read(self._client.generate_stream(answer.job.prompt, **options), "delta", answer)
        except TokenwireError as error:
            answer.failed(error.reason or error.code.name, error.message)

    async def close(self) -> None:
        await self._client.close()

    def _unusable(self, error: TokenwireError) -> StartupError:
        return StartupError(f"--target {self._endpoint.target}: {error}")


async def _read(stream: Any, name: str, answer: Answer) -> None:
    async for event in stream:
        kind = event.WhichOneof("event")
        if kind == name:
            if getattr(event, name).text:
                answer.arrived()
        elif kind == "completed":
            usage = event.completed.usage
            answer.prompt_tokens, answer.cached_tokens = usage.prompt_tokens, usage.cached_prompt_tokens
            answer.output_tokens = usage.completion_tokens


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
