"""From the format of evidence to its verifier (docs/spec/attestation.md, 3.1).

`appraise` is the one entrance for callers that hold evidence of any kind; what a kind means stands in its package.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected, Need
from tresor.attestation.policy import Policy
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import TrustAnchors, vendor_anchors

__all__ = ["VERIFIERS", "Verifier", "appraise", "needs"]


class Verifier(NamedTuple):
    """What stands behind one format.

    Attributes:
        needs: what the evidence would need besides the collateral at hand; no I/O, raises nothing: evidence that
            cannot be read needs nothing.
        appraise: no I/O, and bad input gives a result with a failed check, never an exception.
    """

    needs: Callable[[Evidence, Collateral], tuple[Need, ...]]
    appraise: Callable[[Evidence, Collateral, Policy, Expected, TrustAnchors, datetime], AttestationResult]


VERIFIERS: Final[dict[EvidenceFormat, Verifier]] = {}


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
    return VERIFIERS[evidence.format].appraise(
        evidence, collateral, policy, expected, vendor_anchors() if anchors is None else anchors, now
    )
