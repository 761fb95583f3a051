"""Simulated reports: signed under a root that the caller has taken for one of no TEE (docs/spec/attestation.md, 5.6).

What verifies here shows that the programs fit together, and nothing about hardware.
"""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import (
    AttestationError,
    EvidenceForgedError,
    EvidenceMalformedError,
    EvidenceUndecidedError,
)
from tresor.attestation.evidence import Collateral
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.simulated.layout import (
    LEAF_NAME,
    MARKER_OID,
    MEASUREMENT_PREFIX,
    leaf_extensions,
    marker_extension,
    unsigned_report,
)
from tresor.attestation.snp.abi import SnpReport
from tresor.attestation.snp.verify import verify_report_signature
from tresor.attestation.x509 import build_chain, readable_certificates

__all__ = ["SimulatedReport", "verify_simulated"]

_MAX_BAG = 1024
_MAX_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class SimulatedReport:
    """A report that a simulated root stands behind; only `verify_simulated` makes it.

    Attributes:
        report: its fields.
        chain: leaf, then root.
    """

    report: SnpReport
    chain: tuple[x509.Certificate, ...]


def verify_simulated(
    report: SnpReport, *, collateral: Collateral, anchors: TrustAnchors, now: datetime
) -> SimulatedReport:
    """Verify that a simulated root of `anchors` stands behind `report`, steps (2) to (4) of section 5.6.

    Raises:
        EvidenceMalformedError: it is no simulated report, or there are too many certificates.
        EvidenceForgedError: the caller trusts no simulated root, or another one.
        EvidenceUndecidedError: its certificate is not among the collateral.
    """
    if not anchors.simulated:
        raise EvidenceForgedError(
            AttestationCode.SIMULATED, "no hardware made this report, and nobody opted in to that"
        )
    honest = report.measurement.startswith(MEASUREMENT_PREFIX)
    if not honest or report.signed != unsigned_report(report.report_data, report.measurement):  # (2)
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_KIND_MISMATCH, "report does not say in each field that it is simulated"
        )
    if len(collateral.certificates) > _MAX_BAG:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"{len(collateral.certificates)} certificates, want at most {_MAX_BAG}"
        )
    pool = readable_certificates(collateral.certificates)
    errors: list[AttestationError] = []
    for leaf in [certificate for certificate in pool if certificate.subject == LEAF_NAME][:_MAX_CANDIDATES]:
        try:
            chain = build_chain(leaf, pool, roots=anchors.simulated, now=now, understood={MARKER_OID})  # (3)
            verify_report_signature(report, _marked_key(chain))  # (4)
        except AttestationError as error:
            errors.append(error)
        else:
            return SimulatedReport(report, chain)
    if errors:
        raise errors[0]
    raise EvidenceUndecidedError(AttestationCode.ENDORSEMENT_MISSING, "the certificate of the simulated key is missing")


def _marked_key(chain: tuple[x509.Certificate, ...]) -> ec.EllipticCurvePublicKey:
    """Return the leaf's key, where every certificate is marked as simulated and says nothing else of hardware."""
    for certificate in chain:
        wanted = (marker_extension(), *(leaf_extensions() if certificate is chain[0] else ()))
        private = [e for e in certificate.extensions if isinstance(e.value, x509.UnrecognizedExtension)]
        marked = any(e.critical for e in private if e.oid.dotted_string == MARKER_OID)
        if not marked or {e.value for e in private} != set(wanted):
            raise EvidenceForgedError(
                AttestationCode.CHAIN_INVALID,
                f"certificate {certificate.subject.rfc4514_string()} does not say that it is simulated",
            )
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EvidenceForgedError(AttestationCode.ALGORITHM_NOT_ALLOWED, "the simulated key is not on P-384")
    return key
