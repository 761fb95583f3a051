"""SEV-SNP reports: signed by AMD's firmware, or not (docs/spec/attestation.md, 5.1.2).

Implements the verification that AMD 57230, chapter 3, and AMD 56860, "ATTESTATION_REPORT", ask for: the report is
signed by a VCEK or VLEK, that is certified by the product line's ASK or ASVK, that by its ARK, which is pinned.

Not looked at: what the report says of its guest (`appraise.py`); how old a revocation list may be, which is policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import (
    AttestationError,
    EvidenceForgedError,
    EvidenceMalformedError,
    EvidenceUndecidedError,
)
from tresor.attestation.evidence import Collateral
from tresor.attestation.roots import TrustAnchors, root
from tresor.attestation.snp.abi import SigningKey, SnpReport, product_of_cpuid
from tresor.attestation.snp.certificates import EndorsementCertificate, SignerKind, find_endorsements
from tresor.attestation.snp.tcb import Product, Tcb
from tresor.attestation.x509 import (
    check_critical,
    check_crl,
    check_may_issue,
    check_validity,
    load_crl,
    readable_certificates,
    validity,
)

__all__ = ["GenuineSnpReport", "Revocation", "is_for_report", "issuer_name", "verify_report", "verify_report_signature"]

Revocation = Literal["current", "expired", "not_yet_valid", "absent"]

_MAX_BAG = 1024
_MAX_CANDIDATES = 16
_MAX_ISSUERS = 8
_MAX_CRLS = 64
_PSS: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
_STALE: Final[dict[AttestationCode, Revocation]] = {
    AttestationCode.CRL_EXPIRED: "expired",
    AttestationCode.CRL_NOT_YET_VALID: "not_yet_valid",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenuineSnpReport:
    """A report that AMD's firmware signed; only `verify_report` makes it.  Nothing says yet that it is wanted.

    Attributes:
        report: its fields.
        product: product line.
        endorsement: the certificate of the key that signed.
        chain: ASK or ASVK, then the pinned ARK.
        reported_tcb: the version the key that signed belongs to.
        current_tcb: the version that runs.
        committed_tcb: the version that the firmware cannot be rolled back below.
        launch_tcb: the version under which the guest was launched.
        revocation: how old the revocation list of the ARK is, which names none of the chain; `absent` where none is
            at hand.
        valid_from: instant from which all of it is valid.
        valid_until: likewise, the end.
    """

    report: SnpReport
    product: Product
    endorsement: EndorsementCertificate
    chain: tuple[x509.Certificate, ...]
    reported_tcb: Tcb
    current_tcb: Tcb
    committed_tcb: Tcb
    launch_tcb: Tcb
    revocation: Revocation
    valid_from: datetime
    valid_until: datetime


def verify_report(
    report: SnpReport, *, collateral: Collateral, anchors: TrustAnchors, now: datetime
) -> GenuineSnpReport:
    """Verify that AMD's firmware signed `report`, steps (2) to (8) of docs/spec/attestation.md section 5.1.

    Args:
        report: as parsed.
        collateral: a bag with the VCEK or VLEK among its certificates; the ASK or ASVK comes from it or from those
            that are installed; revocation lists of the ARK among its CRLs, where there are any.
        anchors: product line to its pinned ARKs.
        now: instant at which certificates must be valid (aware, UTC).

    Returns:
        The report as a type that only this function makes.

    Raises:
        EvidenceMalformedError: a certificate, CRL or TCB version cannot be read.
        EvidenceForgedError: no pinned root stands behind the report, or its certificate contradicts it.
        EvidenceUndecidedError: the certificate of the key that signed is not among the collateral.
    """
    kind = _signer(report)  # (2)
    if len(collateral.certificates) > _MAX_BAG:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"{len(collateral.certificates)} certificates, want at most {_MAX_BAG}"
        )
    if report.cpuid is not None:
        _check_product_pinned(report.cpuid, anchors)
    found, unread = find_endorsements(collateral.certificates)  # (3)
    found.sort(key=lambda endorsement: _distance(endorsement, report, kind))
    errors: list[AttestationError] = []
    for endorsement in found[:_MAX_CANDIDATES]:
        try:
            return _verify_with(endorsement, report, kind, collateral=collateral, anchors=anchors, now=now)
        except AttestationError as error:
            errors.append(error)
    if errors or unread:
        raise (errors or unread)[0]  # the closest one's
    raise EvidenceUndecidedError(
        AttestationCode.ENDORSEMENT_MISSING, f"the certificate of the {kind.upper()} that signed is missing"
    )


def _signer(report: SnpReport) -> SignerKind:
    if report.signing_key == SigningKey.VCEK:
        return "vcek"
    if report.signing_key == SigningKey.VLEK:
        return "vlek"
    raise EvidenceForgedError(
        AttestationCode.SIGNER_NOT_ALLOWED,
        f"SIGNING_KEY is {report.signing_key}: the report names no key that could have signed it",
    )


def _check_product_pinned(cpuid: tuple[int, int, int], anchors: TrustAnchors) -> None:
    product = product_of_cpuid(*cpuid[:2])
    if product is None or not anchors.amd.get(product):
        raise EvidenceForgedError(
            AttestationCode.ROOT_NOT_PINNED,
            f"no root is pinned for {product or 'the processor'} of CPUID family, model and stepping {cpuid}",
        )


def _is_of_chip(endorsement: EndorsementCertificate, report: SnpReport) -> bool:
    """On Turin the identity has 8 bytes, and the rest of CHIP_ID is zero."""
    return endorsement.hwid is not None and endorsement.hwid.ljust(len(report.chip_id), b"\0") == report.chip_id


def _is_of_tcb(endorsement: EndorsementCertificate, report: SnpReport) -> bool:
    return endorsement.tcb.encode(endorsement.product) == report.reported_tcb


def is_for_report(endorsement: EndorsementCertificate, report: SnpReport) -> bool:
    """Whether a certificate names the chip and TCB version of a report; whether AMD issued it is another question."""
    return _is_of_chip(endorsement, report) and _is_of_tcb(endorsement, report)


def _distance(endorsement: EndorsementCertificate, report: SnpReport, kind: SignerKind) -> tuple[bool, ...]:
    """Sort by how much a certificate looks like the one wanted; whether it is, only `_verify_with` says."""
    return endorsement.kind != kind, not _is_of_chip(endorsement, report), not _is_of_tcb(endorsement, report)


def _verify_with(
    endorsement: EndorsementCertificate,
    report: SnpReport,
    kind: SignerKind,
    *,
    collateral: Collateral,
    anchors: TrustAnchors,
    now: datetime,
) -> GenuineSnpReport:
    product = endorsement.product
    if endorsement.kind != kind or (report.cpuid is not None and product_of_cpuid(*report.cpuid[:2]) != product):
        raise EvidenceForgedError(
            AttestationCode.COLLATERAL_MISMATCH,
            f"certificate is a {endorsement}; the report was signed by a {kind.upper()}, CPUID is {report.cpuid}",
        )
    chain = _verify_chain(endorsement, collateral, anchors.amd.get(product, ()), now)  # (4)
    revocation, current_until = _check_revocation(chain, collateral.crls, now)  # (5)
    # (6) A CHIP_ID of zeros is masked: there the key alone tells the chip, and policy decides.
    if kind == "vcek" and any(report.chip_id) and not _is_of_chip(endorsement, report):
        raise EvidenceForgedError(
            AttestationCode.CHIP_ID_MISMATCH,
            f"certificate is a {endorsement}; CHIP_ID of the report is {report.chip_id.hex()[:16]}",
        )
    reported_tcb = Tcb.parse(report.reported_tcb, product)
    if endorsement.tcb != reported_tcb:  # (7)
        raise EvidenceForgedError(
            AttestationCode.CERTIFICATE_TCB_MISMATCH,
            f"certificate is for TCB {endorsement.tcb}; REPORTED_TCB is {reported_tcb}",
        )
    verify_report_signature(report, endorsement.public_key)  # (8)
    valid_from, valid_until = validity((endorsement, *chain))
    return GenuineSnpReport(
        report=report,
        product=product,
        endorsement=endorsement,
        chain=chain,
        reported_tcb=reported_tcb,
        current_tcb=Tcb.parse(report.current_tcb, product),
        committed_tcb=Tcb.parse(report.committed_tcb, product),
        launch_tcb=Tcb.parse(report.launch_tcb, product),
        revocation=revocation,
        valid_from=valid_from,
        valid_until=valid_until if current_until is None else min(valid_until, current_until),
    )


def issuer_name(product: Product, kind: SignerKind) -> bytes:
    """Return the name, in DER, of whoever certifies VCEKs (the ASK) or VLEKs (the ASVK) of a product line."""
    common_name = f"SEV-{product}" if kind == "vcek" else f"SEV-VLEK-{product}"
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    ).public_bytes()


def _verify_chain(
    endorsement: EndorsementCertificate, collateral: Collateral, roots: Sequence[x509.Certificate], now: datetime
) -> tuple[x509.Certificate, ...]:
    """Verify the two steps up to a pinned ARK, each in its role: a VCEK by the ASK, a VLEK by the ASVK."""
    name = issuer_name(endorsement.product, endorsement.kind)
    if endorsement.issuer != name:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID, f"the issuer of the {endorsement} is not the one whose role that is"
        )
    installed = root(f"amd_{endorsement.product.lower()}_{'ask' if endorsement.kind == 'vcek' else 'asvk'}")
    pool = (installed, *readable_certificates(der for der in collateral.certificates if name in der))
    named = [candidate for candidate in pool if candidate.subject.public_bytes() == name][:_MAX_ISSUERS]
    signers = [candidate for candidate in named if _signed_by(endorsement, candidate)]
    if not signers:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID, f"the {endorsement} was not signed by the key of any issuer at hand"
        )
    for ask, ark in ((signer, ark) for signer in signers for ark in roots):
        if _directly_issued(ask, ark):
            check_validity(endorsement, now)
            for depth, certificate in enumerate((ask, ark)):
                check_validity(certificate, now)
                check_critical(certificate)
                check_may_issue(certificate, below=depth)
            return ask, ark
    raise EvidenceForgedError(
        AttestationCode.ROOT_NOT_PINNED,
        f"the issuer of the {endorsement} was not certified by the pinned ARK of {endorsement.product}",
    )


def _signed_by(endorsement: EndorsementCertificate, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(endorsement.signature, endorsement.tbs, _PSS, hashes.SHA384())
    except InvalidSignature:
        return False
    return True


def _directly_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _check_revocation(
    chain: tuple[x509.Certificate, ...], crls: Sequence[bytes], now: datetime
) -> tuple[Revocation, datetime | None]:
    """Hold the chain against every list of the ARK: a revoked certificate stays so when the list ages.

    AMD's lists name ASKs and ASVKs; VCEKs, all of which have the same serial number, are never on one.

    Returns:
        How old the best list is, and until when it counts where it is current.
    """
    ark = chain[-1]
    if len(crls) > _MAX_CRLS:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"{len(crls)} revocation lists, want at most {_MAX_CRLS}"
        )
    best: Revocation = "absent"
    until: datetime | None = None
    for crl in map(load_crl, crls):
        if crl.issuer != ark.subject:
            continue
        try:
            check_crl(crl, chain, issuer=ark, now=now)
            best, until = "current", max(filter(None, (until, crl.next_update_utc)))
        except EvidenceForgedError as error:
            if error.code not in _STALE:
                raise
            if best != "current":
                best = _STALE[error.code]
    return best, until


def verify_report_signature(report: SnpReport, public_key: ec.EllipticCurvePublicKey) -> None:
    """Verify ECDSA P-384 with SHA-384 over the first 0x2a0 bytes.

    Raises:
        EvidenceForgedError: the signature is not by this key.
    """
    try:
        public_key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise EvidenceForgedError(
            AttestationCode.SIGNATURE_INVALID, "the report was not signed by the key of its certificate"
        ) from error
