"""vLLM's CPU build, its engine stepped by hand. Eager: compiling costs minutes at start and gains nothing here.

vLLM reads its CPU settings from the environment, so that is where they are put, before it is imported.
"""

from __future__ import annotations

import os
from typing import Any

from bench.contenders.worker import Output, Setup, Stopwatch, serve

_KV_CACHE_GIB = 1


class Vllm:
    """Options: "dtype"."""

    def __init__(self, setup: Setup) -> None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(_KV_CACHE_GIB)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(setup.threads)
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["HF_HUB_OFFLINE"] = "1"
        from vllm import LLM

        arguments: dict[str, Any] = {
            "dtype": setup.options["dtype"],
            "max_num_seqs": setup.max_sequences,
            "max_model_len": setup.options["max_length"],
            "enable_prefix_caching": False,
            "enforce_eager": True,
            "seed": 0,
        }
        self._llm = LLM(model=setup.model, **arguments)
        self.settings = arguments | {
            name: os.environ[name]
            for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS")
        }
        self._num_requests = 0

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing depends on the prompts."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        engine = self._llm.llm_engine
        watch = Stopwatch(len(prompts))
        first = self._num_requests
        for index, prompt in enumerate(prompts):
            engine.add_request(str(first + index), TokensPrompt(prompt_token_ids=prompt), sampling)
        self._num_requests += len(prompts)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            at_s = watch.elapsed()
            for output in outputs:
                token_ids = list(output.outputs[0].token_ids)
                if token_ids:
                    # vLLM may add a suffix to the names it is given.
                    watch.add(int(output.request_id.split("-")[0]) - first, token_ids, at_s)
        return watch.outputs()

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    serve(Vllm, "vllm-cpu", "torch", "transformers")
