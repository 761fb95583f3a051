"""Edits of JSON objects: what is not edited keeps every byte; checked against the `json` module."""

import contextlib
import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tresor.encodings import parse_json
from tresor.errors import JsonError
from tresor.limits import MAX_JSON_CONTAINERS, MAX_JSON_VALUES
from tresor.wire.json_members import (
    Members,
    append_member,
    apply_edits,
    parse_members,
    remove_members,
    replace_value,
)

decode = json.JSONDecoder().decode

spaces = st.sampled_from(["", "", "", " ", "\n", "\t", "\r\n  "])
numbers = st.sampled_from(["1.0", "1e2", "-0", "12345678901234567890", "0.10", "1E+5"])
strings = st.sampled_from(
    [r'""', r'"}"', r'"a,b"', r'"\""', r'"\u00fc"', '"ü😀"', r'"\ud83d\ude00"', r'"\\"', r'"/\/"', '"tresor"']
)
scalars = st.one_of(numbers, strings, st.sampled_from(["true", "null"]))
names = st.sampled_from(
    ['"a"', '"b"', '"c"', '"\\u0061"', '"ü"', '"\\u00fc"', '""', '"a\\"b"', '"tresor"', '"}"', '"d"']
)


@st.composite
def values(draw: st.DrawFn) -> str:
    match draw(st.integers(0, 4)):
        case 0:
            return "[" + draw(spaces) + ",".join(draw(st.lists(scalars, max_size=3))) + draw(spaces) + "]"
        case 1:
            return '{"tresor":' + draw(scalars) + draw(spaces) + "}"
        case _:
            return draw(scalars)


@dataclass(frozen=True)
class Text:
    """The text of an object, and its members as they are written."""

    text: str
    members: dict[str, str]

    @property
    def data(self) -> bytes:
        return self.text.encode()


@st.composite
def objects(draw: st.DrawFn) -> Text:
    members: dict[str, str] = {}
    parts: list[str] = []
    for name, value in draw(st.lists(st.tuples(names, values()), max_size=6)):
        if decode(name) not in members:
            members[decode(name)] = written = f"{name}{draw(spaces)}:{draw(spaces)}{value}"
            parts.append(draw(spaces) + written + draw(spaces))
    inside = ",".join(parts) or draw(spaces)
    return Text(f"{draw(spaces)}{{{inside}}}{draw(spaces)}", members)


@given(original=objects())
@settings(deadline=None)
def test_members_are_those_of_the_json_module(original: Text) -> None:
    members = parse_members(original.data)
    assert members.values == decode(original.text.strip())
    assert list(members.values) == list(members.places) == list(original.members)
    for name, place in members.places.items():
        assert members.text[place.name_start : place.value_end] == original.members[name]
        assert decode(members.text[place.value_start : place.value_end]) == members.values[name]
    assert apply_edits(members, []) == original.data


@given(original=objects(), data=st.data())
@settings(deadline=None, max_examples=300)
def test_edits_keep_all_other_bytes(original: Text, data: st.DataObject) -> None:
    members = parse_members(original.data)
    present = sorted(members.values)
    removed = frozenset(data.draw(st.lists(st.sampled_from(present)))) if present else frozenset[str]()
    kept = [name for name in original.members if name not in removed]
    replaced = frozenset(data.draw(st.lists(st.sampled_from(kept)))) if kept else frozenset[str]()
    appended = data.draw(st.booleans())
    edits = remove_members(members, removed) + [replace_value(members, name, '"new"') for name in sorted(replaced)]
    if appended:
        edits.append(append_member(members, '"new"', "[1]", removed=removed))

    edited = apply_edits(members, edits).decode()

    wanted: dict[str, Any] = {name: "new" if name in replaced else members.values[name] for name in kept}
    assert decode(edited.strip()) == wanted | ({"new": [1]} if appended else {})
    assert list(decode(edited.strip())) == [*wanted, *(["new"] if appended else [])]
    at = 0
    for name in kept:
        if name not in replaced:
            at = edited.index(original.members[name], at) + len(original.members[name])
    before, after = original.text.index("{"), len(original.text) - original.text.rindex("}")
    assert edited[: before + 1] == original.text[: before + 1]
    assert edited[len(edited) - after :] == original.text[len(original.text) - after :]


@given(original=objects())
@settings(deadline=None)
def test_what_is_appended_can_be_removed(original: Text) -> None:
    members = parse_members(original.data)
    longer = parse_members(apply_edits(members, [append_member(members, '"new"', "{}")]))
    shorter = apply_edits(longer, remove_members(longer, frozenset({"new"})))
    assert decode(shorter.decode().strip()) == decode(original.text.strip())


def test_what_could_be_parsed_can_be_edited_higher_up_the_stack() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * depth + b"]" * depth + b"}"

    def edited(members: Members, frames: int) -> bytes:
        return edited(members, frames - 1) if frames else apply_edits(members, [replace_value(members, "a", "1")])

    deepest = 0
    with contextlib.suppress(JsonError):
        while True:
            parse_members(nested(deepest + 1))
            deepest += 1
    limit = sys.getrecursionlimit()
    assert edited(parse_members(nested(deepest)), 50) == b'{"a":1}'
    assert sys.getrecursionlimit() == limit


@given(data=st.binary(max_size=40))
def test_any_bytes_parse_or_raise_our_error(data: bytes) -> None:
    with contextlib.suppress(JsonError):
        parse_members(data)


@given(
    original=objects(),
    position=st.floats(0, 1),
    put=st.sampled_from(["", "{", "}", '"', ",", ":", "\\", "1", " ", "]"]),
)
@settings(deadline=None, max_examples=300)
def test_damaged_objects_are_those_that_the_strict_parser_refuses(original: Text, position: float, put: str) -> None:
    at = int(position * len(original.text))
    damaged = (original.text[:at] + put + original.text[at + 1 :]).encode()
    try:
        wanted = parse_json(damaged)
    except JsonError as error:
        if "surrogate" not in str(error):  # members are relayed as they came, whatever their strings hold
            with pytest.raises(JsonError):
                parse_members(damaged)
        return
    assert isinstance(wanted, dict)
    assert parse_members(damaged).values == wanted


MANY = MAX_JSON_CONTAINERS // 2


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        (b"[" + b"[],{}," * (MANY - 1) + b"1]", True),
        (b"[" + b"[],{}," * MANY + b"1]", False),
        (b"[" + b"1," * (MAX_JSON_VALUES - 1) + b"1]", True),
        (b"[" + b"1," * (MAX_JSON_VALUES + 1) + b"1]", False),
        (b'"' + b'[{,\\",' * MAX_JSON_VALUES + b'"', True),
        (b'"' + b"[{,\\\\" * MAX_JSON_VALUES + b'"', True),
        (b'"' + b"[{,\\\\" * MAX_JSON_VALUES + b"\\", False),
        (b'"' + b'[{,\\"' * MAX_JSON_VALUES, False),
        (b"[" + b'"",' * (MAX_JSON_VALUES + 1) + b"1]", False),
    ],
    ids=["containers", "too many", "values", "too many values", "text", "text too", "cut", "unclosed", "strings"],
)
def test_what_would_take_a_multiple_of_its_bytes_is_refused(value: bytes, *, taken: bool) -> None:
    body = b'{"a":' + value + b"}"
    if taken:
        assert list(parse_members(body).values) == ["a"]
        return
    with pytest.raises(JsonError):
        parse_members(body)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b'"{}"',
        b"{} {}",
        b'{"a":1,}',
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":}',
        b'{"a"}',
        b"{a:1}",
        b'{"a":1',
        b'{"a" 1}',
        b'{"a":1 "b":2}',
        b"\xef\xbb\xbf{}",
        b'{"a":"\xff"}',
        b'{"a":"\n"}',
        b'{"a":' + b"9" * 4301 + b"}",
        b'{"a":' + b"[" * 100_000,
        b'{"a":\x0c1}',
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse_members(data)
