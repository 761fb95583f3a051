"""SEV-SNP attestation reports and certificate tables: bytes to fields (docs/spec/attestation.md, 5.1.1).

Implements AMD 56860 (SEV Secure Nested Paging Firmware ABI Specification), tables "ATTESTATION_REPORT" of its versions
2 to 5, and the certificate table of the GHCB specification (AMD 56421, section 4.1.8.1).  All integers are
little-endian.  Nothing here is verified.

Every byte is read or must be zero: 0x000-0x29f because they are signed, 0x330-0x49f because they are not, and a reader
that lets them pass hands out 368 bytes that anybody may write.
"""

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final
from uuid import UUID

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.snp.tcb import Product

__all__ = [
    "REPORT_BYTES",
    "SIGNED_BYTES",
    "GuestPolicy",
    "PlatformInfo",
    "SigningKey",
    "SnpReport",
    "parse_certificate_table",
    "parse_report",
    "product_of_cpuid",
]

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
_SCALAR_BYTES = 72  # r and s are P-384 scalars in fields of 576 bits
_VERSIONS = range(2, 6)
_VERSION_WITH_CPUID = 3
_VERSION_WITH_MITIGATIONS = 5
_ECDSA_P384_SHA384 = 1
_POLICY_BITS = 26
_KEY_INFORMATION_BITS = 5
_MAX_CERTIFICATE_TABLE_BYTES = 1 << 20


class GuestPolicy(IntFlag):
    """Bits 16 and above of POLICY (AMD 56860, table "Guest Policy Structure"); below stands the least ABI version."""

    SMT = 1 << 16
    MUST_BE_ONE = 1 << 17
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING_DRAM = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


class PlatformInfo(IntFlag):
    """Bits of PLATFORM_INFO (AMD 56860, table "PLATFORM_INFO Field"); newer firmware sets more."""

    SMT_EN = 1 << 0
    TSME_EN = 1 << 1
    ECC_EN = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING_DRAM_EN = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    IOMMU_WRITE_SAFE = 1 << 6
    TIO_EN = 1 << 7


class SigningKey(IntEnum):
    """SIGNING_KEY of the report's key information; 2 to 6 are reserved."""

    VCEK = 0
    VLEK = 1
    NONE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """An attestation report; each field is named as AMD names it.  TCB versions are raw: their layout is the product's.

    Attributes:
        signing_key: which kind of key signed, as the report says; a value of `SigningKey` or a reserved one.
        cpuid: family, model and stepping of the processor; None in version 2, which does not tell.
        launch_mit_vector: mitigations in force at launch, a bit each; None before version 5.
        current_mit_vector: likewise, now.
        r: first half of the ECDSA signature.
        s: second half.
        signed: the 0x2a0 bytes that were signed, as received.
    """

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: PlatformInfo
    author_key_en: bool
    mask_chip_key: bool
    signing_key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_tcb: bytes
    launch_mit_vector: int | None
    current_mit_vector: int | None
    r: int
    s: int
    signed: bytes = field(repr=False)


def parse_report(data: bytes) -> SnpReport:
    """Parse one report of exactly 1184 bytes.

    Raises:
        EvidenceMalformedError: another length, version or signature algorithm, or reserved bits that are not as AMD
            says they must be.
    """
    if len(data) != REPORT_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_MALFORMED, f"SNP report is {len(data)} bytes, want {REPORT_BYTES}"
        )

    def number(offset: int, size: int = 4) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    def raw(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    def version_at(offset: int) -> tuple[int, int, int]:
        build, minor, major = raw(offset, 3)
        return major, minor, build

    version = number(0x000)
    if version not in _VERSIONS:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_VERSION_UNSUPPORTED,
            f"SNP report has version {version}, want {_VERSIONS[0]} to {_VERSIONS[-1]}",
        )
    if number(0x034) != _ECDSA_P384_SHA384:
        raise EvidenceMalformedError(
            AttestationCode.ALGORITHM_NOT_ALLOWED,
            f"SIGNATURE_ALGO is {number(0x034)}, want {_ECDSA_P384_SHA384} (ECDSA P-384 with SHA-384)",
        )
    has_cpuid, has_mitigations = version >= _VERSION_WITH_CPUID, version >= _VERSION_WITH_MITIGATIONS
    policy, key_information = GuestPolicy(number(0x008, 8)), number(0x048)
    for start, end in (
        (0x04C, 0x050),
        (0x18B if has_cpuid else 0x188, 0x1A0),
        (0x1EB, 0x1EC),
        (0x1EF, 0x1F0),
        (0x208 if has_mitigations else 0x1F8, SIGNED_BYTES),
        (SIGNED_BYTES + 2 * _SCALAR_BYTES, REPORT_BYTES),
    ):
        if any(data[start:end]):
            raise _reserved(f"bytes {start:#05x}-{end - 1:#05x} are not all zero")
    if not policy & GuestPolicy.MUST_BE_ONE or policy >> _POLICY_BITS or key_information >> _KEY_INFORMATION_BITS:
        raise _reserved(
            f"bits of POLICY {policy:#x} or of the key information {key_information:#x} are not as they must"
        )
    return SnpReport(
        version=version,
        guest_svn=number(0x004),
        policy=policy,
        family_id=raw(0x010, 16),
        image_id=raw(0x020, 16),
        vmpl=number(0x030),
        current_tcb=raw(0x038, 8),
        platform_info=PlatformInfo(number(0x040, 8)),
        author_key_en=bool(key_information & 1),
        mask_chip_key=bool(key_information & 2),
        signing_key=key_information >> 2,
        report_data=raw(0x050, 64),
        measurement=raw(0x090, 48),
        host_data=raw(0x0C0, 32),
        id_key_digest=raw(0x0E0, 48),
        author_key_digest=raw(0x110, 48),
        report_id=raw(0x140, 32),
        report_id_ma=raw(0x160, 32),
        reported_tcb=raw(0x180, 8),
        cpuid=(data[0x188], data[0x189], data[0x18A]) if has_cpuid else None,
        chip_id=raw(0x1A0, 64),
        committed_tcb=raw(0x1E0, 8),
        current_version=version_at(0x1E8),
        committed_version=version_at(0x1EC),
        launch_tcb=raw(0x1F0, 8),
        launch_mit_vector=number(0x1F8, 8) if has_mitigations else None,
        current_mit_vector=number(0x200, 8) if has_mitigations else None,
        r=number(SIGNED_BYTES, _SCALAR_BYTES),
        s=number(SIGNED_BYTES + _SCALAR_BYTES, _SCALAR_BYTES),
        signed=data[:SIGNED_BYTES],
    )


def _reserved(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.RESERVED_NOT_ZERO, f"SNP report: reserved {message}")


_MODELS: Final[tuple[tuple[int, range, Product], ...]] = (
    (0x19, range(0x10), "Milan"),
    (0x19, range(0x10, 0x20), "Genoa"),
    (0x19, range(0xA0, 0xB0), "Genoa"),  # Bergamo and Siena stand under the root of Genoa
    (0x1A, range(0x20), "Turin"),
)


def product_of_cpuid(family: int, model: int) -> Product | None:
    """Return the product line of a processor; None where AMD has no SEV-SNP root known here for it."""
    for of_family, models, product in _MODELS:
        if family == of_family and model in models:
            return product
    return None


_TABLE_ENTRY_BYTES = 24
_CERTIFICATE_GUIDS: Final = frozenset(
    UUID(text)
    for text in (
        "63da758d-e664-4564-adc5-f4b93be8accd",  # VCEK
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",  # VLEK
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",  # ASK; the ASVK where the table holds a VLEK
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",  # ARK
    )
)


def parse_certificate_table(data: bytes) -> tuple[bytes, ...]:
    """Parse the certificate table that a host hands its guest: `auxblob` of configfs-tsm, SNP_GET_EXT_REPORT.

    Entries of 24 bytes, GUID (as the kernel prints it, big-endian), offset and length (u32), end with one of zeros.
    Certificates come back in their order, unverified; entries of other GUIDs (the host's own, a CRL) are left out.

    Raises:
        EvidenceMalformedError: too long, without end, or an entry that points outside or into the entries.
    """
    if len(data) > _MAX_CERTIFICATE_TABLE_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE,
            f"certificate table is {len(data)} bytes, want at most {_MAX_CERTIFICATE_TABLE_BYTES}",
        )
    if not data:
        return ()  # a host that has none hands out an empty blob
    found: list[tuple[int, int]] = []
    for start in range(0, len(data) - _TABLE_ENTRY_BYTES + 1, _TABLE_ENTRY_BYTES):
        entry = data[start : start + _TABLE_ENTRY_BYTES]
        if not any(entry):
            end_of_entries = start + _TABLE_ENTRY_BYTES
            break
        if UUID(bytes=entry[:16]) in _CERTIFICATE_GUIDS:
            found.append((int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:], "little")))
    else:
        raise EvidenceMalformedError(AttestationCode.COLLATERAL_MALFORMED, "certificate table has no end")
    if any(offset < end_of_entries or offset + length > len(data) for offset, length in found):
        raise EvidenceMalformedError(
            AttestationCode.COLLATERAL_MALFORMED, "an entry of the certificate table points outside"
        )
    return tuple(data[offset : offset + length] for offset, length in found)
