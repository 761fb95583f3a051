"""From errors to checks, from checks to the claim `gpu_tee`."""

from collections.abc import Sequence

from tresor.attestation.errors import AttestationError, EvidenceUndecidedError
from tresor.attestation.results import Check, Claim, ClaimSource, failed, undecided

__all__ = ["TEE", "check_of_error", "gpu_claim", "nonce_reason"]

TEE = "nvidia-gpu"


def check_of_error(name: str, error: AttestationError) -> Check:
    """Return the check that ended with `error`."""
    make = undecided if isinstance(error, EvidenceUndecidedError) else failed
    return make(name, error.code, str(error))


def gpu_claim(checks: Sequence[Check], source: ClaimSource, *, gpus: int, proven: str) -> Claim:
    """Return what `checks`, on which it rests that devices are NVIDIA's, say together.

    Args:
        checks: of all devices.
        source: whose word they rest on.
        gpus: how many GPUs are genuine; of none nothing is claimed.
        proven: the reason where all hold.
    """
    statuses = {check.status: check.code for check in reversed(checks)}
    if "failed" in statuses:
        return Claim(status="refuted", source=source, reason=statuses["failed"])
    if "undecided" in statuses:
        return Claim(status="unknown", source=source, reason=statuses["undecided"])
    if gpus == 0:
        return Claim(status="unknown", source=source, reason="no GPU is among the devices")
    return Claim(status="proven", source=source, reason=proven)


def nonce_reason(*, public: bool) -> str:
    """Return why the nonce stands among what was not checked."""
    return "no nonce was expected" + ("; it is NVIDIA's published example" if public else "")
