"""What a PCK certificate says about its platform (docs/spec/attestation.md, 5.2.2).

Implements the SGX extensions of Intel's "SGX PCK Certificate and Certificate Revocation List Profile", section 1.3.5:
`1.2.840.113741.1.13.1`, a SEQUENCE of (OID, value) pairs of which some hold such a sequence again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from cryptography import x509

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError

__all__ = ["PckPlatform", "parse_pck"]

_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_PREFIX: Final = bytes.fromhex("2a864886f84d010d01")  # the same in DER; what follows names the value
_SEQUENCE, _OID = 0x30, 0x06
_PLATFORM_CA: Final = "Intel SGX PCK Platform CA"


@dataclass(frozen=True, slots=True)
class PckPlatform:
    """The platform that a PCK certificate was issued for.

    Attributes:
        fmspc: family, model, stepping, platform and custom SKU: 6 bytes, to which the collateral is issued.
        pceid: 2 bytes.
        cpusvn: 16 SVNs of the processor's components, one byte each.
        pcesvn: SVN of the provisioning certification enclave.
        ca: the issuer as Intel's service names it; a platform CA stands behind hosts of several packages.
        flags: `dynamic_platform`, `cached_keys` and `smt` where the certificate tells.
    """

    fmspc: bytes
    pceid: bytes
    cpusvn: bytes
    pcesvn: int
    ca: Literal["platform", "processor"]
    flags: dict[str, bool]


def parse_pck(certificate: x509.Certificate) -> PckPlatform:
    """Read the SGX extensions of a PCK certificate.

    Raises:
        EvidenceMalformedError: there are none, one that is needed is missing, or they are not DER.
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(_EXTENSION).value
        if not isinstance(extension, x509.UnrecognizedExtension):
            raise ValueError("another type")  # noqa: TRY004 - a flaw of the certificate, mapped below
        ((_, content),) = _items(extension.value)
        values: dict[bytes, bytes] = {}
        for name, tag, value in _pairs(content):
            values[name] = value
            if tag == _SEQUENCE:
                values |= {inner: item for inner, _, item in _pairs(value) if inner[:-1] == name}
        flags = {
            name: values[oid] == b"\xff"
            for name, oid in (("dynamic_platform", b"\x07\x01"), ("cached_keys", b"\x07\x02"), ("smt", b"\x07\x03"))
            if oid in values
        }
        platform = PckPlatform(
            fmspc=values[b"\x04"],
            pceid=values[b"\x03"],
            cpusvn=values[b"\x02\x12"],
            pcesvn=int.from_bytes(values[b"\x02\x11"]),
            ca="platform" if _PLATFORM_CA in certificate.issuer.rfc4514_string() else "processor",
            flags=flags,
        )
    except x509.ExtensionNotFound as error:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_EXTENSION_MISSING, "PCK certificate has no SGX extensions"
        ) from error
    except (KeyError, ValueError) as error:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED, "SGX extensions of the PCK certificate cannot be read"
        ) from error
    if (len(platform.fmspc), len(platform.pceid), len(platform.cpusvn)) != (6, 2, 16):
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED, "FMSPC, PCEID or CPUSVN of the PCK certificate has another length"
        )
    return platform


def _pairs(der: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield the end of each OID in a sequence of pairs, and tag and content of its value."""
    for tag, pair in _items(der):
        (oid_tag, oid), (value_tag, value) = _items(pair)
        name = oid.removeprefix(_PREFIX)
        if tag != _SEQUENCE or oid_tag != _OID or name == oid:
            raise ValueError("no pair of an OID and a value")
        yield name, value_tag, value


def _items(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each DER item in turn; lengths of up to two bytes, which is more than Intel's need."""
    while der:
        if len(der) < 2:  # noqa: PLR2004 - tag and length
            raise ValueError("an item is cut off")
        tag, length, at = der[0], der[1], 2
        if length >= 0x80:  # noqa: PLR2004 - the long form (X.690, section 8.1.3.5)
            at += length - 0x80
            length = int.from_bytes(der[2:at])
            if at - 2 not in {1, 2} or length < 0x80:  # noqa: PLR2004 - the short form would have done
                raise ValueError("length is not DER")
        if at + length > len(der):
            raise ValueError("an item is cut off")
        yield tag, der[at : at + length]
        der = der[at + length :]
