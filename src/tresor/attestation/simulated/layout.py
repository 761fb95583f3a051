"""What a simulated report looks like, for its maker and its verifier alike (docs/spec/attestation.md, 5.6).

Built like an SNP report, so that the same parser reads it, and unlike any that AMD's firmware could make: no processor,
no signing key, a chip, a family and an image that say what they are, and certificates with a critical extension that no
other verifier understands.  Everything but REPORT_DATA and the measured image is fixed.
"""

import hashlib
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from tresor.attestation.snp.abi import SIGNED_BYTES, GuestPolicy, SigningKey

__all__ = [
    "LEAF_NAME",
    "MARKER",
    "MARKER_OID",
    "MEASUREMENT_PREFIX",
    "ROOT_NAME",
    "leaf_extensions",
    "marker_extension",
    "measurement_of",
    "unsigned_report",
]

MARKER: Final = b"SIMULATED-NOT-A-TEE"
MEASUREMENT_PREFIX: Final = b"SIMULATE"
_VERSION: Final = 3  # the first that states the processor, here none
_ALGORITHM: Final = 1

# An arc of our own, from a UUID (ITU-T X.667): nobody registers it, and nobody else has it.
_ARC: Final = "2.25.184538050190783119644498441750174876931"
MARKER_OID: Final = f"{_ARC}.1"
_PRODUCT_NAME_OID: Final = f"{_ARC}.2"
_HWID_OID: Final = f"{_ARC}.4"

ROOT_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SIMULATED - NOT A TEE")])
LEAF_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SIMULATED - NOT A TEE - report key")])


def marker_extension() -> x509.UnrecognizedExtension:
    """Return the extension that every certificate carries as a critical one: a UTF8String."""
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(MARKER_OID), bytes((0x0C, len(MARKER))) + MARKER)


def leaf_extensions() -> tuple[x509.UnrecognizedExtension, ...]:
    """Return what else a leaf says: a product name (IA5String) and a HWID (bare, 64 bytes), as a VCEK does."""
    name = b"Simulated"
    return (
        x509.UnrecognizedExtension(x509.ObjectIdentifier(_PRODUCT_NAME_OID), bytes((0x16, len(name))) + name),
        x509.UnrecognizedExtension(x509.ObjectIdentifier(_HWID_OID), MARKER.ljust(64, b"\0")),
    )


def measurement_of(image_digest: bytes) -> bytes:
    """Return the 48 bytes that stand for a launch measurement: no hash of anything begins like them by chance."""
    return MEASUREMENT_PREFIX + hashlib.sha384(MARKER + image_digest).digest()[len(MEASUREMENT_PREFIX) :]


def unsigned_report(report_data: bytes, measurement: bytes) -> bytes:
    """Return the signed part of a report, 0x2a0 bytes, for 64 bytes of REPORT_DATA and 48 of MEASUREMENT."""
    signed = bytearray(SIGNED_BYTES)
    for offset, value in (
        (0x000, _VERSION.to_bytes(4, "little")),
        (0x008, GuestPolicy.MUST_BE_ONE.to_bytes(8, "little")),
        (0x010, MARKER[:16]),  # FAMILY_ID
        (0x020, MARKER[:16]),  # IMAGE_ID
        (0x034, _ALGORITHM.to_bytes(4, "little")),
        (0x048, (SigningKey.NONE << 2).to_bytes(4, "little")),
        (0x050, report_data),
        (0x090, measurement),
        (0x1A0, MARKER),  # CHIP_ID
    ):
        signed[offset : offset + len(value)] = value
    return bytes(signed)
