"""One SPDM exchange of an NVIDIA device: GET_MEASUREMENTS request and MEASUREMENTS response (DSP0274 1.1.0).

Layout, all integers little-endian; sizes in bytes:

    request   version 11h, code E0h, param1 01h (sign), param2 FFh (every measurement), nonce (32), slot (1)
    response  version 11h, code 60h, param1, param2 (low nibble: slot), number of blocks (1), record length (3),
              measurement record, nonce (32), opaque length (2), opaque data, signature (96: r and s, big-endian)
    block     index (1, from 1), specification 01h (DMTF), size (2), value type (1), value size (2), value
    opaque    field type (2), field size (2), field

Everything before the signature is signed.  Golden measurements count from 0: index i is block i + 1.

Field types are those of NVIDIA's verifier.  Not interpreted: MSRSCNT, CPR info, board id, PDIs and port maps of
NVLink, SYS_ENABLE_STATUS, whose meaning is not published.
"""

import hashlib
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError

__all__ = ["MAX_REPORT_BYTES", "NONCE_BYTES", "SpdmReport", "parse_report"]

MAX_REPORT_BYTES = 16 * 1024
NONCE_BYTES = 32

_REQUEST = b"\x11\xe0\x01\xff"
_RESPONSE = b"\x11\x60"
_HEADER_BYTES = 8
_BLOCK_HEADER = struct.Struct("<BBHBH")
_BLOCK_PREFIX_BYTES = 4  # index, specification and size, which the size does not count
_DMTF = 1
_SIGNATURE_BYTES = 96
_MAX_SLOT = 7

_DRIVER_VERSION = 3
_VBIOS_VERSION = 6
_NVDEC0_STATUS = 11
_CHIP_SKU = 15
_PROJECT = 17
_PROJECT_SKU = 18
_FWID = 20
_PROTECTED_PCIE_STATUS = 21
_OPAQUE_DATA_VERSION = 34
_CHIP_INFO = 35
_FEATURE_FLAG = 36

_FWID_BYTES = 48
_VBIOS_BYTES = 8
_ON, _OFF = 0xAA, 0x55
_MODES: Final = {0: "mpt", 1: "spt", 2: "ppcie"}  # multi-GPU and single-GPU passthrough, protected PCIe
_TEXT = re.compile(rb"[A-Za-z0-9._-]{1,32}\Z")
_VBIOS_TEXT = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}\Z")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, repr=False)
class SpdmReport:
    """A well-formed exchange; nothing says yet who signed it.

    Attributes:
        nonce: the requester's challenge, 32 bytes.
        measurements: golden index (from 0) to value, for every block of the record.
        record_sha384: SHA-384 of the measurement record, 96 hexadecimal digits.
        driver_version: such as `550.90.07`; None for an NVSwitch.
        vbios_version: such as `96.00.9F.00.01`.
        project: board project, part of the name of the VBIOS manifest; likewise `project_sku` and `chip_sku`.
        chip: `CHIP_INFO`, such as `GB202`; None where the driver does not report it.
        fwid: SHA-384 identity of the firmware that holds the signing key; None where the driver does not report it.
        nvdec0_disabled: NVDEC0 is off, so golden index 35 says nothing.
        protected_pcie: the GPU runs in protected PCIe mode; None where the driver does not report it.
        mode: `mpt`, `spt` or `ppcie`; `unknown` for another value; None where the driver does not report it.
        signed: all bytes that the signature covers, as received.
        signature: r and s, 48 bytes each, big-endian.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    record_sha384: str
    driver_version: str | None
    vbios_version: str
    project: str | None
    project_sku: str | None
    chip_sku: str | None
    chip: str | None
    fwid: bytes | None
    nvdec0_disabled: bool
    protected_pcie: bool | None
    mode: str | None
    signed: bytes = field(hash=False)
    signature: bytes

    def __repr__(self) -> str:
        return f"SpdmReport({len(self.signed)} bytes, {len(self.measurements)} measurements)"


def parse_report(data: bytes) -> SpdmReport:
    """Parse one exchange, all of whose bytes count.

    Raises:
        EvidenceMalformedError: another version or message, a length that does not add up, a block or field twice, a
            field of another form than NVIDIA's devices send, or more than 16 KiB.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"GPU report is {len(data)} bytes, want at most {MAX_REPORT_BYTES}"
        )
    if data[: len(_REQUEST)] != _REQUEST:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_VERSION_UNSUPPORTED,
            f"request begins {data[:4].hex() or 'nowhere'}, want {_REQUEST.hex()} (SPDM 1.1 GET_MEASUREMENTS, signed)",
        )
    reader = _Reader(data, len(_REQUEST))
    nonce = reader.take(NONCE_BYTES, "nonce of the request")
    slot = reader.take(1, "slot")[0]
    header = reader.take(_HEADER_BYTES, "header of the response")
    if header[:2] != _RESPONSE:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_VERSION_UNSUPPORTED,
            f"response begins {header[:2].hex()}, want {_RESPONSE.hex()} (SPDM 1.1 MEASUREMENTS)",
        )
    if slot > _MAX_SLOT or header[3] & 0x0F != slot:
        raise _malformed(f"certificate slot {slot} was asked for, {header[3] & 0x0F} answered, want the same of 0 to 7")
    record = reader.take(int.from_bytes(header[5:8], "little"), "measurement record")
    reader.take(NONCE_BYTES, "nonce of the response")
    opaque = reader.take(int.from_bytes(reader.take(2, "opaque length"), "little"), "opaque data")
    signature = reader.take(_SIGNATURE_BYTES, "signature")
    if reader.rest:
        raise _malformed(f"{reader.rest} bytes stand behind the signature, want none")
    fields = _parse_opaque(opaque)
    return SpdmReport(
        nonce=nonce,
        measurements=_parse_record(record, blocks=header[4]),
        record_sha384=hashlib.sha384(record).hexdigest(),
        driver_version=_optional(fields, _DRIVER_VERSION, _text),
        vbios_version=_vbios_version(fields),
        project=_optional(fields, _PROJECT, _text),
        project_sku=_optional(fields, _PROJECT_SKU, _text),
        chip_sku=_optional(fields, _CHIP_SKU, _text),
        chip=_optional(fields, _CHIP_INFO, _text),
        fwid=_optional(fields, _FWID, _fwid),
        nvdec0_disabled=_optional(fields, _NVDEC0_STATUS, _switch) is False,
        protected_pcie=_optional(fields, _PROTECTED_PCIE_STATUS, _switch),
        mode=_mode(fields),
        signed=data[:-_SIGNATURE_BYTES],
        signature=signature,
    )


class _Reader:
    """A position in bytes that never leaves them."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data = data
        self._position = position

    @property
    def rest(self) -> int:
        return len(self._data) - self._position

    def take(self, size: int, what: str) -> bytes:
        if size > self.rest:
            raise _malformed(f"{what} is {size} bytes, {self.rest} are left")
        self._position += size
        return self._data[self._position - size : self._position]


def _parse_record(record: bytes, *, blocks: int) -> dict[int, bytes]:
    reader = _Reader(record)
    measurements: dict[int, bytes] = {}
    for _ in range(blocks):
        header = reader.take(_BLOCK_HEADER.size, "header of a measurement block")
        index, specification, size, _, value_size = _BLOCK_HEADER.unpack(header)
        if specification != _DMTF or size != value_size + _BLOCK_HEADER.size - _BLOCK_PREFIX_BYTES:
            raise _malformed(
                f"measurement block {index} has specification {specification} and {size} bytes around a value of "
                f"{value_size}, want specification {_DMTF} and 3 bytes more than the value"
            )
        if index == 0 or index - 1 in measurements:
            raise _malformed(f"measurement block {index} stands twice, or counts from 0")
        measurements[index - 1] = reader.take(value_size, f"measurement {index}")
    if reader.rest or not measurements:
        raise _malformed(
            f"{blocks} measurement blocks leave {reader.rest} bytes of the record, want blocks and no rest"
        )
    return measurements


def _parse_opaque(data: bytes) -> dict[int, bytes]:
    reader = _Reader(data)
    fields: dict[int, bytes] = {}
    while reader.rest:
        kind, size = struct.unpack("<HH", reader.take(4, "header of an opaque field"))
        if kind in fields:
            raise _malformed(f"opaque field {kind} stands twice")
        fields[kind] = reader.take(size, f"opaque field {kind}")
    return fields


def _optional(fields: Mapping[int, bytes], kind: int, read: Callable[[bytes], _T | None]) -> _T | None:
    value = fields.get(kind)
    if value is None:
        return None
    read_value = read(value)
    if read_value is None:
        raise _malformed(f"opaque field {kind} is {len(value)} bytes of a form that is not known")
    return read_value


def _text(value: bytes) -> str | None:
    text = value.rstrip(b"\x00")
    return text.decode("ascii") if _TEXT.match(text) else None


def _fwid(value: bytes) -> bytes | None:
    return value if len(value) == _FWID_BYTES else None


def _switch(value: bytes) -> bool | None:
    return {bytes((_ON,)): True, bytes((_OFF,)): False}.get(value)


def _vbios_version(fields: Mapping[int, bytes]) -> str:
    """Read the version: of a GPU eight bytes, of which b3 b2 b1 b0 b4 count; of an NVSwitch text."""
    value = fields.get(_VBIOS_VERSION, b"")
    if len(value) == _VBIOS_BYTES:
        return ".".join(f"{value[i]:02X}" for i in (3, 2, 1, 0, 4))
    text = value.rstrip(b"\x00").decode("ascii", errors="replace").upper()
    if not _VBIOS_TEXT.match(text):
        raise _malformed(f"VBIOS version is {len(value)} bytes of a form that is not known")
    return text


def _mode(fields: Mapping[int, bytes]) -> str | None:
    """Read FEATURE_FLAG, which counts from version 1 of the opaque data on."""
    version = int.from_bytes(fields.get(_OPAQUE_DATA_VERSION, b""), "little")
    if version == 0 or _FEATURE_FLAG not in fields:
        return None
    return _MODES.get(int.from_bytes(fields[_FEATURE_FLAG], "little"), "unknown")


def _malformed(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, message)
