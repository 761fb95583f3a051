"""Bodies of the inference endpoints: what is refused, what is read, and that nothing but the edits changes a byte."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tresor.encodings import parse_json
from tresor.errors import RequestError
from tresor.wire.inference import InferenceRequest, parse_chat_request, parse_embedding_request

JSON = "application/json"
TRESOR_NAMES = ("failover", "region", "provider")

Parse = Callable[[bytes, str, int], InferenceRequest]


def chat(**members: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}
    return json.dumps({name: value for name, value in body.items() if value is not ...}).encode()


def parse(body: bytes) -> InferenceRequest:
    return parse_chat_request(body, JSON, 2)


def refusal(
    body: bytes, parse_request: Parse = parse_chat_request, content_type: str = JSON
) -> tuple[int, str, str | None]:
    with pytest.raises(RequestError) as caught:
        parse_request(body, content_type, 2)
    return caught.value.status, caught.value.code, caught.value.param


@pytest.mark.parametrize(
    "content_type", [JSON, "Application/JSON", "application/json; charset=utf-8", " application/json ;x"]
)
def test_json_is_taken(content_type: str) -> None:
    assert parse_chat_request(chat(), content_type, 0).model == "m"


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/json5", "application/jsonl", "text/json", "json", ";"]
)
def test_what_is_not_said_to_be_json_is_not_read(content_type: str) -> None:
    assert refusal(b"no json", content_type=content_type) == (415, "unsupported_media_type", "Content-Type")


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{", b'{"model":"m","model":"m"}', b'{"seed":NaN}', b"\xff{}", b"{}{}"]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(body) == (400, "invalid_json", None)
    assert refusal(body, parse_embedding_request) == (400, "invalid_json", None)


@pytest.mark.parametrize(
    ("members", "code", "param"),
    [
        ({"model": ...}, "missing_field", "model"),
        ({"model": None}, "missing_field", "model"),
        ({"model": ""}, "invalid_field", "model"),
        ({"model": 5}, "invalid_field", "model"),
        ({"model": ["m"]}, "invalid_field", "model"),
        ({"messages": ...}, "missing_field", "messages"),
        ({"messages": None}, "missing_field", "messages"),
        ({"messages": []}, "invalid_field", "messages"),
        ({"messages": "hi"}, "invalid_field", "messages"),
        ({"messages": {"a": 1}}, "invalid_field", "messages"),
        ({"temperature": -0.1}, "invalid_field", "temperature"),
        ({"temperature": 2.1}, "invalid_field", "temperature"),
        ({"temperature": 10**400}, "invalid_field", "temperature"),
        ({"temperature": "1"}, "invalid_field", "temperature"),
        ({"temperature": True}, "invalid_field", "temperature"),
        ({"max_tokens": 0}, "invalid_field", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_field", "max_tokens"),
        ({"max_tokens": True}, "invalid_field", "max_tokens"),
        ({"max_tokens": "9"}, "invalid_field", "max_tokens"),
        ({"stream": 1}, "invalid_field", "stream"),
        ({"stream": "true"}, "invalid_field", "stream"),
        ({"stream": True, "stream_options": []}, "invalid_field", "stream_options"),
        ({"stream": True, "stream_options": "x"}, "invalid_field", "stream_options"),
        ({"region": ""}, "invalid_field", "region"),
        ({"region": ["eu"]}, "invalid_field", "region"),
        ({"provider": 0}, "invalid_field", "provider"),
        ({"failover": "m"}, "invalid_field", "failover"),
        ({"failover": {}}, "invalid_field", "failover"),
        ({"failover": ["a", "b", "c"]}, "invalid_field", "failover"),
        ({"failover": ["a", ""]}, "invalid_field", "failover[1]"),
        ({"failover": [None]}, "invalid_field", "failover[0]"),
    ],
)
def test_a_member_that_cannot_be_meant_is_named(members: dict[str, Any], code: str, param: str) -> None:
    assert refusal(chat(**members)) == (400, code, param)


@pytest.mark.parametrize(
    "members",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"temperature": None},
        {"max_tokens": 1},
        {"max_tokens": None},
        {"stream": None},
        {"stream": False, "stream_options": "nobody looks"},
        {"stream": True, "stream_options": None},
        {"stream": True, "stream_options": {"include_usage": "x"}},
        {"messages": [None]},
        {"messages": [1, "x"]},
        {"failover": []},
        {"failover": None, "region": None, "provider": None},
        {"tools": [{"a": None}], "x": {"model": "", "stream": 7}},
    ],
)
def test_a_member_that_can_be_meant_is_taken(members: dict[str, Any]) -> None:
    parse(chat(**members))


def test_what_is_read() -> None:
    request = parse(
        chat(stream=True, stream_options={"include_usage": True}, region="eu", provider="p", failover=["a", "b/c/d"])
    )
    assert (request.model, request.stream, request.wants_usage) == ("m", True, True)
    assert (request.region, request.provider, request.failover) == ("eu", "p", ("a", "b/c/d"))
    assert parse(chat(stream=False, stream_options={"include_usage": True})).wants_usage is False
    assert repr(request).startswith("<InferenceRequest stream=True <Members 7 in ")
    assert "hi" not in repr(request)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (..., "missing_field"),
        (None, "missing_field"),
        ("", "invalid_field"),
        ([], "invalid_field"),
        (5, "invalid_field"),
    ],
)
def test_embeddings_need_an_input(value: object, param: str) -> None:
    body = {"model": "m", "input": value} if value is not ... else {"model": "m"}
    assert refusal(json.dumps(body).encode(), parse_embedding_request) == (400, param, "input")


def test_embeddings_are_no_streams() -> None:
    request = parse_embedding_request(b'{"input":["a"],"stream":true,"model":"m"}', JSON, 0)
    assert request.stream is False
    assert request.forwarded("u") == b'{"input":["a"],"stream":true,"model":"u"}'


@pytest.mark.parametrize("message", ["secret prompt", "x" * 1000])
def test_no_refusal_quotes_the_prompt(message: str) -> None:
    body = b'{"model":"m","messages":["' + message.encode() + b'"],"temperature":"' + message.encode() + b'"}'
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert message not in str(caught.value)


# What is forwarded.

spaces = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n"])
scalars = st.sampled_from(
    ["1.0", "1e2", "-0", "9007199254740993", '"a\\u00fc"', '"ü😀"', "true", "null", '"}"', '","', '"\\ud800"']
)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=2).map(lambda items: "[" + " , ".join(items) + "]"),
    scalars.map(lambda value: '{"model"  :' + value + ' ,"include_usage":0}'),
)
usage = st.sampled_from(["true", "false", "null", "1"])
options = st.one_of(
    st.just("null"),
    st.just("{}"),
    st.just("{ }"),
    usage.map(lambda value: '{"include_usage" : ' + value + "}"),
    usage.map(lambda value: '{"other":[1e2],"include_usage":' + value + ',"y":null }'),
    usage.map(lambda value: '{"include\\u005fusage":' + value + "}"),
    st.just('{"other" : 1.50 }'),
)
known: dict[str, st.SearchStrategy[str]] = {
    "model": st.sampled_from(['"m"', '"\\u006d"', '"eu/alpha/m"', '"ü"']),
    "messages": st.sampled_from(['["hi"]', '[ {"role" : "user","content":"\\u00fc"} ]']),
    "stream": st.sampled_from(["true", "true", "false", "null"]),
    "stream_options": options,
    "region": st.sampled_from(['"eu"', "null"]),
    "provider": st.sampled_from(['"p"', "null"]),
    "failover": st.sampled_from(["null", "[]", '["m", "us/beta/m"]']),
    "seed": values,
    "x": values,
    "Model": values,
    "user": values,
}
spellings = {"model": '"mod\\u0065l"', "region": '"\\u0072egion"', "stream_options": '"stream\\u005foptions"'}


@st.composite
def bodies(draw: st.DrawFn) -> list[tuple[str, str, str]]:
    """Draw the members of a body: name, name as written with all up to the value, value as written."""
    optional = draw(st.lists(st.sampled_from(sorted(set(known) - {"model", "messages"})), unique=True))
    names = draw(st.permutations(["model", "messages", *optional]))
    members = []
    for name in names:
        written = spellings[name] if name in spellings and draw(st.booleans()) else f'"{name}"'
        members.append((name, f"{draw(spaces)}{written}{draw(spaces)}:{draw(spaces)}", draw(known[name])))
    return members


def expected(value: dict[str, Any], upstream_name: str) -> dict[str, Any]:
    """Transform a body as docs/spec/http-api.md section 4.2 says, as data."""
    wanted = {name: member for name, member in value.items() if name not in TRESOR_NAMES} | {"model": upstream_name}
    if value.get("stream") is True:
        stream_options = value.get("stream_options")
        if stream_options is None or stream_options.get("include_usage") is not True:
            wanted["stream_options"] = {**(stream_options or {}), "include_usage": True}
    return wanted


@given(
    members=bodies(),
    around=st.tuples(spaces, spaces, spaces),
    upstream_name=st.sampled_from(["m", "openai/gpt", 'quo"te\\', "ü\u2028", "\n"]),
)
@settings(deadline=None, max_examples=200)
def test_the_forwarded_body_is_the_callers_with_the_edits_and_no_other(
    members: list[tuple[str, str, str]], around: tuple[str, str, str], upstream_name: str
) -> None:
    before, end, behind = around
    body = f"{before}{{{','.join(name + value for _, name, value in members)}{end}}}{behind}".encode()
    sent = json.JSONDecoder().decode(body.decode().strip())

    forwarded = parse(body).forwarded(upstream_name)

    received = json.JSONDecoder().decode(forwarded.decode().strip())
    wanted = expected(sent, upstream_name)
    assert received == wanted
    assert list(received) == list(wanted)
    if json.dumps(wanted) == json.dumps(sent):
        assert forwarded == body
    # Byte for byte: every member that stays stands there as it was written, in the old order.
    text, at = forwarded.decode(), 0
    for name, written, value in members:
        if name not in TRESOR_NAMES:
            at = text.index(written.lstrip(), at) + len(written.lstrip())
            if name != "model" and json.dumps(wanted[name]) == json.dumps(sent[name]):
                assert text.startswith(value, at)
                at += len(value)
    assert text.startswith(f"{before}{{")
    assert text.endswith(f"}}{behind}")
    assert len(forwarded) <= len(body) + len(json.dumps(upstream_name)) + len(
        ',"stream_options":{"include_usage":true}'
    )


@given(members=bodies())
@settings(deadline=None)
def test_what_was_forwarded_once_is_forwarded_again_as_it_is(members: list[tuple[str, str, str]]) -> None:
    body = f"{{{','.join(name + value for _, name, value in members)}}}".encode()
    once = parse(body).forwarded("u")
    assert parse(once).forwarded("u") == once


@given(body=st.binary(max_size=60), content_type=st.sampled_from([JSON, "text/plain"]))
def test_any_bytes_are_a_request_or_refused(body: bytes, content_type: str) -> None:
    for parse_request in (parse_chat_request, parse_embedding_request):
        with pytest.raises(RequestError) as caught:
            parse_request(body, content_type, 5)
        assert caught.value.status in (400, 415)


@given(
    value=st.dictionaries(
        st.sampled_from([*known, "input", "temperature", "max_tokens"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        ),
    )
)
@settings(deadline=None)
def test_any_object_is_a_request_or_refused(value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    for parse_request in (parse_chat_request, parse_embedding_request):
        try:
            request = parse_request(body, JSON, 5)
        except RequestError:
            continue
        parse_json(request.forwarded("u"))


def test_options_that_could_be_parsed_can_be_edited_higher_up_the_stack() -> None:
    def forwarded(request: InferenceRequest, frames: int) -> bytes:
        return forwarded(request, frames - 1) if frames else request.forwarded("m")

    taken = 0
    for depth in range(sys.getrecursionlimit() - 400, sys.getrecursionlimit()):
        options = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
        body = b'{"model":"m","stream":true,"stream_options":' + options + b',"messages":[1]}'
        try:
            request = parse_chat_request(body, "application/json", 5)
        except RequestError:  # too deep, and so are all that follow
            break
        assert forwarded(request, 30) == body.replace(options, options[:-1] + b',"include_usage":true}')
        taken += 1
    assert 0 < taken < 400
