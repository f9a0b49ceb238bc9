"""Messages, tools and media, from what people have at hand."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenwire.v1.text_generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ContentPart,
    Media,
    Message,
    Role,
    Tool,
    ToolCall,
)
from tokenwire_client.options import MessageLike, ToolLike

Content = str | ContentPart | Media | Mapping[str, Any]


def system(*content: Content) -> Message:
    """Instructions of the application."""
    return _message(ROLE_SYSTEM, content)


def developer(*content: Content) -> Message:
    """Instructions of the developer."""
    return _message(ROLE_DEVELOPER, content)


def user(*content: Content) -> Message:
    """A turn of the end user: texts and media."""
    return _message(ROLE_USER, content)


def assistant(*content: Content, tool_calls: Iterable[ToolCall] = ()) -> Message:
    """A turn of the model."""
    message = _message(ROLE_ASSISTANT, content)
    message.tool_calls.extend(tool_calls)
    return message


def tool_result(tool_call_id: str, *content: Content) -> Message:
    """The result of the tool call of that id."""
    message = _message(ROLE_TOOL, content)
    message.tool_call_id = tool_call_id
    return message


def media(source: str | bytes, mime_type: str = "") -> Media:
    """Non-text content: its bytes, a data URL, or an address the server may fetch.

    Raises ValueError when a data URL is not base64.
    """
    if isinstance(source, bytes):
        return Media(data=source, mime_type=mime_type)
    if not source.startswith("data:"):
        return Media(url=source, mime_type=mime_type)
    head, _, body = source.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("media: a data URL must be data:<type>;base64,<data>")
    try:
        data = base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"media: the data URL is not valid base64: {error}") from None
    return Media(data=data, mime_type=mime_type or head.removeprefix("data:").removesuffix(";base64"))


def message_of(value: MessageLike, path: str = "message") -> Message:
    """A message proto from itself or from OpenAI's shape. Raises TypeError or ValueError naming the place."""
    if isinstance(value, Message):
        return value
    fields = _mapping(value, path, {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning"})
    message = Message(role=_role(fields.get("role"), path))
    content = fields.get("content")
    if isinstance(content, (str, ContentPart, Media, Mapping)):
        content = (content,)
    for idx, part in enumerate(_several(content, f"{path}.content")):
        message.content.append(_part(part, f"{path}.content[{idx}]"))
    for idx, call in enumerate(_several(fields.get("tool_calls"), f"{path}.tool_calls")):
        message.tool_calls.append(_tool_call(call, f"{path}.tool_calls[{idx}]"))
    for key in ("name", "tool_call_id", "reasoning"):
        if fields.get(key) is not None:
            setattr(message, key, _text(fields, key, path))
    return message


def tool_of(value: ToolLike, path: str = "tool") -> Tool:
    """A tool proto from itself, or from a mapping. Raises TypeError or ValueError naming the place."""
    if isinstance(value, Tool):
        return value
    if isinstance(value, Mapping) and "function" in value:
        value = _mapping(value, path, {"type", "function"})["function"]
        path += ".function"
    fields = _mapping(value, path, {"name", "description", "parameters", "strict"})
    tool = Tool(name=_text(fields, "name", path))
    if fields.get("description") is not None:
        tool.description = _text(fields, "description", path)
    if fields.get("parameters") is not None:
        tool.parameters_schema = json_text(fields["parameters"])
    if fields.get("strict") is not None:
        tool.strict = fields["strict"]
    return tool


def json_text(value: Mapping[str, Any] | str) -> str:
    """JSON as text: a text as it is, anything else dumped."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _message(role: Role.ValueType, content: Iterable[Content]) -> Message:
    return Message(role=role, content=[_part(part, f"content[{idx}]") for idx, part in enumerate(content)])


def _role(name: object, path: str) -> Role.ValueType:
    roles = {value.name.removeprefix("ROLE_").lower(): value.number for value in Role.DESCRIPTOR.values[1:]}
    if not isinstance(name, str) or name not in roles:
        raise ValueError(f"{path}.role: {name!r} is not one of {', '.join(roles)}")
    return Role.ValueType(roles[name])


def _part(value: object, path: str) -> ContentPart:
    if isinstance(value, ContentPart):
        return value
    if isinstance(value, Media):
        return ContentPart(media=value)
    if isinstance(value, str):
        return ContentPart(text=value)
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return ContentPart(text=_text(_mapping(value, path, {"type", "text"}), "text", path))
    if kind == "image_url":
        image = _mapping(value, path, {"type", "image_url"}).get("image_url")
        if isinstance(image, str):
            return ContentPart(media=media(image))
        path += ".image_url"
        return ContentPart(media=media(_text(_mapping(image, path, {"url"}), "url", path)))
    raise TypeError(f"{path}: expected a text, ContentPart, Media, or a mapping of type text or image_url")


def _tool_call(value: object, path: str) -> ToolCall:
    if isinstance(value, ToolCall):
        return value
    fields = _mapping(value, path, {"id", "type", "function", "name", "arguments"})
    function = _mapping(fields.get("function", fields), path, {"id", "type", "name", "arguments"})
    arguments = json_text(function.get("arguments") or "")
    return ToolCall(id=_text(fields, "id", path), name=_text(function, "name", path), arguments=arguments)


def _mapping(value: object, path: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{path}: expected a mapping or a proto, not {type(value).__name__}")
    unknown = [str(key) for key in value if key not in known]
    if unknown:
        raise ValueError(f"{path}.{unknown[0]}: not known here; use {', '.join(sorted(known))}")
    return value


def _several(value: object, path: str) -> Iterable[object]:
    if value is None:
        return ()
    if not isinstance(value, Iterable):
        raise TypeError(f"{path}: expected a list, not {type(value).__name__}")
    return value


def _text(fields: Mapping[str, Any], key: str, path: str) -> str:
    value = fields.get(key)
    if value is None:
        raise ValueError(f"{path}.{key}: missing")
    if not isinstance(value, str):
        raise TypeError(f"{path}.{key}: expected a text, not {type(value).__name__}")
    return value
