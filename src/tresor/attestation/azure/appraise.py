"""Azure's vTPM: what we want, or not (docs/spec/attestation.md, 5.4.5).

Says nothing about who signed: that is `verify.py`.

Checks that could make sense and are not made: `resetCount` and `restartCount` of the quote, because nothing is known to
compare them with; the firmware version of the vTPM, which MEASUREMENT or MRTD covers.
"""

import hashlib
from collections.abc import Mapping

from tresor.attestation.azure.abi import RuntimeData
from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.azure.tpm import ALG_SHA256
from tresor.attestation.azure.verify import GenuineQuote
from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Expected
from tresor.attestation.results import Check, failed, passed

__all__ = ["appraise_quote", "appraise_runtime_data", "registers_of"]


def appraise_runtime_data(runtime_data: RuntimeData, policy: AzurePolicy) -> list[Check]:
    """Hold what the paravisor says of the machine against policy."""
    if runtime_data.secure_boot or not policy.require_secure_boot:  # (9)
        return [passed("secure_boot", f"Secure Boot is {'on' if runtime_data.secure_boot else 'off'}")]
    return [failed("secure_boot", AttestationCode.SECURE_BOOT_OFF, "Secure Boot is off")]


def appraise_quote(genuine: GenuineQuote, *, policy: AzurePolicy, expected: Expected) -> list[Check]:
    """Hold a genuine quote against policy and expectations; every mismatch is listed.

    Args:
        genuine: what `verify_quote` found to be signed.
        policy: what is acceptable.
        expected: the qualifying data must be SHA-384 of `report_data`, and `nonce` itself or its SHA-256 or SHA-384.
    """
    checks = [_check_selection(genuine, policy)]
    if not policy.skip_pcrs:
        checks.append(_check_registers(registers_of(genuine), policy))
    got = genuine.quote.extra_data
    if expected.report_data is not None:  # (12)
        want = hashlib.sha384(expected.report_data).digest()
        code = AttestationCode.REPORT_DATA_MISMATCH
        checks.append(_check_qualifying_data("report_data", code, got, (want,)))
    if expected.nonce is not None:  # (13) An empty nonce makes nothing fresh.
        nonce = expected.nonce
        wants = (nonce, hashlib.sha256(nonce).digest(), hashlib.sha384(nonce).digest()) if nonce else ()
        checks.append(_check_qualifying_data("nonce", AttestationCode.NONCE_MISMATCH, got, wants))
    return checks


def registers_of(genuine: GenuineQuote) -> dict[int, bytes]:
    """Return the registers of the SHA-256 bank that were quoted."""
    return {index: value for (bank, index), value in genuine.registers.items() if bank == ALG_SHA256}


def _check_selection(genuine: GenuineQuote, policy: AzurePolicy) -> Check:  # (10)
    """A quote of nothing verifies, and one of SHA-1 can be made to."""
    banks = {bank for bank, _ in genuine.registers}
    absent = sorted(set(policy.required_pcrs) - registers_of(genuine).keys())
    if banks == {ALG_SHA256} and not absent:
        return passed("pcr_selection", f"{len(genuine.registers)} registers of the SHA-256 bank are quoted")
    got = ", ".join(f"{bank:#x}" for bank in sorted(banks)) or "none"
    detail = f"banks quoted: {got}, want {ALG_SHA256:#x} alone; not quoted: {absent or 'none'}"
    return failed("pcr_selection", AttestationCode.PCR_SELECTION_NOT_ALLOWED, detail)


def _check_registers(registers: Mapping[int, bytes], policy: AzurePolicy) -> Check:  # (11)
    wrong = []
    for index, values in policy.allowed_pcrs.items():
        value = registers.get(int(index))
        if value is None or value.hex() not in values:
            got = "not quoted" if value is None else value.hex()
            wrong.append(f"PCR{index} is {got}, want one of {len(values)} allowed values")
    if wrong or not policy.allowed_pcrs:
        detail = "; ".join(wrong) or "no register is allowed to have any value"
        return failed("pcrs", AttestationCode.REGISTER_NOT_ALLOWED, detail)
    return passed("pcrs", f"{', '.join(f'PCR{index}' for index in policy.allowed_pcrs)} allowed")


def _check_qualifying_data(check: str, code: AttestationCode, got: bytes, wants: tuple[bytes, ...]) -> Check:
    if got in wants:
        return passed(check, f"qualifying data of the quote is {got.hex()}")
    listed = " or ".join(want.hex() for want in wants) or "a nonce that is not empty"
    return failed(check, code, f"qualifying data of the quote is {got.hex()}, want {listed}")
