"""What the door tells of a model, from its files, the engine's facts and the flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenwire_service.config import Config
from tokenwire_service.engine.client import EngineInfo
from tokenwire_service.errors import ConfigError
from tokenwire_service.rpc.model import ModelLimits, SamplingDefaults, ServedModel
from tokenwire_service.text.chat_template import ChatTemplate
from tokenwire_service.text.tokenizer import Tokenizer
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel


@dataclass(frozen=True, slots=True)
class TextParts:
    """What turns text into tokens and back."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None


def load_text_parts(resolved: ResolvedModel) -> TextParts:
    """Read the tokenizer and compile the chat templates. Raises StartupError."""
    tokenizer = Tokenizer.from_dir(resolved.tokenizer_dir)
    template = ChatTemplate(resolved.chat_templates, tokenizer) if resolved.chat_templates else None
    return TextParts(tokenizer, template)


def served_model(
    config: Config, resolved: ResolvedModel, text: TextParts, engine: EngineInfo, create_time: float
) -> ServedModel:
    """Put it together. Raises ConfigError when a flag does not fit the model."""
    name = config.model.served_model_name or resolved.model_id
    return ServedModel(
        name=name,
        source=resolved.model_id if resolved.kind in (ModelKind.HUB, ModelKind.EMBEDDED) else _file_name(resolved),
        revision=resolved.revision,
        architecture=_architecture(resolved.config),
        dtype=engine.dtype,
        quantization=engine.quantization,
        parameter_count=engine.num_parameters,
        vocab_size=int(resolved.config["vocab_size"]),
        eos_token_ids=_end_tokens(resolved.generation, text.tokenizer),
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        limits=_limits(config, engine),
        create_time=create_time,
        default_sampling=_sampling(resolved.generation),
        aliases=() if name == resolved.model_id else (resolved.model_id,),
    )


def _file_name(resolved: ResolvedModel) -> str:
    path = resolved.weight_files[0]
    return path.name if resolved.kind is ModelKind.GGUF else path.parent.name


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or [config.get("model_type", "")]
    return str(names[0])


def _end_tokens(generation: GenerationDefaults, tokenizer: Tokenizer) -> tuple[int, ...]:
    if generation.eos_token_ids or tokenizer.eos_token_id is None:
        return generation.eos_token_ids
    return (tokenizer.eos_token_id,)


def _sampling(generation: GenerationDefaults) -> SamplingDefaults:
    """The advised values; those for drawing are left out where the authors advise greedy decoding."""
    penalty = generation.repetition_penalty
    if generation.do_sample is False:
        return SamplingDefaults(repetition_penalty=penalty)
    return SamplingDefaults(
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        min_p=generation.min_p,
        typical_p=generation.typical_p,
        repetition_penalty=penalty,
    )


def _limits(config: Config, engine: EngineInfo) -> ModelLimits:
    frontend, context = config.frontend, engine.max_total_tokens
    if frontend.max_input_tokens >= context:
        raise ConfigError(
            f"--max-input-tokens {frontend.max_input_tokens} leaves no room for an answer in the longest sequence "
            f"here, {context} tokens; lower it or raise --max-total-tokens"
        )
    return ModelLimits(
        max_context_tokens=context,
        max_prompt_tokens=frontend.max_input_tokens or context - 1,
        max_candidates=frontend.max_best_of,
        max_stop_sequences=frontend.max_stop_sequences,
        max_stop_bytes=frontend.max_stop_length,
        max_top_n=frontend.max_top_n_tokens,
        max_default_tokens=frontend.max_default_tokens,
        max_queue_tokens=frontend.max_queue_tokens,
    )
