"""Errors of evidence.

TresorError
└── AttestationError             evidence, or what endorses it, is not what it should be
    ├── EvidenceMalformedError   bytes are not what they claim to be
    ├── EvidenceForgedError      no pinned root stands behind these bytes, or they contradict their endorsements
    ├── EvidenceRefusedError     genuine, and not what the policy wants
    ├── EvidenceUndecidedError   something needed for a verdict could not be had; neither good nor bad
    └── PolicyError              a policy cannot be read: unknown, contradictory or incomplete
"""

from tresor.attestation.codes import AttestationCode
from tresor.errors import TresorError

__all__ = [
    "AttestationError",
    "EvidenceForgedError",
    "EvidenceMalformedError",
    "EvidenceRefusedError",
    "EvidenceUndecidedError",
    "PolicyError",
]


class AttestationError(TresorError):
    """Evidence is refused or cannot be judged, for the reason `code`."""

    def __init__(self, code: AttestationCode, message: str) -> None:
        super().__init__(message)
        self.code: AttestationCode = code


class EvidenceMalformedError(AttestationError):
    """The bytes are not well-formed evidence, certificates or collateral of the kind they are given as."""


class EvidenceForgedError(AttestationError):
    """A signature, a chain, a validity or an endorsement does not hold."""


class EvidenceRefusedError(AttestationError):
    """The evidence is genuine, and the policy does not want it."""


class EvidenceUndecidedError(AttestationError):
    """Something needed for a verdict could not be had."""


class PolicyError(TresorError):
    """A policy cannot be used; the message names the member at fault."""

    code = "policy_invalid"
