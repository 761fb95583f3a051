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
        removed = _TRESOR_MEMBERS.intersection(members.values)
        if upstream_name == self.model and not removed and (not self.stream or self.wants_usage):
            return self.body
        edits: list[Edit] = []
        if upstream_name != self.model:
            edits.append(replace_value(members, "model", msgspec.json.encode(upstream_name).decode()))
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
    values = members.values
    messages = _required(values, "messages")
    if not isinstance(messages, list) or not messages:
        raise _invalid("messages", "a non-empty array")
    temperature = values.get("temperature")
    if temperature is not None and not _is_number_up_to(temperature, _MAX_TEMPERATURE):
        raise _invalid("temperature", "a number from 0 to 2")
    max_tokens = values.get("max_tokens")
    if max_tokens is not None and not (type(max_tokens) is int and max_tokens > 0):
        raise _invalid("max_tokens", "a positive integer")
    stream = values.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _invalid("stream", "true or false")
    wants_usage = False
    if stream and (options := values.get("stream_options")) is not None:
        if not isinstance(options, dict):
            raise _invalid("stream_options", "an object")
        wants_usage = options.get("include_usage") is True
    return _request(body, members, stream=stream is True, wants_usage=wants_usage, max_failover=max_failover)


def parse_embedding_request(body: bytes, content_type: str, max_failover: int) -> InferenceRequest:
    """Parse and check the body of `POST /v1/embeddings`.

    Raises:
        RequestError: 415 where the media type is not JSON, 400 with `invalid_json`, `missing_field` or `invalid_field`.
    """
    members = _parse(body, content_type)
    content = _required(members.values, "input")
    if not isinstance(content, str | list) or not content:
        raise _invalid("input", "a non-empty string or array")
    return _request(body, members, stream=False, wants_usage=False, max_failover=max_failover)


def _parse(body: bytes, content_type: str) -> Members:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "unsupported_media_type", "Content-Type is not application/json", param="Content-Type")
    try:
        return parse_members(body)
    except JsonError as error:
        raise RequestError(400, "invalid_json", f"request body: {error}") from error


def _request(body: bytes, members: Members, *, stream: bool, wants_usage: bool, max_failover: int) -> InferenceRequest:
    values = members.values
    model = _required(values, "model")
    if not isinstance(model, str) or not model:
        raise _invalid("model", "a non-empty string")
    return InferenceRequest(
        body=body,
        members=members,
        model=model,
        stream=stream,
        wants_usage=wants_usage,
        region=_optional_string(values, "region"),
        provider=_optional_string(values, "provider"),
        failover=_failover(values.get("failover"), max_failover),
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
    if "stream_options" not in members.values:
        return append_member(members, '"stream_options"', '{"include_usage":true}', removed=removed)
    if members.values["stream_options"] is None:
        return replace_value(members, "stream_options", '{"include_usage":true}')
    place = members.places["stream_options"]
    text = members.text[place.value_start : place.value_end]
    options = Members(text, members.values["stream_options"], len(text) - 1)  # type: ignore[arg-type]  # checked above
    if "include_usage" in options.values:
        start, end, value = replace_value(options, "include_usage", "true")
    else:
        start, end, value = append_member(options, '"include_usage"', "true")
    return place.value_start + start, place.value_start + end, value


def _required(values: dict[str, JsonValue], name: str) -> JsonValue:
    value = values.get(name)
    if value is None:
        raise RequestError(400, "missing_field", f"{name} is missing", param=name)
    return value


def _optional_string(values: dict[str, JsonValue], name: str) -> str | None:
    value = values.get(name)
    if value is None or (isinstance(value, str) and value):
        return value
    raise _invalid(name, "a non-empty string")


def _is_number_up_to(value: JsonValue, most: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _invalid(name: str, wanted: str) -> RequestError:
    return RequestError(400, "invalid_field", f"{name} is not {wanted}", param=name)
