"""Simulated reports: well-formed, of a known simulated root, acceptable, in one result (docs/spec/attestation.md, 5.6).

Whatever holds, the result says `simulated` and no claim is more than unknown: nothing here stands on hardware.
"""

from datetime import datetime
from typing import Final

from tresor.attestation.errors import AttestationError, EvidenceUndecidedError
from tresor.attestation.evidence import Collateral, Evidence, Expected, Need
from tresor.attestation.results import AttestationResult, Check, Claim, Claims, failed, passed, undecided
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.simulated.verify import verify_simulated
from tresor.attestation.snp.abi import parse_report
from tresor.attestation.snp.appraise import check_binding, check_measurement
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.x509 import validity

__all__ = ["appraise_simulated", "needs"]

_TEE: Final = "simulated"
_CLAIM: Final = Claim(status="unknown", source="operator", reason="simulated")
_CLAIMS: Final = Claims(cpu_tee=_CLAIM, gpu_tee=_CLAIM, tcb=_CLAIM, workload=_CLAIM)


def needs(_evidence: Evidence, _collateral: Collateral) -> tuple[Need, ...]:
    """Return nothing: certificates of simulated keys come with their reports, and from nowhere else."""
    return ()


def appraise_simulated(
    evidence: Evidence,
    *,
    collateral: Collateral,
    policy: SnpPolicy,
    expected: Expected,
    anchors: TrustAnchors,
    now: datetime,
) -> AttestationResult:
    """Appraise one simulated report, steps (1) to (6) of docs/spec/attestation.md section 5.6.

    Args:
        evidence: a report of 1184 bytes, built like one of SEV-SNP.
        collateral: leaf and root certificate.
        policy: the rules of SEV-SNP, of which only those about MEASUREMENT have something to hold here.
        expected: what REPORT_DATA must be.
        anchors: a simulated world; where it has no simulated root, the evidence is refused.
        now: instant to appraise at (aware, UTC).
    """
    checks: list[Check] = []
    step = "report"
    try:
        report = parse_report(evidence.data)  # (1)
        checks.append(passed(step, f"SIMULATED report of version {report.version}"))
        step = "endorsement"
        simulated = verify_simulated(report, collateral=collateral, anchors=anchors, now=now)
    except AttestationError as error:
        make = undecided if isinstance(error, EvidenceUndecidedError) else failed
        checks.append(make(step, error.code, f"SIMULATED: {error}"))
        return AttestationResult(tee=_TEE, checks=tuple(checks), claims=_CLAIMS, simulated=True)
    checks.append(passed(step, "SIMULATED: signed under a root that the caller takes for one of no TEE"))
    if not policy.skip_measurement:  # (5)
        checks.append(check_measurement(report.measurement, policy))
    checks += check_binding(report.report_data, expected)  # (6)
    valid_from, valid_until = validity(simulated.chain)
    return AttestationResult(
        tee=_TEE,
        checks=tuple(checks),
        claims=_CLAIMS,
        measurements={"MEASUREMENT": report.measurement.hex(), "REPORT_DATA": report.report_data.hex()},
        not_checked=_not_checked(policy, expected),
        report_data=report.report_data,
        valid_from=valid_from,
        valid_until=valid_until,
        simulated=True,
        details={"product": "Simulated", "report_version": str(report.version), "vmpl": str(report.vmpl)},
    )


def _not_checked(policy: SnpPolicy, expected: Expected) -> dict[str, str]:
    omitted = dict.fromkeys(("cpu_tee", "gpu_tee", "tcb"), "SIMULATED: no hardware stands behind this evidence")
    if policy.skip_measurement:
        omitted["workload"] = "the policy skips MEASUREMENT"
    if expected.report_data is None:
        omitted["tls_binding"] = "no REPORT_DATA was expected, so nothing binds a channel"
    if expected.nonce is None:
        omitted["nonce"] = "no nonce was expected"
    return omitted
