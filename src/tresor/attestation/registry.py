"""From the format of evidence to its verifier (docs/spec/attestation.md, 3.1).

`appraise` is the one entrance for callers that hold evidence of any kind; what a kind means stands in its package.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

from tresor.attestation.azure import verifier as azure
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected, Need
from tresor.attestation.nitro import verifier as nitro
from tresor.attestation.nvidia import verifier as nvidia
from tresor.attestation.policy import Policy
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import TrustAnchors, vendor_anchors
from tresor.attestation.simulated import verifier as simulated
from tresor.attestation.snp import verifier as snp
from tresor.attestation.tdx import verifier as tdx

__all__ = ["VERIFIERS", "Case", "Verifier", "appraise", "needs"]


class Case(NamedTuple):
    """What one appraisal is given; members as the arguments of `appraise`."""

    evidence: Evidence
    collateral: Collateral
    policy: Policy
    expected: Expected
    anchors: TrustAnchors
    now: datetime


class Verifier(NamedTuple):
    """What stands behind one format.

    Attributes:
        needs: what the evidence would need besides the collateral at hand; no I/O, raises nothing: evidence that
            cannot be read needs nothing.
        appraise: no I/O, and bad input gives a result with a failed check, never an exception.
    """

    needs: Callable[[Evidence, Collateral], tuple[Need, ...]]
    appraise: Callable[[Case], AttestationResult]


def _snp(case: Case) -> AttestationResult:
    evidence, collateral, policy, expected, anchors, now = case
    return snp.appraise_snp(
        evidence, collateral=collateral, policy=policy.snp, expected=expected, anchors=anchors, now=now
    )


def _tdx(case: Case) -> AttestationResult:
    evidence, collateral, policy, expected, anchors, now = case
    return tdx.appraise_tdx(
        evidence,
        collateral=collateral,
        policy=policy.tdx,
        exceptions=policy.exceptions,
        expected=expected,
        anchors=anchors,
        now=now,
    )


def _nvidia(case: Case) -> AttestationResult:
    evidence, collateral, policy, expected, anchors, now = case
    return nvidia.appraise_nvidia(
        evidence, collateral=collateral, policy=policy.nvidia, expected=expected, anchors=anchors, now=now
    )


def _nitro(case: Case) -> AttestationResult:
    evidence, collateral, policy, expected, anchors, now = case
    return nitro.appraise_nitro(
        evidence, collateral=collateral, policy=policy.nitro, expected=expected, anchors=anchors, now=now
    )


def _azure(case: Case) -> AttestationResult:
    evidence, collateral, policy, expected, anchors, now = case
    return azure.appraise_azure(
        evidence,
        collateral=collateral,
        policy=policy.azure,
        snp=policy.snp,
        tdx=policy.tdx,
        exceptions=policy.exceptions,
        expected=expected,
        anchors=anchors,
        now=now,
    )


def _simulated(case: Case) -> AttestationResult:
    evidence, collateral, policy, expected, anchors, now = case
    return simulated.appraise_simulated(
        evidence, collateral=collateral, policy=policy.snp, expected=expected, anchors=anchors, now=now
    )


VERIFIERS: Final[dict[EvidenceFormat, Verifier]] = {
    EvidenceFormat.SNP_REPORT: Verifier(snp.needs, _snp),
    EvidenceFormat.TDX_QUOTE: Verifier(tdx.needs, _tdx),
    EvidenceFormat.NVIDIA_GPU_REPORT: Verifier(nvidia.needs, _nvidia),
    EvidenceFormat.NVIDIA_GPU_LIST: Verifier(nvidia.needs, _nvidia),
    EvidenceFormat.NVIDIA_NRAS: Verifier(nvidia.needs, _nvidia),
    EvidenceFormat.AZURE_VTPM: Verifier(azure.needs, _azure),
    EvidenceFormat.NITRO: Verifier(nitro.needs, _nitro),
    EvidenceFormat.SIMULATED: Verifier(simulated.needs, _simulated),
}


def needs(evidence: Evidence, collateral: Collateral) -> tuple[Need, ...]:
    """Return what the appraisal of `evidence` could use besides `collateral`, most needed first."""
    return VERIFIERS[evidence.format].needs(evidence, collateral)


def appraise(
    evidence: Evidence,
    *,
    collateral: Collateral,
    policy: Policy,
    expected: Expected,
    now: datetime,
    anchors: TrustAnchors | None = None,
) -> AttestationResult:
    """Appraise evidence of any format.

    Args:
        evidence: as received.
        collateral: whatever endorses it; unverified.
        policy: what is acceptable.
        expected: what the evidence must bind.
        now: instant to appraise at (aware, UTC).
        anchors: what is trusted in place of the pinned vendor roots: a trust bundle's, or a simulated world.
    """
    trusted = vendor_anchors() if anchors is None else anchors
    return VERIFIERS[evidence.format].appraise(Case(evidence, collateral, policy, expected, trusted, now))
