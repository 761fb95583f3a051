"""Certificates and revocation lists: strict loading, chains to a pinned root, validity at a given instant (RFC 5280).

The chains of confidential computing are short and their shapes are known, so a chain is built by walking issuer names
upwards; every signature, validity, CA flag, path length and key usage on the way is checked.  A root counts because its
bytes are pinned, never because of its name.
"""

import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.utils import CryptographyDeprecationWarning

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError, EvidenceMalformedError, EvidenceUndecidedError

__all__ = [
    "MAX_CHAIN",
    "build_chain",
    "check_crl",
    "check_validity",
    "fingerprint",
    "load_certificate",
    "load_certificates",
    "load_crl",
    "validity",
]

MAX_CHAIN = 8
_MAX_CERTIFICATE_BYTES = 16 * 1024
_MAX_CERTIFICATES = 64
_MAX_CRL_BYTES = 4 << 20
_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"

# Every VCEK and VLEK of AMD has the serial number 0, which RFC 5280 forbids and a later `cryptography` will refuse.
warnings.filterwarnings("ignore", message=".*serial number.*", category=CryptographyDeprecationWarning)


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse one DER certificate, all of whose bytes count.

    Raises:
        EvidenceMalformedError: too long, not DER, not a certificate, or with bytes behind it.
    """
    if len(der) > _MAX_CERTIFICATE_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED,
            f"certificate is {len(der)} bytes, want at most {_MAX_CERTIFICATE_BYTES}",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            certificate = x509.load_der_x509_certificate(der)
            certificate.extensions  # noqa: B018 - parsed lazily; a duplicate extension must surface here
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED, f"{len(der)} bytes are not one DER certificate"
        ) from error
    return certificate


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """Parse one DER certificate, or PEM text of at most 64.

    Raises:
        EvidenceMalformedError: neither, or too many.
    """
    if _PEM_BEGIN not in data:
        return [load_certificate(data)]
    if data.count(_PEM_BEGIN) > _MAX_CERTIFICATES:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED,
            f"PEM holds {data.count(_PEM_BEGIN)} certificates, want at most {_MAX_CERTIFICATES}",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            loaded = x509.load_pem_x509_certificates(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceMalformedError(
            AttestationCode.CERTIFICATE_MALFORMED, "PEM text does not hold certificates"
        ) from error
    return [load_certificate(certificate.public_bytes(serialization.Encoding.DER)) for certificate in loaded]


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
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_crl(data)
        return x509.load_der_x509_crl(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceMalformedError(
            AttestationCode.COLLATERAL_MALFORMED, f"{len(data)} bytes are not one certificate revocation list"
        ) from error


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the DER bytes, 64 lower-case hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_validity(certificate: x509.Certificate, now: datetime) -> None:
    """Check that `now` lies in the certificate's validity.

    Raises:
        EvidenceForgedError: it does not.
    """
    name = certificate.subject.rfc4514_string()
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


def validity(chain: Iterable[x509.Certificate]) -> tuple[datetime, datetime]:
    """Return the span in which every certificate of `chain`, which is not empty, is valid."""
    certificates = tuple(chain)
    return (
        max(certificate.not_valid_before_utc for certificate in certificates),
        min(certificate.not_valid_after_utc for certificate in certificates),
    )


def build_chain(
    leaf: x509.Certificate, pool: Sequence[x509.Certificate], *, roots: Sequence[x509.Certificate], now: datetime
) -> tuple[x509.Certificate, ...]:
    """Build and verify the chain from `leaf` to one of the pinned `roots`.

    Args:
        leaf: the certificate to trust.
        pool: certificates of unknown origin that may stand between; order, duplicates and strangers do not matter.
        roots: pinned trust anchors; compared by their bytes.
        now: instant at which every certificate must be valid (aware, UTC).

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
        candidates = [c for c in (*roots, *pool) if c.subject == current.issuer and c not in chain]
        if not candidates:
            if current.issuer == current.subject:
                raise EvidenceForgedError(
                    AttestationCode.ROOT_NOT_PINNED,
                    f"chain ends at {current.subject.rfc4514_string()} with SHA-256 {fingerprint(current)}, "
                    "which is not the pinned root",
                )
            raise EvidenceUndecidedError(
                AttestationCode.ENDORSEMENT_MISSING,
                f"the certificate of the issuer {current.issuer.rfc4514_string()} is missing",
            )
        if len(chain) == MAX_CHAIN:
            raise EvidenceForgedError(AttestationCode.CHAIN_INVALID, f"chain is longer than {MAX_CHAIN} certificates")
        chain.append(_signer(current, candidates))
    for depth, certificate in enumerate(chain):
        check_validity(certificate, now)
        if depth > 0:
            _check_may_issue(certificate, below=depth - 1)
    return tuple(chain)


def _signer(certificate: x509.Certificate, candidates: Sequence[x509.Certificate]) -> x509.Certificate:
    """Return the candidate that signed: names are not unique, signatures are."""
    for candidate in candidates:
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


def _check_may_issue(certificate: x509.Certificate, *, below: int) -> None:
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
    if crl.next_update_utc is None or now > crl.next_update_utc:
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
