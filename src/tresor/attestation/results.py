"""What an appraisal says: findings, claims, measurements, and what was not looked at (docs/spec/attestation.md, 2).

Three outcomes everywhere: good, bad, cannot be decided.  A claim that was not shown is `unknown`, never a pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

import msgspec

from tresor.attestation.errors import AttestationError, EvidenceUndecidedError

__all__ = [
    "AttestationResult",
    "Check",
    "Claim",
    "ClaimName",
    "Claims",
    "Outcome",
    "PolicyException",
    "failed",
    "outcome_of",
    "passed",
    "undecided",
]

Outcome = Literal["accepted", "rejected", "undecided"]
CheckStatus = Literal["ok", "failed", "undecided"]
ClaimName = Literal["cpu_tee", "gpu_tee", "tcb", "workload"]
ClaimStatus = Literal["proven", "refuted", "unknown"]
ClaimSource = Literal["hardware", "verifier", "provider", "operator"]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was shown or not (docs/spec/attestation.md, 2.2).

    Attributes:
        status: `proven` and `refuted` only after a check that could have said the other.
        source: whose word it rests on: the hardware's signature, a remote verifier's, the provider's or the operator's.
        reason: why it is not proven, or what it rests on; a code or a short phrase.
    """

    status: ClaimStatus
    source: ClaimSource
    reason: str | None = None


_UNKNOWN = Claim(status="unknown", source="hardware", reason="not shown")


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The four claims of contract section 7."""

    cpu_tee: Claim = _UNKNOWN
    gpu_tee: Claim = _UNKNOWN
    tcb: Claim = _UNKNOWN
    workload: Claim = _UNKNOWN


class PolicyException(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named weakness that an operator accepts until a day (docs/spec/attestation.md, 7.3).

    Attributes:
        weakness: what is accepted, letter for letter: an advisory (`INTEL-SA-00837`) or a TCB status (`OutOfDate`).
        until: RFC 3339 instant from which it is refused again.
        reason: the operator's own words.
    """

    weakness: str
    until: Annotated[datetime, msgspec.Meta(tz=True)]
    reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check.

    Attributes:
        check: what was checked, a word of docs/spec/attestation.md section 8.
        status: `undecided` where something needed could not be had.
        detail: for people, what was got and what was wanted.
        code: why it is not `ok`; None where it is.
    """

    check: str
    status: CheckStatus
    detail: str
    code: StrEnum | None = None


def passed(check: str, detail: str) -> Check:
    """Make a check that holds."""
    return Check(check, "ok", detail)


def failed(check: str, code: StrEnum, detail: str) -> Check:
    """Make a check that does not hold."""
    return Check(check, "failed", detail, code)


def undecided(check: str, code: StrEnum, detail: str) -> Check:
    """Make a check that could not be made for want of something."""
    return Check(check, "undecided", detail, code)


def outcome_of(checks: Sequence[Check]) -> Outcome:
    """Return the outcome of all checks: one failure rejects, one undecided leaves open, none at all accept nothing."""
    statuses = {check.status for check in checks}
    if "failed" in statuses:
        return "rejected"
    return "accepted" if statuses == {"ok"} else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """The appraisal of one piece of evidence, or of several that belong together.

    Attributes:
        tee: `sev-snp`, `tdx`, `azure-sev-snp`, `azure-tdx`, `nvidia-gpu`, `aws-nitro`, `simulated`; joined by `+`
            where a document holds several; `unknown` where nothing could be read.
        checks: every check that was made, in order.
        claims: what they show together.
        measurements: names of the vendor's manual to lower-case hexadecimal (`MEASUREMENT`, `MRTD`, `RTMR0`, `PCR4`);
            empty where nothing is genuine.
        not_checked: what a reader might take for checked and was not: item to reason.
        report_data: the user data that the hardware signed; None where nothing is genuine.
        valid_from: instant from which certificates and collateral are all valid; None where none bounds it.
        valid_until: likewise, the end.
        exceptions: weaknesses that were accepted because the policy names them.
        simulated: no hardware stands behind it.
        details: facts for people and receipts, by name: product, TCB, status, advisories, versions.
    """

    tee: str
    checks: tuple[Check, ...]
    claims: Claims = field(default_factory=Claims)
    measurements: Mapping[str, str] = field(default_factory=dict)
    not_checked: Mapping[str, str] = field(default_factory=dict)
    report_data: bytes | None = None
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    exceptions: tuple[PolicyException, ...] = ()
    simulated: bool = False
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """Accepted, rejected or undecided; of no checks at all, undecided."""
        return outcome_of(self.checks)

    @property
    def code(self) -> StrEnum | None:
        """The code of the first failed check, else of the first undecided one; None where all hold."""
        for status in ("failed", "undecided"):
            for check in self.checks:
                if check.status == status:
                    return check.code
        return None

    @classmethod
    def of_error(cls, tee: str, check: str, error: AttestationError, *, before: Sequence[Check] = ()) -> Self:
        """Report evidence whose appraisal ended with `error`, after the checks `before`."""
        make = undecided if isinstance(error, EvidenceUndecidedError) else failed
        verdict: ClaimStatus = "unknown" if isinstance(error, EvidenceUndecidedError) else "refuted"
        claim = Claim(status=verdict, source="hardware", reason=error.code)
        gpu = tee == "nvidia-gpu"
        return cls(
            tee=tee,
            checks=(*before, make(check, error.code, str(error))),
            claims=Claims(gpu_tee=claim) if gpu else Claims(cpu_tee=claim),
        )
