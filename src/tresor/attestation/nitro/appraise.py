"""AWS Nitro attestation documents: what we want, or not (docs/spec/attestation.md, 5.5.3).

Says nothing about who signed: that is `verify.py`.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Expected
from tresor.attestation.nitro.abi import PCR_BYTES
from tresor.attestation.nitro.policy import NitroPolicy
from tresor.attestation.nitro.verify import GenuineDocument
from tresor.attestation.results import Check, failed, passed

__all__ = ["MAX_CLOCK_SKEW", "appraise_document"]

MAX_CLOCK_SKEW: Final = timedelta(minutes=1)
"""How far the enclave's host may be ahead of the verifier."""

_ZERO: Final = bytes(PCR_BYTES)
_IMAGE_REGISTERS: Final = (0, 1, 2)  # enclave image, kernel and boot ramdisk, application


def appraise_document(
    genuine: GenuineDocument, *, policy: NitroPolicy, expected: Expected, now: datetime
) -> list[Check]:
    """Hold a genuine document against policy and expectations; every mismatch is listed.

    Args:
        genuine: what `verify_document` found to be signed.
        policy: what is acceptable.
        expected: `report_data` for `user_data`, `nonce` for `nonce`; each whole.
        now: instant of the appraisal (aware, UTC).
    """
    document = genuine.document
    checks = [_check_debug(document.pcrs), _check_timestamp(genuine, now)]
    if not policy.skip_pcrs:
        checks.append(_check_pcrs(document.pcrs, policy.allowed_pcrs))
    if expected.report_data is not None:  # (9)
        same = bool(expected.report_data) and document.user_data == expected.report_data
        checks.append(
            passed("report_data", "user_data is what was expected")
            if same
            else failed("report_data", AttestationCode.USER_DATA_MISMATCH, "user_data is not what was expected")
        )
    if expected.nonce is not None:  # (10)
        same = bool(expected.nonce) and document.nonce == expected.nonce  # nothing binds nothing
        checks.append(
            passed("nonce", "nonce is the verifier's")
            if same
            else failed("nonce", AttestationCode.NONCE_MISMATCH, "nonce is not the verifier's")
        )
    return checks


def _check_debug(pcrs: Mapping[int, bytes]) -> Check:  # (6)
    """An enclave in debug mode has registers of zeros, and its console and memory are open to its owner."""
    unmeasured = [f"PCR{index}" for index in _IMAGE_REGISTERS if pcrs.get(index, _ZERO) == _ZERO]
    if unmeasured:
        return failed("debug", AttestationCode.DEBUG_ENABLED, f"debug mode: {', '.join(unmeasured)} absent or all zero")
    return passed("debug", "PCR0, PCR1 and PCR2 are measured")


def _check_timestamp(genuine: GenuineDocument, now: datetime) -> Check:  # (7)
    """Milliseconds are compared as integers: no calendar holds every 63-bit number."""
    leaf, timestamp = genuine.chain[0], genuine.document.timestamp
    earliest, latest = leaf.not_valid_before_utc, min(leaf.not_valid_after_utc, now + MAX_CLOCK_SKEW)
    if earliest.timestamp() * 1000 <= timestamp <= latest.timestamp() * 1000:
        return passed("timestamp", f"made {timestamp} ms after the epoch, in the life of the leaf and not after now")
    return failed(
        "timestamp",
        AttestationCode.TIME_IMPLAUSIBLE,
        f"timestamp is {timestamp} ms after the epoch, want {earliest.isoformat()} to {latest.isoformat()}",
    )


def _check_pcrs(pcrs: Mapping[int, bytes], allowed: Mapping[str, tuple[str, ...]]) -> Check:  # (8)
    wrong = []
    for index, values in allowed.items():
        value = pcrs.get(int(index))
        if value is None or value.hex() not in values:
            got = "absent" if value is None else value.hex()
            wrong.append(f"PCR{index} is {got}, want one of {len(values)} allowed values")
    if wrong or not allowed:
        detail = "; ".join(wrong) or "no register is allowed to have any value"
        return failed("pcrs", AttestationCode.REGISTER_NOT_ALLOWED, detail)
    return passed("pcrs", f"{', '.join(f'PCR{index}' for index in allowed)} allowed")
