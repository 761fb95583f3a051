"""Endorsements without the evidence they are for: are they the vendors'?  (docs/spec/attestation.md, 5.8).

Each document is verified up to a pinned root: certificates, revocation lists, NVIDIA's manifests, Intel's collateral.
Forged is refused, and so is anything that is out of date, but for certificates: a bag of them may hold old ones beside
their successors, and those are named and not counted.  What means something only together with what it is about (an
OCSP answer, a key set, a VCEK) cannot be decided here.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final

from cryptography import x509

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, EvidenceUndecidedError
from tresor.attestation.evidence import Collateral
from tresor.attestation.nvidia.rim import verify_rim
from tresor.attestation.results import AttestationResult, Check, failed, passed, undecided
from tresor.attestation.roots import PINS, TrustAnchors, root
from tresor.attestation.snp.certificates import parse_endorsement
from tresor.attestation.tdx.collateral import parse_collateral
from tresor.attestation.tdx.verify import verify_collateral
from tresor.attestation.x509 import (
    MAX_CHAIN,
    build_chain,
    check_crl,
    check_validity,
    fingerprint,
    load_certificate,
    load_crl,
    readable_certificates,
)

__all__ = ["appraise_endorsements"]

_OUT_OF_DATE: Final = (AttestationCode.CERTIFICATE_EXPIRED, AttestationCode.CERTIFICATE_NOT_YET_VALID)
_ALONE = "means something only beside what it is about"
_MAX_BAG: Final = 1024
"""Certificates that are held against each other."""


def appraise_endorsements(collateral: Collateral, *, anchors: TrustAnchors, now: datetime) -> AttestationResult:
    """Verify every document of `collateral` by itself.

    Args:
        collateral: unverified; not empty, else nothing is accepted.
        anchors: pinned roots.
        now: instant at which the documents must be in force (aware, UTC).
    """
    if (count := len(collateral.certificates)) > _MAX_BAG:
        detail = f"{count} certificates, want at most {_MAX_BAG}"
        too_many = failed("certificate", AttestationCode.EVIDENCE_TOO_LARGE, detail)
        return AttestationResult(tee="unknown", checks=(too_many,))
    appraisal = _Appraisal(collateral, anchors, now)
    checks = [*appraisal.checks()]
    not_checked = {"evidence": "there is none: what is verified here endorses nothing yet"}
    if not collateral.crls:
        not_checked["revocation"] = "no revocation list is at hand"
    old = [check for check in checks if check.code in _OUT_OF_DATE and check.check == "certificate"]
    if old and len(old) < len(checks):
        checks = [check for check in checks if check not in old]
        not_checked["expired_certificates"] = "not counted: " + "; ".join(check.detail for check in old)
    return AttestationResult(
        tee="+".join(sorted(appraisal.vendors)) or "unknown", checks=tuple(checks), not_checked=not_checked
    )


class _Appraisal:
    """One walk over the documents; `vendors` gathers whose they turned out to be."""

    def __init__(self, collateral: Collateral, anchors: TrustAnchors, now: datetime) -> None:
        self._collateral = collateral
        self._anchors = anchors
        self._now = now
        self._pool = [*readable_certificates(collateral.certificates), *map(root, PINS)]
        self._roots: dict[str, list[x509.Certificate]] = {
            "sev-snp": [ark for arks in anchors.amd.values() for ark in arks],
            "tdx": [*anchors.intel],
            "nvidia-gpu": [*anchors.nvidia_device, *anchors.nvidia_rim],
            "aws-nitro": [*anchors.nitro],
            "azure-vtpm": [*anchors.azure_tpm],
            "simulated": [*anchors.simulated],
        }
        self.vendors: set[str] = set()

    def checks(self) -> Iterator[Check]:
        """Yield one check per document."""
        for der in self._collateral.certificates:
            yield self._checked("certificate", der, self._certificate)
        for der in self._collateral.crls:
            yield self._checked("revocation_list", der, self._crl)
        for document in self._collateral.tdx:
            yield self._checked("tdx_collateral", document, self._tdx)
        for document in self._collateral.rims:
            yield self._checked("manifest", document, self._rim)
        for kind, documents in (("ocsp", self._collateral.ocsp_responses), ("key_set", self._collateral.jwks)):
            for document in documents:
                detail = f"{len(document)} bytes: this {_ALONE}"
                yield undecided(kind, AttestationCode.EVIDENCE_MISSING, detail)

    def _checked(self, check: str, document: bytes, verify: Callable[[bytes], str]) -> Check:
        try:
            return passed(check, verify(document))
        except EvidenceUndecidedError as error:
            return undecided(check, error.code, str(error))
        except AttestationError as error:
            return failed(check, error.code, str(error))

    def _certificate(self, der: bytes) -> str:
        if (endorsement := parse_endorsement(der)) is not None:
            self.vendors.add("sev-snp")
            raise EvidenceUndecidedError(AttestationCode.EVIDENCE_MISSING, f"{endorsement}: this {_ALONE}")
        certificate = load_certificate(der)
        name = certificate.subject.rfc4514_string()
        if fingerprint(certificate) in self._anchors.nras_intermediates:
            self.vendors.add("nvidia-gpu")
            check_validity(certificate, self._now)
            return f"{name} is pinned"
        chain = self._chain(certificate)
        return f"{name} is pinned" if len(chain) == 1 else f"{name} by a chain of {len(chain)} to the pinned root"

    def _chain(self, certificate: x509.Certificate) -> tuple[x509.Certificate, ...]:
        roots = [root for roots in self._roots.values() for root in roots]
        try:
            return build_chain(certificate, self._pool, roots=roots, now=self._now)
        finally:
            self.vendors.update(self._vendors_of(certificate))

    def _vendors_of(self, certificate: x509.Certificate) -> Iterable[str]:
        """Whose root it names as issuer at the top, by names alone: for the label, not for the verdict."""
        names, current = {certificate.subject}, certificate
        for _ in range(MAX_CHAIN):
            issuers = (c for c in self._pool if c.subject == current.issuer and c.subject not in names)
            if (above := next(issuers, None)) is None:
                break
            current = above
            names.add(current.subject)
        return (
            vendor for vendor, roots in self._roots.items() if any(root.subject == current.subject for root in roots)
        )

    def _crl(self, der: bytes) -> str:
        crl = load_crl(der)
        issuers = [certificate for certificate in self._pool if certificate.subject == crl.issuer]
        if not issuers:
            raise EvidenceUndecidedError(
                AttestationCode.ENDORSEMENT_MISSING, f"the certificate of {crl.issuer.rfc4514_string()} is missing"
            )
        self._chain(issuers[0])
        check_crl(crl, self._pool, issuer=issuers[0], now=self._now)
        return f"by {crl.issuer.rfc4514_string()}, lists {len(crl)} and none of the certificates here"

    def _tdx(self, document: bytes) -> str:
        self.vendors.add("tdx")
        collateral = parse_collateral(document)
        genuine = verify_collateral(collateral, roots=self._anchors.intel, now=self._now)
        info = collateral.tcb_info
        return (
            f"Intel's for FMSPC {info.fmspc}, evaluation {info.tcb_evaluation_data_number}, in force "
            f"{genuine.valid_from.isoformat()} to {genuine.valid_until.isoformat()}"
        )

    def _rim(self, document: bytes) -> str:
        self.vendors.add("nvidia-gpu")
        genuine = verify_rim(document, anchors=self._anchors, now=self._now)
        rim = genuine.rim
        return f"NVIDIA's {rim.kind} manifest of {rim.product} {rim.version}, {len(rim.golden)} active measurements"
