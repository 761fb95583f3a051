"""What NVIDIA's responders said about a certificate (RFC 6960, basic responses).

A device certificate is valid without end, so revocation is the only way a device leaves.  An answer counts while it is
fresh: from `thisUpdate` to `nextUpdate`, and 24 hours at most.  Age does not wash a revocation away: an answer
`revoked` refuses for ever, `on hold` (certificateHold) until a newer answer.

Asked about are the certificates between leaf and root.  The leaf of a device is made on the chip at every start of its
firmware, and no responder knows it; its issuer, the boot ROM's certificate, stands for the device.

Not checked: revocation of a delegated responder (NVIDIA's carry id-pkix-ocsp-nocheck), and nonces, which would forbid
to keep an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError, EvidenceMalformedError, EvidenceUndecidedError
from tresor.attestation.x509 import check_validity, readable_certificates

__all__ = [
    "MAX_AGE",
    "OCSP_URL",
    "OcspAnswer",
    "appraise_answers",
    "build_ocsp_request",
    "parse_ocsp",
    "verify_ocsp",
]

OCSP_URL = "https://ocsp.ndis.nvidia.com"
MAX_AGE = timedelta(hours=24)
_MAX_OCSP_BYTES = 64 * 1024
_MAX_RESPONSES = 64

OcspStatus: TypeAlias = Literal["good", "revoked", "on_hold", "unknown"]
_STATUS: Final[dict[ocsp.OCSPCertStatus, OcspStatus]] = {
    ocsp.OCSPCertStatus.GOOD: "good",
    ocsp.OCSPCertStatus.REVOKED: "revoked",
    ocsp.OCSPCertStatus.UNKNOWN: "unknown",
}


@dataclass(frozen=True, slots=True)
class OcspAnswer:
    """What a responder that the issuer trusts said; made by `verify_ocsp` only.

    Attributes:
        status: `on_hold` is a revocation that may be lifted.
        valid_from: instant from which the answer is fresh.
        valid_until: instant until which it is.
    """

    status: OcspStatus
    valid_from: datetime
    valid_until: datetime


def build_ocsp_request(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """Return the DER request about `certificate`; without a nonce, so that equal questions are equal bytes."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, SHA384())
    return builder.build().public_bytes(Encoding.DER)


def parse_ocsp(data: bytes) -> ocsp.OCSPResponse:
    """Parse one DER response.

    Raises:
        EvidenceMalformedError: it is none, or longer than 64 KiB.
    """
    if len(data) > _MAX_OCSP_BYTES:
        raise _malformed(f"OCSP response is {len(data)} bytes, want at most {_MAX_OCSP_BYTES}")
    try:
        response = ocsp.load_der_ocsp_response(data)
        # The library reads lazily; what is broken must surface here.
        if response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL:
            _ = (list(response.responses), response.certificates, response.signature_hash_algorithm)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, Warning) as error:  # see x509.load_certificate
        raise _malformed(f"{len(data)} bytes are not one OCSP response") from error
    return response


def verify_ocsp(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, *, issuer: x509.Certificate
) -> OcspAnswer | None:
    """Verify what a response says about `certificate`, which `issuer` issued.

    Does not look at the clock: the responder must have been entitled when it answered, and the answer says how long
    it is fresh.

    Returns:
        None where the response is about other certificates, or is an error of the responder.

    Raises:
        EvidenceForgedError: it is about this certificate, and neither the issuer nor a responder that the issuer
            entitled (RFC 6960, 4.2.2.2) signed it.
    """
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        return None
    single = _find(response, certificate, issuer)
    if single is None:
        return None
    if not _signed_by_entitled(response, issuer):
        raise EvidenceForgedError(
            AttestationCode.OCSP_INVALID,
            f"the answer about serial {certificate.serial_number:x} was not signed for "
            f"{issuer.subject.rfc4514_string()}",
        )
    status = _STATUS[single.certificate_status]
    if status == "revoked" and _reason(single) is x509.ReasonFlags.certificate_hold:
        status = "on_hold"
    until = single.this_update_utc + MAX_AGE
    if single.next_update_utc is not None:
        until = min(until, single.next_update_utc)
    return OcspAnswer(status=status, valid_from=single.this_update_utc, valid_until=until)


def appraise_answers(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    responses: Sequence[ocsp.OCSPResponse],
    *,
    now: datetime,
) -> OcspAnswer | None:
    """Return the fresh answer `good` about a certificate, None where no response is about it.

    Raises:
        EvidenceForgedError: `certificate_revoked` of any age; `certificate_on_hold` by a fresh answer; `ocsp_expired`
            where the newest answer is good and not fresh; `ocsp_invalid` where an answer is not a responder's.
        EvidenceUndecidedError: on hold by an answer that is not fresh, or unknown to the responder.
    """
    answers = [a for response in responses if (a := verify_ocsp(response, certificate, issuer=issuer)) is not None]
    if not answers:
        return None
    name = f"certificate {certificate.subject.rfc4514_string()} with serial {certificate.serial_number:x}"
    if any(answer.status == "revoked" for answer in answers):
        raise EvidenceForgedError(AttestationCode.CERTIFICATE_REVOKED, f"{name} is revoked")
    # An answer of later than `now` does not hide what was known then.
    newest = max([a for a in answers if a.valid_from <= now] or answers, key=lambda answer: answer.valid_from)
    fresh = newest.valid_from <= now <= newest.valid_until
    when = f"answer of {newest.valid_from.isoformat()}, asked for {now.isoformat()}"
    if newest.status == "on_hold":
        error = EvidenceForgedError if fresh else EvidenceUndecidedError
        raise error(AttestationCode.CERTIFICATE_ON_HOLD, f"{name} is on hold ({when})")
    if newest.status == "unknown":
        raise EvidenceUndecidedError(AttestationCode.REVOCATION_UNKNOWN, f"{name} is unknown to its responder ({when})")
    if not fresh:
        raise EvidenceForgedError(AttestationCode.OCSP_EXPIRED, f"{name} was good, but not freshly ({when})")
    return newest


def _find(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> ocsp.OCSPSingleResponse | None:
    """Return the answer whose CertID is the one that a request for this certificate would hold."""
    for position, single in enumerate(response.responses):
        if position == _MAX_RESPONSES:
            break
        if single.serial_number != certificate.serial_number:
            continue
        try:
            request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, single.hash_algorithm).build()
        except (ValueError, UnsupportedAlgorithm):
            continue
        if (single.issuer_name_hash, single.issuer_key_hash) == (request.issuer_name_hash, request.issuer_key_hash):
            return single
    return None


def _reason(single: ocsp.OCSPSingleResponse) -> x509.ReasonFlags | None:
    try:
        return single.revocation_reason
    except ValueError:  # a reason that RFC 5280 does not know is no hold
        return None


def _signed_by_entitled(response: ocsp.OCSPResponse, issuer: x509.Certificate) -> bool:
    return any(
        _signed_by(response, candidate)
        for candidate in (issuer, *readable_certificates(c.public_bytes(Encoding.DER) for c in response.certificates))
        if candidate == issuer or _is_entitled(candidate, issuer, response.produced_at_utc)
    )


def _is_entitled(responder: x509.Certificate, issuer: x509.Certificate, produced_at: datetime) -> bool:
    """Return whether `issuer` made `responder` a responder, valid when it answered."""
    try:
        responder.verify_directly_issued_by(issuer)
        usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        check_validity(responder, produced_at)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, EvidenceForgedError):
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in usage


def _signed_by(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    algorithm, key = response.signature_hash_algorithm, signer.public_key()
    if not isinstance(algorithm, SHA256 | SHA384 | SHA512) or not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _malformed(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.COLLATERAL_MALFORMED, message)
