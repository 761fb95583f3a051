"""Edit the members of one JSON object without touching any other byte.

`parse_members` walks the top level with the standard library's C scanner, so that every value's place in the text is
known; `Edit`s then replace, remove or append members.  Order, white space, escapes and the spelling of every number
outside the edited members stay as they came.  Implements docs/spec/http-api.md section 4.2.
"""

import re
from collections.abc import Callable
from json import JSONDecodeError, JSONDecoder
from json import decoder as _decoder

import msgspec

from tresor.encodings import JsonValue, refuse_constant, unique_members
from tresor.errors import JsonError

__all__ = [
    "Edit",
    "Member",
    "Members",
    "append_member",
    "apply_edits",
    "parse_members",
    "remove_members",
    "replace_value",
]

_PLAIN_NAME = re.compile(r'"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*')
_SPACE = re.compile(r"[ \t\n\r]*")
# Documented nowhere, but the two halves of every json.loads since Python 2.6; the typeshed knows neither.
_scan_string: Callable[[str, int, bool], tuple[str, int]] = _decoder.scanstring  # type: ignore[attr-defined]  # see above
_scan_value: Callable[[str, int], tuple[JsonValue, int]] = JSONDecoder(
    object_pairs_hook=unique_members, parse_constant=refuse_constant
).scan_once  # type: ignore[attr-defined]  # see above


class Member(msgspec.Struct, frozen=True, gc=False):
    """One member: its value and where name and value stand in the text (character offsets, end exclusive)."""

    value: JsonValue
    name_start: int
    value_start: int
    value_end: int

    def __repr__(self) -> str:
        return f"<Member {self.name_start}:{self.value_end}>"


class Members(msgspec.Struct, frozen=True):
    """The top level of a JSON object: its text, its members by name in order, and the place of its closing brace."""

    text: str
    by_name: dict[str, Member]
    close: int

    def __repr__(self) -> str:
        return f"<Members {len(self.by_name)} in {len(self.text)} characters>"

    def get(self, name: str) -> JsonValue:
        """Return the value of `name`, or None where it is absent or null."""
        member = self.by_name.get(name)
        return None if member is None else member.value


def parse_members(data: bytes) -> Members:
    """Parse a JSON object and note where its members stand.

    Raises:
        JsonError: not UTF-8, not RFC 8259, not an object, a name twice in any object, NaN or an infinity, an integer of
            more than 4300 digits, nesting deeper than the interpreter's stack, or bytes behind the object.
    """
    try:
        text = data.decode("utf-8")
        return _parse(text)
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except JSONDecodeError as error:
        raise JsonError(f"{error.msg} at line {error.lineno} column {error.colno}") from error
    except StopIteration as error:  # how the scanner says that no value begins here
        raise JsonError(f"expected a value at character {error.value}") from error
    except RecursionError as error:
        raise JsonError("nested too deeply") from error
    except ValueError as error:
        raise JsonError("a number has too many digits") from error


def _parse(text: str) -> Members:
    members: dict[str, Member] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise JsonError("not a JSON object")
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        return Members(text, members, _end(text, at))
    while True:
        if text[at : at + 1] != '"':
            raise JsonError(f"expected a member name at character {at}")
        name_start = at
        if (plain := _PLAIN_NAME.match(text, at)) is not None:
            name, value_start = plain[1], plain.end()
        else:
            name, at = _scan_string(text, at + 1, True)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise JsonError(f"expected ':' at character {at}")
            value_start = _skip(text, at + 1)
        value, value_end = _scan_value(text, value_start)
        if name in members:
            raise JsonError(f"member name {name[:64]!r} stands twice in one object")
        members[name] = Member(value, name_start, value_start, value_end)
        at = _skip(text, value_end)
        match text[at : at + 1]:
            case ",":
                at = _skip(text, at + 1)
            case "}":
                return Members(text, members, _end(text, at))
            case _:
                raise JsonError(f"expected ',' or '}}' at character {at}")


def _skip(text: str, at: int) -> int:
    """Return where the white space that may stand at `at` ends."""
    if text[at : at + 1] > " ":  # mostly there is none
        return at
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _end(text: str, close: int) -> int:
    if _skip(text, close + 1) != len(text):
        raise JsonError(f"more than one value: something stands at character {close + 1}")
    return close


Edit = tuple[int, int, str]
"""Replace `text[start:end]` by a string."""


def replace_value(members: Members, name: str, value_json: str) -> Edit:
    """Return the edit that gives an existing member another value."""
    member = members.by_name[name]
    return member.value_start, member.value_end, value_json


def append_member(members: Members, name_json: str, value_json: str, *, removed: frozenset[str] = frozenset()) -> Edit:
    """Return the edit that adds a member before the closing brace, given the names that are removed beside it."""
    comma = "," if members.by_name.keys() - removed else ""
    return members.close, members.close, f"{comma}{name_json}:{value_json}"


def remove_members(members: Members, names: frozenset[str]) -> list[Edit]:
    """Return the edits that remove `names` together with one comma each."""
    edits: list[Edit] = []
    kept_before = False
    ordered = list(members.by_name.items())
    for position, (name, member) in enumerate(ordered):
        if name not in names:
            kept_before = True
            continue
        if kept_before:  # from the end of the member before, its comma included
            edits.append((ordered[position - 1][1].value_end, member.value_end, ""))
        elif position + 1 < len(ordered):  # up to the name of the member behind
            edits.append((member.name_start, ordered[position + 1][1].name_start, ""))
        else:
            edits.append((member.name_start, member.value_end, ""))
    return edits


def apply_edits(members: Members, edits: list[Edit]) -> bytes:
    """Apply edits that do not overlap and return the object's bytes."""
    parts: list[str] = []
    at = 0
    for start, end, replacement in sorted(edits):
        parts += (members.text[at:start], replacement)
        at = end
    parts.append(members.text[at:])
    return "".join(parts).encode("utf-8")
