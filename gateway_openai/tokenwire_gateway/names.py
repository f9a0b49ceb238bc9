"""Proto paths in the service's complaints, back to the names REST callers know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from tokenwire_gateway.errors import Problem, Violation

_PREFIXES = ("sampling.", "stopping.", "output.", "scheduling.", "constraint.", "cache.")

CHAT: Mapping[str, str] = MappingProxyType(
    {
        "sampling.candidate_count": "n",
        "stopping.include_stop": "include_stop_str_in_output",
        "output.logprobs.top_n": "top_logprobs",
        "scheduling.priority": "priority",
        "cache.salt": "cache_salt",
        "cache.session_id": "prompt_cache_key",
        "constraint": "response_format",
        "labels": "metadata",
        "template_args_json": "chat_template_kwargs",
        "reasoning.effort": "reasoning_effort",
        "reasoning": "reasoning_effort",
        "tool_choice.function_name": "tool_choice.function.name",
        "tool_choice.mode": "tool_choice",
        "chat.messages": "messages",
        "chat.tools": "tools",
        "chat.continue_final_message": "continue_final_message",
        "chat.template_args_json": "chat_template_kwargs",
    }
)
COMPLETION: Mapping[str, str] = MappingProxyType(
    {
        **CHAT,
        "output.logprobs.top_n": "logprobs",
        "output.prompt_logprobs": "echo",
        "prompt": "prompt",
        "text": "prompt",
        "token_ids": "prompt",
        "token_ids.ids": "prompt",
    }
)
# Of a request that spells max_tokens the newer way.
CHAT_NEWER: Mapping[str, str] = MappingProxyType({**CHAT, "stopping.max_tokens": "max_completion_tokens"})
TGI: Mapping[str, str] = MappingProxyType(
    {
        "model": "adapter_id",
        "prompt": "inputs",
        "text": "inputs",
        "sampling.context_frequency_penalty": "frequency_penalty",
        "stopping.max_tokens": "max_new_tokens",
        "sampling.candidate_count": "best_of",
        "output.logprobs.top_n": "top_n_tokens",
        "output.prompt_logprobs": "decoder_input_details",
        "truncate_prompt_tokens": "truncate",
        "constraint": "grammar",
    }
)


_PHRASES: Mapping[str, str] = MappingProxyType(
    {
        "leave constraint out": "leave it out",
        "use the unary call": "do without stream",
        "use Generate with the prompt as text": "use /v1/completions with the prompt as text",
    }
)
_ROLE = re.compile(r"\bROLE_([A-Z]+)\b")


def rest_name(path: str, names: Mapping[str, str]) -> str:
    """The parameter that `path` came from: the longest known start is replaced, what follows it (`[3]`) stays."""
    # REST has images and sound each under a name of its own; the part that holds them says enough.
    path = path.removesuffix(".media")
    for known in sorted(names, key=len, reverse=True):
        if path == known:
            return names[known]
        if path.startswith((f"{known}[", f"{known}.")):
            rest = path.removeprefix(known)
            return names[known] + (rest if rest.startswith("[") else "")
    for prefix in _PREFIXES:
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return path


def renamed(problem: Problem, names: Mapping[str, str]) -> Problem:
    """`problem` with REST names in its violations, and a message made of them."""
    if not problem.violations:
        return problem
    violations = tuple(Violation(rest_name(v.field, names), _in_rest_words(v, names)) for v in problem.violations)
    message = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
    return Problem(
        problem.status, problem.reason, message, violations, problem.retry_after_s, problem.facts, problem.headers
    )


def _in_rest_words(violation: Violation, names: Mapping[str, str]) -> str:
    """The description, with REST names for the proto names and calls it speaks of."""
    told = _ROLE.sub(lambda role: f"role {role[1].lower()}", violation.description)
    for phrase, said in _PHRASES.items():
        told = told.replace(phrase, said)
    for path, name in names.items():
        word = path.rpartition(".")[2]
        # Words without an underscore are plain English too.
        if "_" in word:
            told = re.sub(rf"\b{word}\b", name, told)
    return told
