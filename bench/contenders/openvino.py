"""OpenVINO GenAI's ContinuousBatchingPipeline, stepped by hand so that each token's time is known.

Options: "inference_precision" and "kv_cache_precision" ("f32", "bf16", "f16", "u8"; left to OpenVINO when absent),
"max_num_batched_tokens" (OpenVINO's default when absent), "eos_token_id" (ignored, but it wants to know),
"save" (convert the GGUF file and save the result beside it).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from bench.contenders.worker import Output, Setup, Stopwatch, serve

_GIB_BYTES = 2**30
_KV_BYTES_PER_TOKEN = 2 * 30 * 3 * 64 * 4
"""Of the embedded model with a float32 cache: enough for every cache precision."""


class OpenVino:
    def __init__(self, setup: Setup) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_seqs = setup.max_sequences
        scheduler.cache_size = -(-setup.max_tokens * _KV_BYTES_PER_TOKEN // _GIB_BYTES)
        if "max_num_batched_tokens" in setup.options:
            scheduler.max_num_batched_tokens = setup.options["max_num_batched_tokens"]
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": setup.threads}
        if setup.options.get("save"):
            properties["enable_save_ov_model"] = True
        for option, name in (
            ("inference_precision", "INFERENCE_PRECISION_HINT"),
            ("kv_cache_precision", "KV_CACHE_PRECISION"),
        ):
            if option in setup.options:
                properties[name] = setup.options[option]
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(_saved_ir(Path(setup.model))), scheduler, "CPU", properties
        )
        self.settings = {"scheduler": scheduler.to_string(), **properties}
        self._eos_token_id = setup.options["eos_token_id"]
        self._num_requests = 0

    def prepare(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Nothing depends on the prompts."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[Output]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.set_eos_token_id(self._eos_token_id)
        config.ignore_eos = True
        config.do_sample = False
        watch = Stopwatch(len(prompts))
        handles = []
        for prompt in prompts:
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._num_requests, ids, config))
            self._num_requests += 1
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            at_s = watch.elapsed()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        watch.add(index, list(output.generated_ids), at_s)
        return watch.outputs()

    def close(self) -> None:
        del self._pipeline


def _saved_ir(model: Path) -> Path:
    """The directory of the IR that an earlier process saved beside the GGUF file; that file where none did."""
    return model.parent if (model.parent / "openvino_model.xml").exists() else model


if __name__ == "__main__":
    serve(OpenVino, "openvino", "openvino-genai")
