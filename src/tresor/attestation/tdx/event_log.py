"""Event logs of trust domains, and the registers they come to (docs/spec/attestation.md, 5.2.6).

Two forms: the binary log of the firmware, which ACPI hands out as CCEL ("TCG PC Client Platform Firmware Profile",
section 10, crypto-agile log; "UEFI Specification" 2.10, section 38.4.1 for the register index), and the JSON log of
dstack, which continues it with events of its own in RTMR3.

A log proves nothing until its replay gives the registers of a genuine quote.  Even then only digests are proven: of
what stands beside them, only the names and payloads of dstack's events in RTMR3 are, for their digests are computed
here and never read.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.encodings import parse_json
from tresor.errors import JsonError

__all__ = ["MAX_EVENTS", "MAX_LOG_BYTES", "Event", "parse_event_log", "replay"]

MAX_LOG_BYTES: Final = 4 << 20  # firmware reserves 256 KiB
MAX_EVENTS: Final = 16384

_SHA384: Final = 0x000C
_DIGEST_BYTES: Final = 48
_EV_NO_ACTION: Final = 3
_HEADER_SIGNATURE: Final = b"Spec ID Event03\0"
_LEGACY_HEADER: Final = struct.Struct("<II20sI")
_REGISTERS: Final = range(1, 5)  # the index in the log is one above the register's
_RUNTIME_REGISTER: Final = 3


@dataclass(frozen=True, slots=True)
class Event:
    """One extension of a register.

    Attributes:
        register: 0 to 3 for RTMR0 to RTMR3.
        type: of the TCG, or dstack's.
        digest: SHA-384 that the register was extended by.
        name: dstack's name of the event (`compose-hash`), empty for firmware's.
        payload: the event's data; proven only for dstack's events in RTMR3.
    """

    register: int
    type: int
    digest: bytes
    name: str
    payload: bytes


def _malformed(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"event log: {message}")


def parse_event_log(data: bytes) -> tuple[Event, ...]:
    """Parse an event log: dstack's JSON where the first character is `[`, else the firmware's binary one.

    Raises:
        EvidenceMalformedError: too long, neither of the two, an event of a register that no trust domain has, or
            without a SHA-384 digest.
    """
    if len(data) > MAX_LOG_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"event log is {len(data)} bytes, want at most {MAX_LOG_BYTES}"
        )
    events = tuple(_parse_dstack(data) if data.lstrip().startswith(b"[") else _parse_tcg(data))
    if not events:
        raise _malformed("no event in it")
    return events


def replay(events: Iterable[Event]) -> tuple[bytes, bytes, bytes, bytes]:
    """Return RTMR0 to RTMR3 as these events leave them: each SHA-384(register || digest), from zeros."""
    registers = [bytes(_DIGEST_BYTES) for _ in range(4)]
    for event in events:
        registers[event.register] = hashlib.sha384(registers[event.register] + event.digest).digest()
    return registers[0], registers[1], registers[2], registers[3]


class _DstackEvent(msgspec.Struct, frozen=True):
    imr: Annotated[int, Meta(ge=0, le=3)]
    event_type: Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
    digest: Annotated[str, Meta(pattern=r"\A([0-9a-fA-F]{96})?\Z")]
    event: str
    event_payload: Annotated[str, Meta(pattern=r"\A(?:[0-9a-fA-F]{2})*+\Z")]  # see recognise._HEX


def _parse_dstack(data: bytes) -> Iterator[Event]:
    try:
        entries = msgspec.convert(parse_json(data), Annotated[tuple[_DstackEvent, ...], Meta(max_length=MAX_EVENTS)])
    except (JsonError, msgspec.ValidationError) as error:
        raise _malformed(str(error)) from error
    for entry in entries:
        payload, digest = bytes.fromhex(entry.event_payload), bytes.fromhex(entry.digest)
        if entry.imr == _RUNTIME_REGISTER:
            # Old versions leave the digest out, and a reader of name and payload must not be fooled by another one.
            parts = (entry.event_type.to_bytes(4, "little"), entry.event.encode(), payload)
            digest = hashlib.sha384(b":".join(parts)).digest()
        elif not digest:
            raise _malformed(f"an event of RTMR{entry.imr} has no digest")
        yield Event(entry.imr, entry.event_type, digest, entry.event, payload)


def _parse_tcg(data: bytes) -> Iterator[Event]:
    """The first event is in the old form and names the algorithms; each of the rest has a digest for all of them."""
    sizes, at = _parse_header(data)
    end = min(len(data.rstrip(b"\0")), len(data.rstrip(b"\xff")))  # either may fill the rest of the firmware's area
    for _ in range(MAX_EVENTS):
        if at >= end:
            return
        index, kind, count = struct.unpack("<III", _take(data, at, 12))
        at += 12
        digests: dict[int, bytes] = {}
        for _bank in range(len(sizes)):
            (algorithm,) = struct.unpack("<H", _take(data, at, 2))
            digests[algorithm] = _take(data, at + 2, sizes.get(algorithm, 0))
            at += 2 + len(digests[algorithm])
        if count != len(sizes) or digests.keys() != sizes.keys():
            raise _malformed(f"an event has digests other than the {len(sizes)} that the log announces")
        (length,) = struct.unpack("<I", _take(data, at, 4))
        payload = _take(data, at + 4, length)
        at += 4 + length
        if kind == _EV_NO_ACTION:
            continue
        if index not in _REGISTERS:
            raise _malformed(f"an event of measurement register {index}, want 1 to 4 for RTMR0 to RTMR3")
        yield Event(index - 1, kind, digests[_SHA384], "", payload)
    raise _malformed(f"more than {MAX_EVENTS} events")


def _parse_header(data: bytes) -> tuple[dict[int, int], int]:
    """Return the digest sizes by algorithm, and where the first event begins."""
    _index, kind, _digest, length = _LEGACY_HEADER.unpack(_take(data, 0, _LEGACY_HEADER.size))
    end = _LEGACY_HEADER.size + length
    body = _take(data, _LEGACY_HEADER.size, length)
    if kind != _EV_NO_ACTION or not body.startswith(_HEADER_SIGNATURE):
        raise _malformed("neither JSON nor a TCG log of crypto-agile events")
    (count,) = struct.unpack("<I", _take(body, 24, 4))
    sizes = dict(struct.iter_unpack("<HH", _take(body, 28, 4 * count)))
    (vendor,) = _take(body, 28 + 4 * count, 1)
    if len(sizes) != count or len(body) != 29 + 4 * count + vendor or sizes.get(_SHA384) != _DIGEST_BYTES:
        raise _malformed("header does not announce one SHA-384 digest per event")
    return sizes, end


def _take(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise _malformed(f"cut off: {size} bytes wanted at {at} of {len(data)}")
    return data[at : at + size]
