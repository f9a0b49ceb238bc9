"""OpenAI's REST, of whatever server speaks it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tokenwire_service.bench_command.http1 import HttpClient, HttpError, Response
from tokenwire_service.bench_command.settings import Endpoint
from tokenwire_service.bench_command.target import Answer
from tokenwire_service.errors import ConfigError, StartupError

_BAD_REQUEST = frozenset({400, 422})


class RestTarget:
    """See Target."""

    def __init__(self, endpoint: Endpoint, *, ignore_eos: bool) -> None:
        """Raises ConfigError."""
        self._endpoint = endpoint
        self._ignore_eos = ignore_eos
        self._model = endpoint.model
        self._prefix = "" if endpoint.target.rstrip("/").endswith("/v1") else "/v1"
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if endpoint.api_key:
            self._headers["Authorization"] = f"Bearer {endpoint.api_key}"
        try:
            self._client = HttpClient(endpoint.target, endpoint.tls_ca_path)
        except ValueError as error:
            raise ConfigError(f"--target {endpoint.target}: {error}") from None
        except OSError as error:
            raise ConfigError(f"--tls-ca-path {endpoint.tls_ca_path}: {error.strerror or error}") from None

    @property
    def description(self) -> str:
        eos = "" if self._ignore_eos else "; answers may end early"
        return f"{self._endpoint.target} (REST, {self._endpoint.api}), {self._model}{eos}"

    async def prepare(self) -> None:
        if not self._model:
            listed = await self._json("GET", "/models")
            try:
                self._model = str(listed["data"][0]["id"])
            except (LookupError, TypeError):
                raise self._unusable("lists no model; name one with --model") from None
        if self._ignore_eos and await self._refuses_ignore_eos():
            self._ignore_eos = False

    async def count_tokens(self, text: str) -> int:
        """By the usage of an answer of one token."""
        answer = await self._json("POST", self._path, self._body(text, 1, stream=False))
        try:
            return int(answer["usage"]["prompt_tokens"])
        except (LookupError, TypeError, ValueError):
            raise self._unusable("tells no usage, without which prompts cannot be made to measure") from None

    async def ask(self, answer: Answer) -> None:
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                await self._stream(answer)
        except TimeoutError:
            answer.failed("TIMEOUT", f"no end within {self._endpoint.timeout_s:g} s")
        except HttpError as error:
            answer.failed("CONNECTION", str(error))

    async def close(self) -> None:
        self._client.close()

    @property
    def _path(self) -> str:
        return "/chat/completions" if self._endpoint.api == "chat" else "/completions"

    def _body(self, prompt: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "max_tokens": max_tokens, "temperature": 0.0, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        if self._ignore_eos:
            body["ignore_eos"] = True
        if self._endpoint.api == "chat":
            return body | {"messages": [{"role": "user", "content": prompt}]}
        return body | {"prompt": prompt}

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Response:
        raw = b"" if body is None else json.dumps(body).encode()
        return await self._client.request(method, self._prefix + path, self._headers, raw)

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                response = await self._request(method, path, body)
                try:
                    raw = await response.body()
                finally:
                    response.close()
        except (HttpError, TimeoutError) as error:
            raise self._unusable(str(error) or "no answer in time") from None
        if response.status != 200:
            raise self._unusable(f"{method} {self._prefix}{path} was answered {response.status}: {_said(raw)}")
        try:
            return json.loads(raw)
        except ValueError:
            raise self._unusable(f"{method} {self._prefix}{path} was not answered with JSON") from None

    async def _refuses_ignore_eos(self) -> bool:
        """OpenAI's own API does not know the field, which most servers do."""
        try:
            response = await self._request("POST", self._path, self._body("Hello", 1, stream=False))
        except HttpError as error:
            raise self._unusable(str(error)) from None
        try:
            said = await response.body()
        finally:
            response.close()
        return response.status in _BAD_REQUEST and b"ignore_eos" in said

    async def _stream(self, answer: Answer) -> None:
        response = await self._request(
            "POST", self._path, self._body(answer.job.prompt, answer.job.output_tokens, stream=True)
        )
        try:
            if response.status != 200:
                answer.failed(f"HTTP {response.status}", _said(await response.body()))
                return
            async for line in response.lines():
                if line.startswith(b"data: {"):
                    self._event(json.loads(line[6:]), answer)
        except ValueError:
            answer.failed("MALFORMED", "an event that is not JSON")
        finally:
            response.close()
        if not answer.error and not answer.output_tokens:
            answer.failed("INCOMPLETE", "the stream ended without telling its usage")

    def _event(self, event: dict[str, Any], answer: Answer) -> None:
        if error := event.get("error"):
            answer.failed("STREAM_ERROR", str(error.get("message") if isinstance(error, dict) else error))
            return
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
                answer.arrived()
        if usage := event.get("usage"):
            answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    def _unusable(self, problem: str) -> StartupError:
        return StartupError(f"--target {self._endpoint.target}: {problem}")


def _said(raw: bytes) -> str:
    """The message of an error's body, or its beginning."""
    try:
        error = json.loads(raw)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, LookupError, TypeError):
        return raw[:300].decode("utf-8", "replace")
