"""Edit the members of one JSON object without touching any other byte.

`parse_members` reads the object with the standard library's C scanner.  Where its members stand in the text is found
out only when one of them is to be edited; `Edit`s then replace, remove or append members.  Order, white space, escapes
and the spelling of every number outside the edited members stay as they came.  Implements docs/spec/http-api.md
section 4.2.
"""

import re
import sys
from collections.abc import Callable
from functools import cached_property
from json import JSONDecodeError, JSONDecoder
from json import decoder as _decoder

import msgspec

from tresor.encodings import JsonValue, refuse_constant, unique_members
from tresor.errors import JsonError
from tresor.limits import MAX_JSON_CONTAINERS, MAX_JSON_VALUES

__all__ = [
    "Edit",
    "Members",
    "Place",
    "append_member",
    "apply_edits",
    "parse_members",
    "remove_members",
    "replace_value",
]

_STACK_MARGIN = 100
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # never fails, so it is never tried twice
_SPACE = re.compile(r"[ \t\n\r]*")
# Documented nowhere, but the two halves of every json.loads since Python 2.6; the typeshed knows neither.
_scan_string: Callable[[str, int, bool], tuple[str, int]] = _decoder.scanstring  # type: ignore[attr-defined]  # see above
_scan_value: Callable[[str, int], tuple[JsonValue, int]] = JSONDecoder(
    object_pairs_hook=unique_members, parse_constant=refuse_constant
).scan_once  # type: ignore[attr-defined]  # see above


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where name and value of a member stand in the text (character offsets, end exclusive)."""

    name_start: int
    value_start: int
    value_end: int


class Members:
    """The top level of a JSON object.

    Args:
        text: the object, and white space around it.
        values: its members, in order.
        close: the place of its closing brace.
    """

    def __init__(self, text: str, values: dict[str, JsonValue], close: int) -> None:
        self.text = text
        self.values = values
        self.close = close

    def __repr__(self) -> str:
        return f"<Members {len(self.values)} in {len(self.text)} characters>"

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each member stands."""
        try:
            return self._find_places()
        except RecursionError:  # when it was parsed, the stack was not as high
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(limit + _STACK_MARGIN)
            try:
                return self._find_places()
            finally:
                sys.setrecursionlimit(limit)

    def _find_places(self) -> dict[str, Place]:
        """Walk over a text that is known to be an object: nothing is checked again."""
        places: dict[str, Place] = {}
        at = _skip(self.text, self.text.index("{") + 1)
        while at < self.close:
            name, colon = _scan_string(self.text, at + 1, True)
            value_start = _skip(self.text, _skip(self.text, colon) + 1)
            _, value_end = _scan_value(self.text, value_start)
            places[name] = Place(at, value_start, value_end)
            at = _skip(self.text, _skip(self.text, value_end) + 1)  # behind the comma
        return places


def parse_members(data: bytes) -> Members:
    """Parse a JSON object.

    Raises:
        JsonError: not UTF-8, not RFC 8259, not an object, a name twice in any object, NaN or an infinity, an integer of
            more than 4300 digits, nesting deeper than the interpreter's stack, bytes behind the object, or so many
            values that reading them would cost a multiple of the body.
    """
    _check_values(data)
    try:
        text = data.decode("utf-8")
        start = _skip(text, 0)
        if text[start : start + 1] != "{":
            raise JsonError("not a JSON object")
        value, end = _scan_value(text, start)
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
    if _skip(text, end) != len(text):
        raise JsonError(f"more than one value: something stands at character {end}")
    return Members(text, value, end - 1)  # type: ignore[arg-type]  # it began with a brace


def _check_values(data: bytes) -> None:
    """Refuse an object of too many values; what stands in strings is none."""
    if len(data) <= MAX_JSON_CONTAINERS or not _has_many_values(data):
        return
    if data.count(b'"') > 2 * MAX_JSON_VALUES or _has_many_values(_STRING.sub(b"", data)):
        raise JsonError(f"more than {MAX_JSON_CONTAINERS} arrays and objects, or {MAX_JSON_VALUES} values")


def _has_many_values(data: bytes) -> bool:
    return data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS or data.count(b",") > MAX_JSON_VALUES


def _skip(text: str, at: int) -> int:
    """Return where the white space that may stand at `at` ends."""
    if text[at : at + 1] > " ":  # mostly there is none
        return at
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


Edit = tuple[int, int, str]
"""Replace `text[start:end]` by a string."""


def replace_value(members: Members, name: str, value_json: str) -> Edit:
    """Return the edit that gives an existing member another value."""
    place = members.places[name]
    return place.value_start, place.value_end, value_json


def append_member(members: Members, name_json: str, value_json: str, *, removed: frozenset[str] = frozenset()) -> Edit:
    """Return the edit that adds a member before the closing brace, given the names that are removed beside it."""
    comma = "," if members.values.keys() - removed else ""
    return members.close, members.close, f"{comma}{name_json}:{value_json}"


def remove_members(members: Members, names: frozenset[str]) -> list[Edit]:
    """Return the edits that remove `names` together with one comma each."""
    edits: list[Edit] = []
    kept_before = False
    ordered = list(members.places.items())
    for position, (name, place) in enumerate(ordered):
        if name not in names:
            kept_before = True
            continue
        if kept_before:  # from the end of the member before, its comma included
            edits.append((ordered[position - 1][1].value_end, place.value_end, ""))
        elif position + 1 < len(ordered):  # up to the name of the member behind
            edits.append((place.name_start, ordered[position + 1][1].name_start, ""))
        else:
            edits.append((place.name_start, place.value_end, ""))
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
