"""VCEK and VLEK certificates: bytes to fields (docs/spec/attestation.md, 5.1.2).

Implements AMD 57230 (VCEK Certificate and KDS Interface Specification), chapter 3, and its twin for VLEKs.  AMD gives
all of them the serial number 0, which RFC 5280 forbids and the X.509 parser of `cryptography` is going to refuse, so
their one shape is read here with its DER decoder: X.509 version 3, an RSA-PSS signature, a P-384 key, and AMD's
extensions.  Anything else is no VCEK and no VLEK, a critical extension included.

Nothing here is verified: whoever signed, that is `verify.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.snp.tcb import LAYOUTS, Component, Product, Tcb
from tresor.attestation.x509 import MAX_CERTIFICATE_BYTES, readable_certificates

__all__ = ["HWID_BYTES", "EndorsementCertificate", "SignerKind", "find_endorsements", "parse_endorsement"]

T = TypeVar("T")

SignerKind = Literal["vcek", "vlek"]

_ARC: Final = "1.3.6.1.4.1.3704.1."
_STRUCT_VERSION: Final = _ARC + "1"
_PRODUCT_NAME: Final = _ARC + "2"
_SPL: Final[Mapping[Component, str]] = {
    "bl": _ARC + "3.1",
    "tee": _ARC + "3.2",
    "snp": _ARC + "3.3",
    "ucode": _ARC + "3.8",
    "fmc": _ARC + "3.9",
}
_RESERVED_SPL: Final = tuple(f"{_ARC}3.{number}" for number in range(4, 8))
_HWID: Final = _ARC + "4"
_CSP_ID: Final = _ARC + "5"
_MAX_SPL: Final = 255
_STRUCT_VERSIONS: Final = (0, 1)
HWID_BYTES: Final[dict[Product, int]] = {"Milan": 64, "Genoa": 64, "Turin": 8}

# RSASSA-PSS-params of SHA-384, MGF1 with SHA-384 and 48 bytes of salt (RFC 4055, section 3.1); AMD wrote out the
# trailer field, which is a default, until 2022.
_PSS = bytes.fromhex(
    "a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
_SIGNATURE_ALGORITHMS: Final = tuple(
    bytes((0x30, len(params) + 13)) + bytes.fromhex("06092a864886f70d01010a30") + bytes((len(params),)) + params
    for params in (_PSS, _PSS + bytes.fromhex("a303020101"))
)


@asn1.sequence
class _Extension:
    oid: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class _Validity:
    not_before: asn1.UTCTime | asn1.GeneralizedTime
    not_after: asn1.UTCTime | asn1.GeneralizedTime


@asn1.sequence
class _TbsCertificate:
    version: Annotated[int, asn1.Explicit(0)]
    serial_number: int
    signature: asn1.TLV
    issuer: asn1.TLV
    validity: _Validity
    subject: asn1.TLV
    subject_public_key_info: asn1.TLV
    extensions: Annotated[list[_Extension], asn1.Explicit(3)]


@asn1.sequence
class _Certificate:
    tbs_certificate: asn1.TLV
    signature_algorithm: asn1.TLV
    signature: asn1.BitString


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementCertificate:
    """A certificate of a key that signs reports; nothing says yet that AMD issued it.

    Attributes:
        kind: `vcek`, the chip's own key, or `vlek`, one lent to a cloud.
        product: product line.
        product_name: as AMD wrote it, with a stepping where it did: `Milan-B0`.
        tcb: the TCB version the key was derived for.
        hwid: identity of the chip: 64 bytes, 8 on Turin; None of a VLEK.
        csp_id: whom a VLEK was lent to; None of a VCEK.
        issuer: DER of the issuer's name.
        public_key: on P-384.
        tbs: DER of the TBSCertificate: what was signed.
        signature: RSASSA-PSS with SHA-384, by the ASK or ASVK.
        not_valid_before_utc: first instant of its validity.
        not_valid_after_utc: last instant.
    """

    kind: SignerKind
    product: Product
    product_name: str
    tcb: Tcb
    hwid: bytes | None
    csp_id: str | None
    issuer: bytes
    public_key: ec.EllipticCurvePublicKey
    tbs: bytes
    signature: bytes
    not_valid_before_utc: datetime
    not_valid_after_utc: datetime

    def __str__(self) -> str:
        whose = f"chip {self.hwid.hex()[:16]}" if self.hwid is not None else f"cloud {self.csp_id}"
        return f"{self.kind.upper()} of {self.product_name}, {whose}"


def parse_endorsement(der: bytes) -> EndorsementCertificate | None:
    """Parse a VCEK or VLEK certificate, all of whose bytes count; None where it carries no extension of AMD's.

    Raises:
        EvidenceMalformedError: not one DER certificate, or one with AMD's extensions that lacks what they must say.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise _malformed(f"certificate is {len(der)} bytes, want at most {MAX_CERTIFICATE_BYTES}")
    try:
        certificate = asn1.decode_der(_Certificate, der)
        tbs = certificate.tbs_certificate.parse(_TbsCertificate)
        values = _extensions(tbs.extensions)
        if values is None:
            return None
        public_key = serialization.load_der_public_key(asn1.encode_der(tbs.subject_public_key_info))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _malformed(f"{len(der)} bytes are not one DER certificate") from error
    if certificate.signature.padding_bits():  # whose number no signature covers
        raise _malformed("the certificate's signature is not of whole bytes")
    algorithm = asn1.encode_der(certificate.signature_algorithm)
    if algorithm not in _SIGNATURE_ALGORITHMS or algorithm != asn1.encode_der(tbs.signature):
        raise EvidenceMalformedError(
            AttestationCode.ALGORITHM_NOT_ALLOWED,
            "certificate is not signed with RSASSA-PSS, SHA-384, 48 bytes of salt",
        )
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP384R1):
        raise EvidenceMalformedError(AttestationCode.ALGORITHM_NOT_ALLOWED, "the certified key is not on P-384")
    product_name = _value(values, _PRODUCT_NAME, asn1.IA5String).as_str()
    product = _product(product_name)
    if (_HWID in values) == (_CSP_ID in values):
        raise _extension_missing("want HWID, as of a VCEK, or CSP_ID, as of a VLEK, and not both")
    return EndorsementCertificate(
        kind="vcek" if _HWID in values else "vlek",
        product=product,
        product_name=product_name,
        tcb=_tcb(values, product),
        hwid=_hwid(values, product) if _HWID in values else None,
        csp_id=_value(values, _CSP_ID, asn1.IA5String).as_str() if _CSP_ID in values else None,
        issuer=asn1.encode_der(tbs.issuer),
        public_key=public_key,
        tbs=asn1.encode_der(certificate.tbs_certificate),
        signature=certificate.signature.as_bytes(),
        not_valid_before_utc=tbs.validity.not_before.as_datetime(),
        not_valid_after_utc=tbs.validity.not_after.as_datetime(),
    )


def _extensions(extensions: list[_Extension]) -> dict[str, bytes] | None:
    """Return object identifier to value; None where none is AMD's."""
    values = {extension.oid.dotted_string: extension.value for extension in extensions}
    if not any(oid.startswith(_ARC) for oid in values):
        return None
    if len(values) != len(extensions):
        raise _malformed("an extension stands twice")
    if any(extension.critical for extension in extensions):
        raise _malformed("a critical extension is none of a VCEK's or VLEK's")
    if _value(values, _STRUCT_VERSION, int) not in _STRUCT_VERSIONS:
        raise _malformed(f"structure version is not one of {_STRUCT_VERSIONS}")
    return values


def _product(name: str) -> Product:
    """`Milan-B0` names a stepping of the line Milan."""
    for product in LAYOUTS:
        if name.partition("-")[0] == product:
            return product
    raise _malformed(f"product {name[:32]!a} is none of {', '.join(LAYOUTS)}")


def _hwid(values: Mapping[str, bytes], product: Product) -> bytes:
    """Read the chip's identity, which AMD writes bare and its specification as an OCTET STRING."""
    size = HWID_BYTES[product]
    hwid = values[_HWID] if len(values[_HWID]) == size else _value(values, _HWID, bytes)
    if len(hwid) != size:
        raise _malformed(f"HWID is {len(hwid)} bytes, want {size} on {product}")
    return hwid


def _tcb(values: Mapping[str, bytes], product: Product) -> Tcb:
    """Read the security versions; those that AMD reserves must be zero, as the bytes of a report's TCB are."""
    foreign = [oid for name, oid in _SPL.items() if name not in LAYOUTS[product]]
    if any(_value(values, oid, int) for oid in (*_RESERVED_SPL, *foreign) if oid in values):
        raise EvidenceMalformedError(
            AttestationCode.RESERVED_NOT_ZERO, f"a security version that {product} does not have is not zero"
        )
    parts = {name: _value(values, _SPL[name], int) for name in LAYOUTS[product]}
    if not all(0 <= number <= _MAX_SPL for number in parts.values()):
        raise _malformed(f"security versions {parts} are not all bytes")
    return Tcb(parts)


def _value(values: Mapping[str, bytes], oid: str, kind: type[T]) -> T:
    """Decode the DER that an extension holds."""
    if oid not in values:
        raise _extension_missing(f"want {oid}")
    try:
        return asn1.decode_der(kind, values[oid])
    except ValueError as error:
        raise _malformed(f"extension {oid} does not hold one DER {kind.__name__}") from error


def _malformed(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.CERTIFICATE_MALFORMED, message)


def _extension_missing(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(
        AttestationCode.CERTIFICATE_EXTENSION_MISSING, f"certificate lacks an extension of AMD's: {message}"
    )


def find_endorsements(ders: Iterable[bytes]) -> tuple[list[EndorsementCertificate], list[EvidenceMalformedError]]:
    """Pick VCEKs and VLEKs out of a bag of certificates.

    Returns:
        Those found, in order, and why others that are neither these nor anybody's certificates could not be read.
    """
    found: list[EndorsementCertificate] = []
    unread: list[EvidenceMalformedError] = []
    for der in ders:
        try:
            endorsement = parse_endorsement(der)
        except EvidenceMalformedError as error:
            if not readable_certificates([der]):
                unread.append(error)
            continue
        if endorsement is not None:
            found.append(endorsement)
    return found, unread
