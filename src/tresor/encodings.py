"""Encodings with one spelling only: base64url, digests, times, strict JSON.

Pure functions, no I/O.  Implements RFC 4648 section 5 without padding, RFC 3339 in UTC, and the strict JSON of
docs/spec/receipt.md section 7 (RFC 8259 without duplicate names, NaN, lone surrogates or a byte order mark).
"""

import base64
import binascii
import hashlib
import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import NoReturn, TypeAlias

import msgspec

from tresor.errors import EncodingError, JsonError

__all__ = [
    "JsonValue",
    "base64url_decode",
    "base64url_encode",
    "digest_string",
    "parse_json",
    "refuse_constant",
    "rfc3339",
    "unique_members",
]

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*\Z")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"


def base64url_encode(data: bytes) -> str:
    """Encode as RFC 4648 section 5 without padding (RFC 7515 section 2)."""
    # As a JSON string: this library's base64 is several times as fast as that of binascii.
    quoted = msgspec.json.encode(data)
    return quoted.replace(b"+", b"-").replace(b"/", b"_").strip(b'"=').decode("ascii")


def base64url_decode(text: str) -> bytes:
    """Decode strict base64url: no padding, no other alphabet, no white space, no stray trailing bits.

    Raises:
        EncodingError: `text` is not exactly what `base64url_encode` makes.
    """
    if not _BASE64URL.match(text):
        raise EncodingError("base64url has a character outside A-Z a-z 0-9 - _")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))  # noqa: TID251 - the one strict wrapper
    except binascii.Error as error:
        raise EncodingError(f"base64url of {len(text)} characters has an impossible length") from error
    if base64url_encode(data) != text:
        raise EncodingError("base64url has non-zero trailing bits")
    return data


def digest_string(data: bytes) -> str:
    """Return `sha256:` and 64 lower-case hexadecimal digits of the SHA-256 of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def rfc3339(seconds: float) -> str:
    """Format Unix `seconds` as RFC 3339 in UTC with milliseconds and `Z`."""
    whole = int(seconds)
    return f"{_rfc3339_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=16)
def _rfc3339_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def unique_members(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """Build an object from its members, for `object_pairs_hook`.

    Raises:
        JsonError: a name stands twice; parsers disagree which one counts (RFC 8259 section 4).
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # add() is None
        raise JsonError(f"member name {twice[:64]!r} stands twice in one object")
    return members


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python reads and RFC 8259 does not know."""
    raise JsonError(f"{name} is not a JSON number")


def parse_json(data: bytes) -> JsonValue:
    """Parse strict JSON.

    Raises:
        JsonError: not UTF-8, not RFC 8259, a duplicate name at any depth, NaN, a lone surrogate, a byte order mark,
            a number of more digits than Python converts, or nesting deeper than the interpreter's stack.
    """
    try:
        text = data.decode("utf-8")
        value: JsonValue = json.loads(  # noqa: TID251 - the one strict wrapper
            text, object_pairs_hook=unique_members, parse_constant=refuse_constant
        )
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise JsonError("a string holds a lone surrogate") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise JsonError("nested too deeply") from error
    except ValueError as error:  # int() refuses more than 4300 digits (CVE-2020-10735)
        raise JsonError("a number has too many digits") from error
    return value
