"""Reports of Azure's paravisor (HCL), and the runtime data in them: bytes to fields (docs/spec/attestation.md, 5.4.1).

The paravisor keeps its report in NV index 0x01400001 of the vTPM.  Integers are little-endian:

    0     "HCLA", version (1, 2), bytes of the report, request type, status: u32 each; 12 bytes of zero
    32    hardware report: 1184 bytes of SEV-SNP, or 1024 of TDREPORT and zeros
    1216  bytes from here on, version (1), report type, hash type, bytes of the runtime data: u32 each
    1236  runtime data, JSON
    ...   zeros up to the size of the NV index

The hardware signs nothing of this but a hash of the runtime data, in the first bytes of REPORT_DATA.  So the JSON is
read (`parse_runtime_data`) after `verify.py` has compared that hash, and all that could be varied must have one value.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec import Meta

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.encodings import base64url_decode, parse_json
from tresor.errors import EncodingError, JsonError

__all__ = ["HclReport", "ReportType", "RuntimeData", "parse_hcl_report", "parse_runtime_data"]

_MAX_BYTES: Final = 16 * 1024  # the NV index has 2600
_MAGIC: Final = b"HCLA"
_HEADER: Final = struct.Struct("<4sIIII12s")
_HARDWARE_BYTES: Final = 1184
_REQUEST: Final = struct.Struct("<IIIII")
_REQUEST_AT: Final = _HEADER.size + _HARDWARE_BYTES
_RUNTIME_DATA_AT: Final = _REQUEST_AT + _REQUEST.size
_VERSIONS: Final = (1, 2)
_REQUEST_VERSION: Final = 1
_AK_CERT_REQUEST: Final = 2
_HASHES: Final = {1: "sha256", 2: "sha384", 3: "sha512"}
_AK: Final = "HCLAkPub"
_MODULUS_BITS: Final = range(2048, 4097)
_EXPONENTS: Final = range(65537, 1 << 32, 2)


class ReportType(IntEnum):
    """Whose hardware report it is; VBS (1) has none."""

    SNP = 2
    TDX = 4


_REPORT_BYTES: Final = {ReportType.SNP: 1184, ReportType.TDX: 1024}


@dataclass(frozen=True, slots=True, repr=False)
class HclReport:
    """A well-formed report of the paravisor; nothing of it is known to be signed.

    Attributes:
        version: 1 or 2.
        report_type: whose hardware report it is.
        hardware_report: an SNP report, or a TDREPORT.
        hash_name: the function, as `hashlib` calls it, whose value of the runtime data is in REPORT_DATA.
        runtime_data: as received.
    """

    version: int
    report_type: ReportType
    hardware_report: bytes
    hash_name: str
    runtime_data: bytes


def parse_hcl_report(data: bytes) -> HclReport:
    """Parse a report of the paravisor.

    Raises:
        EvidenceMalformedError: too large, another version or kind, a length that contradicts another, or bytes other
            than zero where nothing stands.
    """
    if len(data) > _MAX_BYTES:
        raise _malformed(f"{len(data)} bytes, want at most {_MAX_BYTES}", AttestationCode.EVIDENCE_TOO_LARGE)
    if len(data) < _RUNTIME_DATA_AT:
        raise _malformed(f"{len(data)} bytes, want at least {_RUNTIME_DATA_AT}")
    magic, version, report_bytes, request_type, status, reserved = _HEADER.unpack_from(data)
    request_bytes, request_version, report_type, hash_type, size = _REQUEST.unpack_from(data, _REQUEST_AT)
    if magic != _MAGIC:
        raise _malformed("the first bytes are not HCLA")
    if version not in _VERSIONS or request_version != _REQUEST_VERSION:
        raise _malformed(
            f"versions {version} and {request_version}, want 1 or 2 and 1", AttestationCode.EVIDENCE_VERSION_UNSUPPORTED
        )
    if report_type not in _REPORT_BYTES:
        raise _malformed(
            f"hardware report of type {report_type}, want 2 (SNP) or 4 (TDX)", AttestationCode.EVIDENCE_KIND_MISMATCH
        )
    if hash_type not in _HASHES:
        raise _malformed(f"hash of type {hash_type}, want 1 to 3", AttestationCode.ALGORITHM_NOT_ALLOWED)
    end = _RUNTIME_DATA_AT + size
    if (report_bytes, request_bytes) != (end, _REQUEST.size + size) or end > len(data):
        raise _malformed(
            f"runtime data of {size} bytes in a request of {request_bytes} in a report of {report_bytes} in {len(data)}"
        )
    hardware_end = _HEADER.size + _REPORT_BYTES[ReportType(report_type)]
    between = data[hardware_end:_REQUEST_AT]
    if (request_type, status) != (_AK_CERT_REQUEST, 0) or any(reserved) or any(between) or any(data[end:]):
        raise _malformed(
            f"request type {request_type}, status {status}, want 2 and 0, and zeros where nothing stands",
            AttestationCode.RESERVED_NOT_ZERO,
        )
    return HclReport(
        version=version,
        report_type=ReportType(report_type),
        hardware_report=data[_HEADER.size : hardware_end],
        hash_name=_HASHES[hash_type],
        runtime_data=data[_RUNTIME_DATA_AT:end],
    )


class _Jwk(msgspec.Struct, frozen=True):
    kid: str
    kty: str
    n: str = ""
    e: str = ""


class _VmConfiguration(msgspec.Struct, frozen=True, rename="kebab"):
    secure_boot: bool
    console_enabled: bool | None = None
    vm_unique_id: Annotated[str, Meta(pattern=r"\A[0-9A-Fa-f-]{1,64}\Z")] | None = msgspec.field(
        name="vmUniqueId", default=None
    )


class _RuntimeData(msgspec.Struct, frozen=True, rename="kebab"):
    keys: Annotated[tuple[_Jwk, ...], Meta(max_length=16)]
    vm_configuration: _VmConfiguration
    user_data: Annotated[str, Meta(pattern=r"\A([0-9A-F]{128}|[0-9a-f]{128})\Z")] | None = None


@dataclass(frozen=True, slots=True)
class RuntimeData:
    """What the paravisor says of the machine; members that are not named here are ignored.

    Attributes:
        ak: the attestation key of the vTPM.
        secure_boot: the firmware was started with UEFI Secure Boot on.
        console_enabled: the machine has a console; None where it does not say.
        vm_id: Azure's identifier of the machine, where it says.
        user_data: 64 bytes that the guest put into NV index 0x01400002; None before there was such an index.
    """

    ak: rsa.RSAPublicKey
    secure_boot: bool
    console_enabled: bool | None
    vm_id: str | None
    user_data: bytes | None


def parse_runtime_data(data: bytes) -> RuntimeData:
    """Parse the runtime data of a report.

    `key_ops` of the key is not looked at: early paravisors wrote "encrypt" for the key that signs.

    Raises:
        EvidenceMalformedError: not strict JSON, a member missing or of another form, not exactly one attestation key,
            or one that is no RSA key of 2048 to 4096 bits.
    """
    try:
        document = msgspec.convert(parse_json(data), _RuntimeData)
        (jwk,) = (key for key in document.keys if key.kid == _AK)
        n, e = (int.from_bytes(base64url_decode(text)) for text in (jwk.n, jwk.e))
        if jwk.kty != "RSA" or n.bit_length() not in _MODULUS_BITS or e not in _EXPONENTS:
            raise _malformed(f"{_AK} is not an RSA key of 2048 to 4096 bits", AttestationCode.ALGORITHM_NOT_ALLOWED)
        ak = rsa.RSAPublicNumbers(e, n).public_key()
    except (JsonError, EncodingError, msgspec.ValidationError) as error:
        raise _malformed(f"runtime data: {error}") from error
    except ValueError as error:
        raise _malformed(f"runtime data does not hold exactly one usable {_AK}") from error
    configuration, user_data = document.vm_configuration, document.user_data
    return RuntimeData(
        ak=ak,
        secure_boot=configuration.secure_boot,
        console_enabled=configuration.console_enabled,
        vm_id=configuration.vm_unique_id,
        user_data=None if user_data is None else bytes.fromhex(user_data),
    )


def _malformed(message: str, code: AttestationCode = AttestationCode.EVIDENCE_MALFORMED) -> EvidenceMalformedError:
    return EvidenceMalformedError(code, f"HCL report: {message}")
