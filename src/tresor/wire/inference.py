"""Request bodies of the inference endpoints: what is checked, and what is forwarded.

Only the members named in docs/spec/http-api.md section 4.1 are looked at; all others travel on untouched.  The
forwarded body is the caller's with the edits of section 4.2 and no other.
"""

from typing import ClassVar, Final

import msgspec

from tresor.encodings import JsonValue
from tresor.errors import JsonError, RequestError
from tresor.wire.affinity import conversation_affinity
from tresor.wire.json_members import (
    Edit,
    Members,
    append_member,
    apply_edits,
    parse_members,
    remove_members,
    replace_value,
)

__all__ = ["InferenceRequest", "parse_chat_request", "parse_embedding_request"]

_TRESOR_MEMBERS: Final = frozenset({"failover", "region", "provider"})
_MAX_TEMPERATURE: Final = 2


class InferenceRequest(msgspec.Struct, frozen=True):
    """A request body that passed the checks.

    Attributes:
        body: the body as received.
        members: where its members stand.
        model: the `model` member.
        stream: whether the answer is to be a stream.
        wants_usage: whether the caller asked for the usage chunk.
        region: the `region` member.
        provider: the `provider` member.
        failover: the route ids of the `failover` member.
    """

    body: bytes
    members: Members
    model: str
    stream: bool
    wants_usage: bool
    region: str | None
    provider: str | None
    failover: tuple[str, ...]
    content_type: ClassVar[str] = "application/json"

    def __repr__(self) -> str:
        return f"<InferenceRequest stream={self.stream} {self.members!r}>"

    def affinity(self) -> bytes:
        """Return what the requests of one conversation have in common."""
        return conversation_affinity(self.members)

    def forwarded(self, upstream_name: str) -> bytes:
        """Return the body for an upstream: its own model name, no Tresor member, usage asked for on a stream."""
        members = self.members
        removed = _TRESOR_MEMBERS & members.by_name.keys()
        if upstream_name == self.model and not removed and (not self.stream or self.wants_usage):
            return self.body
        edits = [replace_value(members, "model", msgspec.json.encode(upstream_name).decode())]
        if removed:
            edits += remove_members(members, removed)
        if self.stream and not self.wants_usage:
            edits.append(_ask_for_usage(members, removed))
        return apply_edits(members, edits)


def parse_chat_request(body: bytes, content_type: str, max_failover: int) -> InferenceRequest:
    """Parse and check the body of `POST /v1/chat/completions`.

    Raises:
        RequestError: 415 where the media type is not JSON, 400 with `invalid_json`, `missing_field` or `invalid_field`.
    """
    members = _parse(body, content_type)
    messages = _required(members, "messages")
    _check("messages", isinstance(messages, list) and messages, "a non-empty array")
    temperature = members.get("temperature")
    _check(
        "temperature",
        temperature is None or _is_number_up_to(temperature, _MAX_TEMPERATURE),
        "a number from 0 to 2",
    )
    max_tokens = members.get("max_tokens")
    _check("max_tokens", max_tokens is None or (type(max_tokens) is int and max_tokens > 0), "a positive integer")
    stream = members.get("stream")
    _check("stream", stream is None or isinstance(stream, bool), "true or false")
    options = members.get("stream_options")
    wants_usage = False
    if stream:
        _check("stream_options", options is None or isinstance(options, dict), "an object")
        wants_usage = isinstance(options, dict) and options.get("include_usage") is True
    return _request(body, members, stream=stream is True, wants_usage=wants_usage, max_failover=max_failover)


def parse_embedding_request(body: bytes, content_type: str, max_failover: int) -> InferenceRequest:
    """Parse and check the body of `POST /v1/embeddings`.

    Raises:
        RequestError: 415 where the media type is not JSON, 400 with `invalid_json`, `missing_field` or `invalid_field`.
    """
    members = _parse(body, content_type)
    content = _required(members, "input")
    _check("input", isinstance(content, str | list) and content, "a non-empty string or array")
    return _request(body, members, stream=False, wants_usage=False, max_failover=max_failover)


def _parse(body: bytes, content_type: str) -> Members:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "unsupported_media_type", "Content-Type is not application/json", param="Content-Type")
    try:
        return parse_members(body)
    except JsonError as error:
        raise RequestError(400, "invalid_json", f"request body: {error}") from error


def _request(body: bytes, members: Members, *, stream: bool, wants_usage: bool, max_failover: int) -> InferenceRequest:
    model = _required(members, "model")
    if not isinstance(model, str) or not model:
        raise _invalid("model", "a non-empty string")
    return InferenceRequest(
        body=body,
        members=members,
        model=model,
        stream=stream,
        wants_usage=wants_usage,
        region=_optional_string(members, "region"),
        provider=_optional_string(members, "provider"),
        failover=_failover(members.get("failover"), max_failover),
    )


def _failover(value: JsonValue, most: int) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > most:
        raise _invalid("failover", f"an array of at most {most} route ids")
    routes: list[str] = []
    for position, route in enumerate(value):
        if not isinstance(route, str) or not route:
            raise _invalid(f"failover[{position}]", "a route id")
        routes.append(route)
    return tuple(routes)


def _ask_for_usage(members: Members, removed: frozenset[str]) -> Edit:
    """Return the edit that sets `stream_options.include_usage`, leaving the other options as they stand."""
    member = members.by_name.get("stream_options")
    if member is None:
        return append_member(members, '"stream_options"', '{"include_usage":true}', removed=removed)
    if member.value is None:
        return member.value_start, member.value_end, '{"include_usage":true}'
    options = parse_members(members.text[member.value_start : member.value_end].encode())
    if "include_usage" in options.by_name:
        start, end, value = replace_value(options, "include_usage", "true")
    else:
        start, end, value = append_member(options, '"include_usage"', "true")
    return member.value_start + start, member.value_start + end, value


def _required(members: Members, name: str) -> JsonValue:
    value = members.get(name)
    if value is None:
        raise RequestError(400, "missing_field", f"{name} is missing", param=name)
    return value


def _optional_string(members: Members, name: str) -> str | None:
    value = members.get(name)
    if value is None or (isinstance(value, str) and value):
        return value
    raise _invalid(name, "a non-empty string")


def _is_number_up_to(value: JsonValue, most: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _check(name: str, holds: object, wanted: str) -> None:
    if not holds:
        raise _invalid(name, wanted)


def _invalid(name: str, wanted: str) -> RequestError:
    return RequestError(400, "invalid_field", f"{name} is not {wanted}", param=name)
