"""Certificates and revocation lists: strict loading, chains to a pinned root, validity at a given instant (RFC 5280).

The chains of confidential computing are short and their shapes are known, so a chain is built by walking issuer names
upwards; every signature, validity, CA flag, path length and key usage on the way is checked.  A root counts because its
bytes are pinned, never because of its name.

A serial number that is not positive is refused here (RFC 5280, 4.1.2.2).  Every VCEK and VLEK of AMD has the serial
number 0; `tresor.attestation.snp.certificates` reads those without this parser.
"""

import contextlib
import re
from base64 import b64decode
from collections.abc import Container, Iterable, Sequence
from datetime import datetime
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError, EvidenceMalformedError, EvidenceUndecidedError

__all__ = [
    "MAX_CERTIFICATES",
    "MAX_CERTIFICATE_BYTES",
    "MAX_CHAIN",
    "Dated",
    "build_chain",
    "check_critical",
    "check_crl",
    "check_may_issue",
    "check_validity",
    "fingerprint",
    "load_certificate",
    "load_certificates",
    "load_crl",
    "readable_certificates",
    "split_certificates",
    "validity",
]

MAX_CHAIN = 8
MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_CERTIFICATES = 64
_MAX_CANDIDATES = 16
_MAX_CRL_BYTES = 4 << 20
_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")

# `cryptography` warns of such a serial number today and will refuse it one day.  To silence a warning is a matter of
# the whole process and not safe among threads; not to meet it is: the verdict is the same under every filter.
_LENGTH = rb"(?:[\x00-\x7f]|\x81.|\x82..)"
_SERIAL_NOT_POSITIVE = re.compile(
    rb"\x30" + _LENGTH + rb"\x30" + _LENGTH + rb"(?:\xa0\x03\x02\x01.)?\x02(?:\x01\x00|.[\x80-\xff])", re.DOTALL
)


class Dated(Protocol):
    """What has a validity: any certificate."""

    @property
    def not_valid_before_utc(self) -> datetime:
        """First instant."""

    @property
    def not_valid_after_utc(self) -> datetime:
        """Last instant."""


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse one DER certificate, all of whose bytes count.

    Raises:
        EvidenceMalformedError: too long, not DER, not a certificate, with bytes behind it, numbered 0 or below, or with
            a signature that is not of whole bytes.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED,
            f"certificate is {len(der)} bytes, want at most {MAX_CERTIFICATE_BYTES}",
        )
    if _SERIAL_NOT_POSITIVE.match(der):
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED,
            "the serial number is not positive (RFC 5280, 4.1.2.2); only AMD numbers its VCEKs and VLEKs so",
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        # Parsed lazily; what is wrong with them must surface here.
        certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
    except (
        ValueError,
        TypeError,  # a name of a bit string
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        Warning,  # raised where the embedding program makes errors of warnings
    ) as error:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED, f"{len(der)} bytes are not one DER certificate"
        ) from error
    if not der.endswith(b"\0" + certificate.signature):  # no signature covers the number of its unused bits
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED, "the certificate's signature is not of whole bytes"
        )
    return certificate


def split_certificates(data: bytes) -> list[bytes]:
    """Return the DER bytes of the certificates in PEM text, at most 64, or `data` itself where it is no PEM text.

    Nothing is parsed: what comes back are the raw documents of `Collateral.certificates`.

    Raises:
        EvidenceMalformedError: PEM text that is cut off or not base64, or too many certificates.
    """
    begun = data.count(_PEM_BEGIN)
    if not begun:
        return [data]
    if begun > MAX_CERTIFICATES:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED,
            f"PEM holds {begun} certificates, want at most {MAX_CERTIFICATES}",
        )
    blocks = _PEM.findall(data)
    try:
        ders = [b64decode(b"".join(block.split()), validate=True) for block in blocks]
    except ValueError as error:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED, "PEM text does not hold certificates"
        ) from error
    if len(ders) != begun:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED, f"of {begun} PEM certificates {len(ders)} are whole"
        )
    return ders


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """Parse one DER certificate, or PEM text of at most 64.

    Raises:
        EvidenceMalformedError: neither, or too many.
    """
    return [load_certificate(der) for der in split_certificates(data)]


def readable_certificates(ders: Iterable[bytes]) -> list[x509.Certificate]:
    """Parse those of a bag of DER certificates that `load_certificate` takes, in their order.

    Who cannot be read can be nobody's issuer; a bag may hold other vendors' certificates.
    """
    found = []
    for der in ders:
        with contextlib.suppress(EvidenceMalformedError):
            found.append(load_certificate(der))
    return found


def load_crl(data: bytes) -> x509.CertificateRevocationList:
    """Parse one revocation list, DER or PEM.

    Raises:
        EvidenceMalformedError: it is none.
    """
    if len(data) > _MAX_CRL_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.COLLATERAL_MALFORMED, f"CRL is {len(data)} bytes, want at most {_MAX_CRL_BYTES}"
        )
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        crl = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
        # Parsed lazily; what is wrong with them must surface here.
        crl.extensions, crl.issuer, crl.last_update_utc, crl.next_update_utc  # noqa: B018 - read to be parsed
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        Warning,
    ) as error:
        raise EvidenceMalformedError(
            AttestationCode.COLLATERAL_MALFORMED, f"{len(data)} bytes are not one certificate revocation list"
        ) from error
    return crl


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the DER bytes, 64 lower-case hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_validity(certificate: Dated, now: datetime) -> None:
    """Check that `now` lies in the certificate's validity.

    Raises:
        EvidenceForgedError: it does not.
    """
    name = certificate.subject.rfc4514_string() if isinstance(certificate, x509.Certificate) else str(certificate)
    if now < certificate.not_valid_before_utc:
        raise EvidenceForgedError(
            AttestationCode.CERTIFICATE_NOT_YET_VALID,
            f"certificate {name} is valid from {certificate.not_valid_before_utc.isoformat()}, asked for "
            f"{now.isoformat()}",
        )
    if now > certificate.not_valid_after_utc:
        raise EvidenceForgedError(
            AttestationCode.CERTIFICATE_EXPIRED,
            f"certificate {name} expired at {certificate.not_valid_after_utc.isoformat()}, asked for {now.isoformat()}",
        )


def validity(chain: Iterable[Dated]) -> tuple[datetime, datetime]:
    """Return the span in which every certificate of `chain`, which is not empty, is valid."""
    certificates = tuple(chain)
    return (
        max(certificate.not_valid_before_utc for certificate in certificates),
        min(certificate.not_valid_after_utc for certificate in certificates),
    )


def build_chain(
    leaf: x509.Certificate,
    pool: Sequence[x509.Certificate],
    *,
    roots: Sequence[x509.Certificate],
    now: datetime,
    understood: Container[str] = (),
) -> tuple[x509.Certificate, ...]:
    """Build and verify the chain from `leaf` to one of the pinned `roots`.

    Args:
        leaf: the certificate to trust.
        pool: certificates of unknown origin that may stand between; order, duplicates and strangers do not matter.
        roots: pinned trust anchors; compared by their bytes.
        now: instant at which every certificate must be valid (aware, UTC).
        understood: object identifiers of private critical extensions that the caller minds.

    Returns:
        The chain, leaf first, pinned root last.

    Raises:
        EvidenceForgedError: a signature does not verify, an issuer may not issue, a certificate is not valid at `now`,
            or the chain ends at a root that is not pinned.
        EvidenceUndecidedError: an issuer is missing from `pool`.
    """
    if not roots:
        raise EvidenceForgedError(AttestationCode.ROOT_NOT_PINNED, "no root is pinned, so nothing can be trusted")
    chain = [leaf]
    while chain[-1] not in roots:
        current = chain[-1]
        if current.issuer == current.subject:  # names prove nothing: it may well be named like a pinned root
            raise EvidenceForgedError(
                AttestationCode.ROOT_NOT_PINNED,
                f"chain ends at {current.subject.rfc4514_string()} with SHA-256 {fingerprint(current)}, "
                "which is not the pinned root",
            )
        candidates = [c for c in (*roots, *pool) if c.subject == current.issuer and c not in chain]
        candidates.sort(key=lambda c: not c.not_valid_before_utc <= now <= c.not_valid_after_utc)
        if not candidates:
            raise EvidenceUndecidedError(
                AttestationCode.ENDORSEMENT_MISSING,
                f"the certificate of the issuer {current.issuer.rfc4514_string()} is missing",
            )
        if len(chain) == MAX_CHAIN:
            raise EvidenceForgedError(AttestationCode.CHAIN_INVALID, f"chain is longer than {MAX_CHAIN} certificates")
        chain.append(_signer(current, candidates))
    for depth, certificate in enumerate(chain):
        check_validity(certificate, now)
        check_critical(certificate, understood)
        if depth > 0:
            check_may_issue(certificate, below=depth - 1)
    return tuple(chain)


def _signer(certificate: x509.Certificate, candidates: Sequence[x509.Certificate]) -> x509.Certificate:
    """Return the candidate that signed: names are not unique, signatures are."""
    for candidate in candidates[:_MAX_CANDIDATES]:
        try:
            certificate.verify_directly_issued_by(candidate)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            continue
        return candidate
    raise EvidenceForgedError(
        AttestationCode.CHAIN_INVALID,
        f"certificate {certificate.subject.rfc4514_string()} was not signed by the key of "
        f"{certificate.issuer.rfc4514_string()}",
    )


def check_critical(certificate: x509.Certificate, understood: Container[str] = ()) -> None:
    """Check that no critical extension is a private one that nobody here understands (RFC 5280, 4.2).

    Raises:
        EvidenceForgedError: one is: its issuer did not mean the certificate for us.
    """
    for extension in certificate.extensions:
        unknown = isinstance(extension.value, x509.UnrecognizedExtension)
        if extension.critical and unknown and extension.oid.dotted_string not in understood:
            raise EvidenceForgedError(
                AttestationCode.CHAIN_INVALID,
                f"certificate {certificate.subject.rfc4514_string()} has the critical extension "
                f"{extension.oid.dotted_string}, which is not understood",
            )


def check_may_issue(certificate: x509.Certificate, *, below: int) -> None:
    """Check CA flag, path length (`below` intermediates stand under it) and key usage, where they are stated."""
    name = certificate.subject.rfc4514_string()
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID, f"{name} has issued a certificate and is no CA (no BasicConstraints)"
        ) from error
    if not constraints.ca:
        raise EvidenceForgedError(AttestationCode.CHAIN_INVALID, f"{name} has issued a certificate and is no CA")
    if constraints.path_length is not None and below > constraints.path_length:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID,
            f"{below} intermediates stand below {name}, want at most {constraints.path_length}",
        )
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.key_cert_sign:
        raise EvidenceForgedError(AttestationCode.CHAIN_INVALID, f"the key of {name} may not sign certificates")


def check_crl(
    crl: x509.CertificateRevocationList,
    certificates: Iterable[x509.Certificate],
    *,
    issuer: x509.Certificate,
    now: datetime,
) -> None:
    """Check that `issuer` signed `crl`, that it is current at `now`, and that it lists none of `certificates`.

    Revocation is looked at first after the signature: a certificate that was revoked stays so when the list ages.

    Raises:
        EvidenceForgedError: a bad signature, a revoked certificate, or a list of another time.
    """
    if crl.issuer != issuer.subject or not _crl_signed_by(crl, issuer):
        raise EvidenceForgedError(
            AttestationCode.CRL_INVALID, f"CRL was not signed by {issuer.subject.rfc4514_string()}"
        )
    if any(extension.critical for extension in crl.extensions):  # it names a part of the certificates only
        raise EvidenceForgedError(
            AttestationCode.CRL_INVALID, "CRL has a critical extension, so it is not the whole list of its issuer"
        )
    for certificate in certificates:
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if certificate.issuer == crl.issuer and entry is not None:
            raise EvidenceForgedError(
                AttestationCode.CERTIFICATE_REVOKED,
                f"certificate {certificate.subject.rfc4514_string()} with serial {certificate.serial_number:x} was "
                f"revoked at {entry.revocation_date_utc.isoformat()}",
            )
    if now < crl.last_update_utc:
        raise EvidenceForgedError(
            AttestationCode.CRL_NOT_YET_VALID,
            f"CRL was issued at {crl.last_update_utc.isoformat()}, asked for {now.isoformat()}",
        )
    if crl.next_update_utc is None or now >= crl.next_update_utc:  # OpenSSL and webpki end a list at that second, too
        until = "without end" if crl.next_update_utc is None else crl.next_update_utc.isoformat()
        raise EvidenceForgedError(AttestationCode.CRL_EXPIRED, f"CRL ends {until}, asked for {now.isoformat()}")


def _crl_signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            parameters = crl.signature_algorithm_parameters
            if crl.signature_hash_algorithm is None or not isinstance(parameters, padding.AsymmetricPadding):
                return False
            key.verify(crl.signature, crl.tbs_certlist_bytes, parameters, crl.signature_hash_algorithm)
            return True
        return isinstance(key, ec.EllipticCurvePublicKey) and crl.is_signature_valid(key)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
