"""llama.cpp's server out of the xllamacpp wheel, over HTTP on the loopback, a slot a prompt.

A lone request is streamed, so that its tokens' times are the client's own; of several, the server's timings are taken,
which spares it the streams. A change of the number of prompts or of their length restarts the server (under 2 s,
outside the clock), since its slots divide its context.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp

from bench.contenders.worker import Output, Setup, Stopwatch, serve

_HTTP_TIMEOUT_S = 600.0


class LlamaCpp:
    """Options: "kv_cache_type" ("f16" unless given)."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._shape = (0, 0)
        self._server: Any = None
        self._address = ("", 0)
        self._restart(1, 256)
        self.settings = {
            "kv_cache_type": "f16",
            "slots": "one a prompt",
            "system": str(xllamacpp.get_system_info()),
        }

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        watch = Stopwatch(len(prompts))
        if len(prompts) == 1:
            for token_ids in self._stream(prompts[0], new_tokens):
                watch.add(0, token_ids)
            return watch.outputs()
        with ThreadPoolExecutor(len(prompts)) as pool:
            for index, output in enumerate(pool.map(lambda prompt: self._whole(prompt, new_tokens, watch), prompts)):
                watch.add(index, output.token_ids[:1], output.first_s)
                watch.add(index, output.token_ids[1:], output.last_s)
        return watch.outputs()

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Start a server with the slots that these prompts need."""
        shape = (len(prompts), max(map(len, prompts)) + new_tokens + 32)
        if shape != self._shape:
            self._restart(*shape)

    def close(self) -> None:
        self._server = None

    def _restart(self, slots: int, tokens_per_slot: int) -> None:
        self._server = None
        params = xllamacpp.CommonParams()
        params.model.path = self._setup.model
        params.n_parallel = slots
        params.n_ctx = slots * -(-tokens_per_slot // 256) * 256
        params.cache_prompt = False
        params.cache_ram_mib = 0
        params.n_ctx_checkpoints = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._setup.threads
        params.n_threads_http = slots + 1
        params.verbosity = 1
        self._server = xllamacpp.Server(params)
        url = urllib.parse.urlsplit(self._server.listening_address)
        self._address = (url.hostname or "", url.port or 0)
        self._shape = (slots, tokens_per_slot)

    def _post(self, prompt: list[int], new_tokens: int, *, stream: bool) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(*self._address, timeout=_HTTP_TIMEOUT_S)
        body = {
            "prompt": prompt,
            "n_predict": new_tokens,
            "temperature": 0.0,
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": stream,
        }
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"/completion answered {response.status}: {response.read(1000)!r}")
        return response

    def _stream(self, prompt: list[int], new_tokens: int) -> Iterator[list[int]]:
        for line in self._post(prompt, new_tokens, stream=True):
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event.get("stop"):
                    _check_prompt(event, prompt)
                    return
                if event.get("tokens"):
                    yield event["tokens"]

    def _whole(self, prompt: list[int], new_tokens: int, watch: Stopwatch) -> Output:
        event = json.loads(self._post(prompt, new_tokens, stream=False).read())
        _check_prompt(event, prompt)
        last_s = watch.elapsed()
        return Output(event["tokens"], last_s - event["timings"]["predicted_ms"] / 1e3, last_s)


def _check_prompt(event: dict[str, Any], prompt: list[int]) -> None:
    seen = event["timings"]["prompt_n"]
    if seen != len(prompt):
        raise RuntimeError(f"the server computed {seen} prompt tokens, not {len(prompt)}")


if __name__ == "__main__":
    serve(LlamaCpp, "xllamacpp")
