"""The body of `POST /v1/audio/transcriptions`: multipart/form-data (RFC 7578), edited like JSON bodies are.

The part `model` gets the upstream's own name and the three Tresor parts go; every other byte travels on as it came, the
audio and the boundary included.

A form that two parsers could read in two ways is refused: an upstream would see another `model` than the receipt names.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from tresor.errors import RequestError

__all__ = ["TranscriptionRequest", "parse_transcription_request"]

_AFFINITY_BYTES: Final = 4096
_TRESOR_PARTS: Final = frozenset({"failover", "failover[]", "region", "provider"})
_READ_PARTS: Final = _TRESOR_PARTS | {"model", "stream"}
_MAX_PARTS: Final = 256
_MAX_FIELD_BYTES: Final = 4096
_MAX_HEAD_BYTES: Final = 8192  # of one part
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]\Z")  # RFC 2046, 5.1.1
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*)\Z")
_PARAMETER = re.compile(r""";[ \t]*(?:(?P<name>[^\s;="]+)=(?:(?P<bare>[^\s;"]+)|"(?P<quoted>[^"]*)")[ \t]*)?""")


@dataclass(frozen=True, slots=True, repr=False)
class _Part:
    """One part: its name, where it stands with the delimiter before it, and where its content stands."""

    name: str
    start: int
    content_start: int
    content_end: int


@dataclass(frozen=True, slots=True, repr=False)
class TranscriptionRequest:
    """A form that passed the checks; attributes as those of `tresor.wire.inference.InferenceRequest`."""

    body: bytes
    parts: tuple[_Part, ...]
    content_type: str
    model: str
    region: str | None
    provider: str | None
    failover: tuple[str, ...]
    stream: bool = False
    wants_usage: bool = False

    def affinity(self) -> bytes:
        """Return bytes of the form itself: two forms have nothing in common that an upstream could have cached."""
        return blake2b(self.body[-_AFFINITY_BYTES:], digest_size=16).digest()

    def forwarded(self, upstream_name: str) -> bytes:
        """Return the form for an upstream: its own model name, no Tresor part."""
        kept: list[bytes] = []
        at = 0
        for part in self.parts:
            if part.name == "model":
                kept += (self.body[at : part.content_start], upstream_name.encode())
                at = part.content_end
            elif part.name in _TRESOR_PARTS:
                kept.append(self.body[at : part.start])
                at = part.content_end
        kept.append(self.body[at:])
        return b"".join(kept).removeprefix(b"\r\n")  # of the second part, where the first one went


def parse_transcription_request(body: bytes, content_type: str, max_failover: int) -> TranscriptionRequest:
    """Parse and check a form.

    Raises:
        RequestError: 415 where it is no form, 400 with `missing_field` or `invalid_field` where it is a wrong one.
    """
    parts = _split(body, _boundary(content_type))
    names = [part.name for part in parts]
    for required in ("file", "model"):
        if required not in names:
            raise RequestError(400, "missing_field", f"{required} is missing", param=required)
    for single in ("model", "region", "provider", "stream"):
        if names.count(single) > 1:
            raise _invalid(single, "given once")
    fields = {part.name: _text(body, part) for part in parts if part.name in _READ_PARTS}
    if fields.get("stream", "false").lower() not in ("false", "0", ""):
        raise _invalid("stream", "false: transcriptions are not streamed here")
    failover = tuple(_text(body, part) for part in parts if part.name in ("failover", "failover[]"))
    if len(failover) > max_failover:
        raise _invalid("failover", f"given at most {max_failover} times")
    if not fields["model"]:
        raise _invalid("model", "a non-empty string")
    return TranscriptionRequest(
        body=body,
        parts=parts,
        content_type=content_type,
        model=fields["model"],
        region=fields.get("region") or None,
        provider=fields.get("provider") or None,
        failover=failover,
    )


def _boundary(content_type: str) -> bytes:
    if _kind(content_type) != "multipart/form-data":
        raise RequestError(415, "unsupported_media_type", "Content-Type is not multipart/form-data")
    boundary = _parameter(content_type, "boundary")
    if boundary is None or not _BOUNDARY.match(boundary):
        raise _invalid("Content-Type", "multipart/form-data with a boundary")
    return boundary.encode("ascii")


def _split(body: bytes, boundary: bytes) -> tuple[_Part, ...]:
    """Find the parts.  A delimiter is CRLF, two hyphens and the boundary; the first may lack the CRLF."""
    delimiter = b"--" + boundary
    if not body.startswith(delimiter):
        raise _invalid("body", "a form that begins with its boundary")
    parts: list[_Part] = []
    start, at = 0, len(delimiter)
    while body[at : at + 2] == b"\r\n":
        head_end = body.find(b"\r\n\r\n", at, at + _MAX_HEAD_BYTES)
        content_end = body.find(b"\r\n" + delimiter, head_end + 4)
        if head_end < 0 or content_end < 0 or len(parts) >= _MAX_PARTS:
            raise _invalid(
                "body", f"a form of at most {_MAX_PARTS} whole parts with heads of at most {_MAX_HEAD_BYTES} bytes"
            )
        if body.startswith(delimiter, head_end + 4):  # an empty part to some, to others content
            raise _invalid("body", "a form with an empty line before every delimiter")
        name = _name(body[at + 2 : head_end])
        parts.append(_Part(name, start, head_end + 4, content_end))
        start, at = content_end, content_end + 2 + len(delimiter)
    if body[at : at + 2] != b"--":
        raise _invalid("body", "a form that ends with its boundary and two hyphens")
    return tuple(parts)


def _name(head: bytes) -> str:
    fields = [_FIELD.match(line) for line in head.split(b"\r\n")]
    dispositions = [
        field[2].decode("utf-8", "replace") for field in fields if field and field[1].lower() == b"content-disposition"
    ]
    name = _parameter(dispositions[0], "name") if len(dispositions) == 1 and all(fields) else None
    if name is None or _kind(dispositions[0]) != "form-data":
        raise _invalid("body", "a form whose every part has one name")
    return name


def _kind(field: str) -> str:
    return field.partition(";")[0].strip().lower()


def _parameter(field: str, wanted: str) -> str | None:
    """Return a parameter of a header field, or None where it stands there not once or not in one plain way.

    Parsers disagree about one that stands twice, about backslashes, and about `name*` (RFC 7578, 4.2 forbids it).
    """
    if "\\" in field:
        return None
    values: list[str] = []
    at = field.find(";")
    while 0 <= at < len(field):
        parameter = _PARAMETER.match(field, at)
        name = "" if parameter is None or parameter["name"] is None else parameter["name"].lower()
        if parameter is None or name.startswith(f"{wanted}*"):
            return None
        if name == wanted:
            values.append(parameter["bare"] or parameter["quoted"] or "")
        at = parameter.end()
    return values[0] if len(values) == 1 else None


def _text(body: bytes, part: _Part) -> str:
    content = body[part.content_start : part.content_end]
    try:
        if len(content) > _MAX_FIELD_BYTES:
            raise _invalid(part.name, f"at most {_MAX_FIELD_BYTES} bytes")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(part.name, "UTF-8") from error


def _invalid(name: str, wanted: str) -> RequestError:
    return RequestError(400, "invalid_field", f"{name} is not {wanted}", param=name)
