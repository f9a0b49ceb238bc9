"""ChatRequest and ChatPrompt become a plan's prompt: roles, parts and template arguments checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire.v1 import tokenization_pb2
from tokenwire_service.rpc.convert.checks import Checks
from tokenwire_service.rpc.convert.generate import check_model, common_plan
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.plan import ChatPrompt, GenerationPlan

MAX_MESSAGES = 16_384
MAX_PARTS = 65_536
MAX_NAME_BYTES = 256
MAX_TEMPLATE_ARGS_BYTES = 65_536
RESERVED_ARGS = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})


def chat_plan(request: pb.ChatRequest, model: ServedModel, *, streams: bool) -> GenerationPlan:
    """Check every field. Raises ModelNotFoundError, InvalidParameterError or FeatureNotEnabledError."""
    check_model(request.model, model)
    checks = Checks()
    _tools(request, "", checks)
    if request.HasField("tool_choice"):
        mode = request.tool_choice.mode
        checks.require(mode in pb.ToolChoiceMode.values(), "tool_choice.mode", f"is {mode}, which is no ToolChoiceMode")
        checks.refuse("tool_choice", "tools are not enabled on this server; leave it out")
    if request.HasField("parallel_tool_calls"):
        checks.refuse("parallel_tool_calls", "tools are not enabled on this server; leave it out")
    if request.HasField("reasoning"):
        checks.refuse("reasoning", "reasoning is not told apart on this server; leave it out")
    prompt = _prompt(request, "", not request.continue_final_message, model, checks)
    return common_plan(request, prompt, None, model, checks, streams=streams)


def tokenize_chat(sent: tokenization_pb2.ChatPrompt, model: ServedModel) -> ChatPrompt:
    """The conversation of a TokenizeRequest. Raises InvalidParameterError or FeatureNotEnabledError."""
    checks = Checks()
    _tools(sent, "chat.", checks)
    given = sent.HasField("add_generation_prompt")
    begins = sent.add_generation_prompt if given else not sent.continue_final_message
    remedy = "cannot be set together with continue_final_message; leave out one of them"
    checks.require(not (begins and sent.continue_final_message), "chat.add_generation_prompt", remedy)
    prompt = _prompt(sent, "chat.", begins, model, checks)
    checks.raise_if_any()
    return prompt


def _tools(sent: pb.ChatRequest | tokenization_pb2.ChatPrompt, path: str, checks: Checks) -> None:
    if sent.tools:
        checks.refuse(f"{path}tools", "tools are not enabled on this server; leave them out")


def _prompt(
    sent: pb.ChatRequest | tokenization_pb2.ChatPrompt, path: str, begins: bool, model: ServedModel, checks: Checks
) -> ChatPrompt:
    field = f"{path}messages"
    if model.chat_template is None:
        checks.refuse(field, "this model has no chat template; use Generate with the prompt as text")
    checks.require(len(sent.messages) > 0, field, "is empty; give at least one message")
    # Templates that do not know the developer's role take it as system.
    known = model.chat_template is not None and "developer" in model.chat_template.source
    developer = "developer" if known else "system"
    messages: list[Mapping[str, str]] = []
    if checks.count(sent.messages, field, MAX_MESSAGES) and checks.require(
        sum(len(message.content) for message in sent.messages) <= MAX_PARTS,
        field,
        f"has more than {MAX_PARTS} parts of content; send fewer",
    ):
        messages = [
            _message(message, f"{field}[{index}]", developer, checks) for index, message in enumerate(sent.messages)
        ]
    if sent.continue_final_message and sent.messages:
        final = sent.messages[-1].role == pb.ROLE_ASSISTANT
        checks.require(final, f"{path}continue_final_message", "needs the last message to be the assistant's")
    return ChatPrompt(
        messages=tuple(messages),
        template_args=_template_args(sent.template_args_json, f"{path}template_args_json", checks)
        if sent.HasField("template_args_json")
        else {},
        add_generation_prompt=begins,
        continue_final_message=sent.continue_final_message,
        field=field,
    )


def _message(sent: pb.Message, path: str, developer: str, checks: Checks) -> Mapping[str, str]:
    checks.require(sent.role in _ROLES, f"{path}.role", _role_remedy(sent.role))
    content = "".join(_part(part, f"{path}.content[{index}]", checks) for index, part in enumerate(sent.content))
    checks.require(
        len(sent.content) > 0 or len(sent.tool_calls) > 0, f"{path}.content", "is empty; give at least one part"
    )
    if sent.tool_calls:
        checks.refuse(f"{path}.tool_calls", "tools are not enabled on this server; leave them out")
    if sent.HasField("reasoning"):
        checks.refuse(f"{path}.reasoning", "reasoning is not told apart on this server; leave it out")
    if sent.HasField("tool_call_id"):
        remedy = "is only for messages with ROLE_TOOL; leave it out"
        checks.require(sent.role == pb.ROLE_TOOL, f"{path}.tool_call_id", remedy)
    if sent.role == pb.ROLE_TOOL:
        checks.refuse(f"{path}.role", "tools are not enabled on this server; leave out messages with ROLE_TOOL")
    name = checks.text(sent.name, f"{path}.name", MAX_NAME_BYTES) if sent.HasField("name") else None
    role = developer if sent.role == pb.ROLE_DEVELOPER else _ROLES.get(sent.role, "")
    return {"role": role, "content": content} | ({} if name is None else {"name": name})


_ROLES: Mapping[int, str] = MappingProxyType(
    {
        pb.ROLE_SYSTEM: "system",
        pb.ROLE_USER: "user",
        pb.ROLE_ASSISTANT: "assistant",
        pb.ROLE_TOOL: "tool",
        pb.ROLE_DEVELOPER: "developer",
    }
)


def _role_remedy(role: int) -> str:
    return (
        "is not given; say who speaks"
        if role == pb.ROLE_UNSPECIFIED
        else f"is {role}, which is no Role; say who speaks"
    )


def _part(part: pb.ContentPart, path: str, checks: Checks) -> str:
    kind = part.WhichOneof("part")
    checks.require(kind is not None, path, "is empty; set text")
    if kind == "media":
        checks.refuse(f"{path}.media", "this model takes text only; leave it out")
    return part.text


def _template_args(text: str, field: str, checks: Checks) -> Mapping[str, object]:
    """A JSON object that sets nothing of the server's own."""
    checks.text(text, field, MAX_TEMPLATE_ARGS_BYTES)
    if len(text) > MAX_TEMPLATE_ARGS_BYTES:
        return {}
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        checks.wrong(field, "is not valid JSON; give a JSON object as text")
        return {}
    if not checks.require(isinstance(value, dict), field, 'must be a JSON object, such as {"enable_thinking": false}'):
        return {}
    taken = sorted(RESERVED_ARGS & value.keys())
    checks.require(not taken, field, f"must not set {', '.join(taken)}: the request has fields for that")
    return dict(value)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
