"""Header fields of an HTTP/1.1 message, from the pairs of bytes that a parser hands over (RFC 9110 section 5)."""

from collections.abc import Iterable
from typing import Final

__all__ = ["combine", "field_name"]

_MAX_KNOWN: Final = 256
_known: dict[bytes, str] = {}  # as others spell them -> lower case


def field_name(name: bytes) -> str:
    """Return a name in lower case."""
    known = _known.get(name)
    if known is None:
        known = name.decode("latin-1").lower()
        if len(_known) < _MAX_KNOWN:
            _known[name] = known
    return known


def combine(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return values by lower-case name; those of a repeated field joined by `, ` (section 5.3), cookies by `; `."""
    headers: dict[str, str] = {}
    for name, value in fields:
        key = field_name(name)
        text = value.decode("latin-1")
        if key in headers:
            text = f"{headers[key]}{'; ' if key == 'cookie' else ', '}{text}"
        headers[key] = text
    return headers
