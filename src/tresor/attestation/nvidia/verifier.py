"""NVIDIA evidence: well-formed, genuine, acceptable, in one result (docs/spec/attestation.md, 5.3).

Pure: bytes, collateral, policy, anchors and instant come in, one `AttestationResult` goes out; nothing is raised on bad
input.
"""

import itertools
from datetime import datetime

from cryptography import x509

from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat, Expected, Need
from tresor.attestation.nvidia.appraise import rim_ids
from tresor.attestation.nvidia.collateral import (
    certificates_of,
    devices_of,
    fits,
    is_answered,
    parse_answers,
    parse_rims,
)
from tresor.attestation.nvidia.findings import TEE
from tresor.attestation.nvidia.nras import JWKS_URL, parse_eat
from tresor.attestation.nvidia.ocsp import OCSP_URL, build_ocsp_request
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.nvidia.report_result import ReportAppraisal
from tresor.attestation.nvidia.rim import rim_url
from tresor.attestation.nvidia.spdm import parse_report
from tresor.attestation.nvidia.token_result import appraise_eat
from tresor.attestation.nvidia.verify import select_leaf, verify_device_chain
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import TrustAnchors, vendor_anchors
from tresor.attestation.x509 import validity

__all__ = ["appraise_nvidia", "needs"]


def needs(evidence: Evidence, collateral: Collateral) -> tuple[Need, ...]:
    """Return what the appraisal could use besides `collateral`: manifests, OCSP answers, or the service's key set.

    For evidence whose certificates do not reach NVIDIA's pinned root nothing is asked, so that a forger cannot make a
    verifier fetch.  Whether an answer at hand is fresh is the caller's to know.
    """
    if evidence.format is EvidenceFormat.NVIDIA_NRAS:
        return () if collateral.jwks else (Need(CollateralKind.JWKS, JWKS_URL),)
    try:
        return _needs_of_reports(evidence, collateral)
    except AttestationError:
        return ()


def _needs_of_reports(evidence: Evidence, collateral: Collateral) -> tuple[Need, ...]:
    rims, _ = parse_rims(collateral)
    responses, _ = parse_answers(collateral)
    manifests: list[Need] = []
    pairs: list[tuple[x509.Certificate, x509.Certificate]] = []
    for item in devices_of(evidence):
        report = parse_report(item.report)
        certificates = certificates_of(item, collateral)
        leaf = select_leaf(certificates, report)
        # Without a clock, the instant is one at which every certificate has begun; device certificates never end.
        begun = validity(certificates)[0]
        device = verify_device_chain(leaf, certificates, roots=vendor_anchors().nvidia_device, now=begun)
        pairs += itertools.pairwise(device.chain[1:])
        for kind, rim_id in rim_ids(report, device).items():
            fitting = [rim for rim in rims if fits(rim, kind, device, report)]
            if not fitting:
                manifests.append(Need(CollateralKind.RIM, rim_url(rim_id), required=False))
            for rim in fitting:
                pairs += itertools.pairwise(rim.certificates)
    answers = (
        Need(CollateralKind.OCSP, OCSP_URL, required=False, body=build_ocsp_request(certificate, issuer))
        for certificate, issuer in dict.fromkeys(pairs)
        if not is_answered(certificate, issuer, responses)
    )
    return tuple(dict.fromkeys((*manifests, *answers)))


def appraise_nvidia(
    evidence: Evidence,
    *,
    collateral: Collateral,
    policy: NvidiaPolicy,
    expected: Expected,
    anchors: TrustAnchors,
    now: datetime,
) -> AttestationResult:
    """Appraise one report, a list of devices, or the tokens of NVIDIA's remote verifier.

    Args:
        evidence: as received.
        collateral: certificates of a bare report, manifests, OCSP answers, key sets; unverified.
        policy: what is acceptable.
        expected: `nonce` is the challenge, 32 bytes; a GPU signs no other user data, so `report_data` is not looked at.
        anchors: pinned device and manifest roots, and intermediates of the service.
        now: instant to appraise at (aware, UTC).
    """
    try:
        if evidence.format is EvidenceFormat.NVIDIA_NRAS:
            eat = parse_eat(evidence.data)
            return appraise_eat(eat, collateral=collateral, policy=policy, expected=expected, anchors=anchors, now=now)
        items = devices_of(evidence)
    except AttestationError as error:
        return AttestationResult.of_error(TEE, "evidence", error)
    return ReportAppraisal(collateral=collateral, policy=policy, expected=expected, anchors=anchors, now=now).appraise(
        items
    )
