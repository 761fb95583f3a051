"""Intel TDX: what we want, or not (docs/spec/attestation.md, 5.2.3).

Says nothing about who signed: that is `verify.py`.  Each function lists every check it made, not the first that fails.
Of a domain whose quote is signed but not genuine, for want of collateral, only refusals mean anything.

Checks that could make sense and are not made: SEAMATTRIBUTES and MRSIGNERSEAM (Intel's TCB information judges them),
QE_SVN and PCE_SVN of the header (unused in these versions), TEE_TCB_SVN2 against `min_tee_tcb_svn` (it is never below
TEE_TCB_SVN, which is).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Expected
from tresor.attestation.results import Check, PolicyException, failed, passed, undecided
from tresor.attestation.tdx.abi import TdBody
from tresor.attestation.tdx.collateral import TcbStatus
from tresor.attestation.tdx.event_log import parse_event_log, replay
from tresor.attestation.tdx.policy import TD_ATTRIBUTES, TdxPolicy
from tresor.attestation.tdx.verify import GenuineTdxQuote

__all__ = ["appraise_binding", "appraise_body", "appraise_event_logs", "appraise_tcb"]

_TUD: Final = 0xFF  # "TD under debug": debug and profiling modes, and bits reserved for more of them
_XFAM_FIXED: Final = 0b11  # x87 and SSE
_NONCE_AT: Final = 32


def appraise_body(body: TdBody, policy: TdxPolicy) -> list[Check]:
    """Hold what the TDX module reports against a policy."""
    checks = [
        _check_debug(body),
        _check_attributes(body, policy),
        _check_xfam(body, policy),
        _check_service(body, policy),
    ]
    measurement, host_data = AttestationCode.MEASUREMENT_NOT_ALLOWED, AttestationCode.HOST_DATA_NOT_ALLOWED
    for name, value, allowed, skip, code in (
        ("mrtd", body.mrtd, policy.allowed_mrtds, policy.skip_mrtd, measurement),
        ("mrseam", body.mrseam, policy.allowed_mrseams, policy.skip_mrseam, measurement),
        ("mrconfigid", body.mrconfigid, policy.allowed_mrconfigids, policy.skip_mrconfigid, host_data),
        ("mrowner", body.mrowner, policy.allowed_mrowners, policy.skip_mrowner, host_data),
        ("mrownerconfig", body.mrownerconfig, policy.allowed_mrownerconfigs, policy.skip_mrownerconfig, host_data),
    ):
        if not skip:
            wanted = f"{name.upper()} is {value.hex()}, want one of {len(allowed)} allowed values"
            checks.append(passed(name, "allowed") if value.hex() in allowed else failed(name, code, wanted))
    if not policy.skip_rtmrs:
        checks.append(_check_rtmrs(body, policy))
    if policy.min_tee_tcb_svn:
        checks.append(_check_svn(body, policy))
    return checks


def _check_debug(body: TdBody) -> Check:
    if body.attributes & _TUD:
        detail = f"TDATTRIBUTES {body.tdattributes.hex()} let the host look into the domain (bits 0 to 7)"
        return failed("debug", AttestationCode.DEBUG_ENABLED, detail)
    return passed("debug", "neither debug nor profiling mode")


def _check_attributes(body: TdBody, policy: TdxPolicy) -> Check:
    allowed = sum(1 << TD_ATTRIBUTES[name] for name in set(policy.allowed_attributes))
    names = {1 << bit: name for name, bit in TD_ATTRIBUTES.items()}
    surplus = body.attributes & ~allowed & ~_TUD
    wrong = [f"{names.get(1 << bit, f'bit {bit}')} is set" for bit in range(64) if surplus >> bit & 1]
    if policy.require_sept_ve_disable and not body.attributes >> TD_ATTRIBUTES["SEPT_VE_DISABLE"] & 1:
        wrong.append("SEPT_VE_DISABLE is not set")
    if wrong:
        return failed("td_attributes", AttestationCode.ATTRIBUTES_NOT_ALLOWED, "; ".join(wrong))
    return passed("td_attributes", body.tdattributes.hex())


def _check_xfam(body: TdBody, policy: TdxPolicy) -> Check:
    xfam = int.from_bytes(body.xfam, "little")
    surplus, absent = xfam & ~(policy.allowed_xfam | _XFAM_FIXED), _XFAM_FIXED & ~xfam
    if surplus or absent:
        detail = f"XFAM {xfam:#x} has bits {surplus:#x} that are not allowed and lacks {absent:#x}"
        return failed("xfam", AttestationCode.ATTRIBUTES_NOT_ALLOWED, detail)
    return passed("xfam", f"{xfam:#x}")


def _check_service(body: TdBody, policy: TdxPolicy) -> Check:
    if any(body.mrservicetd or b"") and (body.mrservicetd or b"").hex() not in policy.allowed_mrservicetds:
        return failed(
            "service_td",
            AttestationCode.MIGRATION_AGENT_ALLOWED,
            f"a service domain is bound that is not allowed: MRSERVICETD {(body.mrservicetd or b'').hex()}",
        )
    return passed("service_td", "none bound" if not any(body.mrservicetd or b"") else "allowed")


def _check_rtmrs(body: TdBody, policy: TdxPolicy) -> Check:
    values = {f"RTMR{index}": value.hex() for index, value in enumerate(body.rtmrs)}
    wrong = [
        f"{name} is {values[name]}, want one of {len(allowed)} allowed values"
        for name, allowed in policy.allowed_rtmrs.items()
        if values[name] not in allowed
    ]
    if wrong or not policy.allowed_rtmrs:
        detail = "; ".join(wrong) or "no register is allowed to have any value"
        return failed("rtmrs", AttestationCode.REGISTER_NOT_ALLOWED, detail)
    return passed("rtmrs", f"{', '.join(policy.allowed_rtmrs)} allowed")


def _check_svn(body: TdBody, policy: TdxPolicy) -> Check:
    """Component by component: as one number a new part would make up for an old one."""
    below = [
        f"component {index} is {got}, want at least {floor}"
        for index, (got, floor) in enumerate(zip(body.tee_tcb_svn, policy.min_tee_tcb_svn, strict=False))
        if got < floor
    ]
    if below:
        return failed("tee_tcb_svn", AttestationCode.TCB_BELOW_FLOOR, f"TEE_TCB_SVN: {'; '.join(below)}")
    return passed("tee_tcb_svn", f"TEE_TCB_SVN {body.tee_tcb_svn.hex()} has no component below the floor")


def appraise_tcb(
    genuine: GenuineTdxQuote, policy: TdxPolicy, exceptions: Sequence[PolicyException], now: datetime
) -> tuple[list[Check], tuple[PolicyException, ...]]:
    """Hold what Intel says of the platform against a policy.

    Returns:
        the checks, and those of `exceptions` without which the status would not have been accepted.
    """
    status, used = _check_status(genuine, policy, exceptions, now)
    number, floor = genuine.collateral.tcb_evaluation_data_number, policy.min_tcb_evaluation_data_number
    checks = [status]
    if number < floor:
        detail = f"TCB evaluation data number is {number}, want at least {floor}"
        checks.append(failed("tcb_evaluation", AttestationCode.COLLATERAL_ROLLED_BACK, detail))
    elif floor:
        checks.append(passed("tcb_evaluation", f"TCB evaluation data number is {number}"))
    for name, allowed in (
        ("dynamic_platform", policy.allow_dynamic_platform),
        ("cached_keys", policy.allow_cached_keys),
        ("smt", policy.allow_smt),
    ):
        if not allowed:
            stated = genuine.platform.flags.get(name)
            detail = f"the PCK certificate says {name} is {'not stated' if stated is None else str(stated).lower()}"
            code = AttestationCode.POLICY_BITS_NOT_ALLOWED
            checks.append(failed(name, code, detail) if stated else passed(name, detail))
    return checks, used


def _check_status(
    genuine: GenuineTdxQuote, policy: TdxPolicy, exceptions: Sequence[PolicyException], now: datetime
) -> tuple[Check, tuple[PolicyException, ...]]:
    """Accept a status for itself, or for the sake of all its advisories; by policy, or by an exception in force."""
    status, advisories = genuine.tcb.status, genuine.tcb.advisories
    detail = f"TCB status is {status}" + (f" with {', '.join(advisories)}" if advisories else "")
    if status == TcbStatus.REVOKED:
        return failed("tcb_status", AttestationCode.PLATFORM_REVOKED, detail), ()
    if status == TcbStatus.NOT_SUPPORTED:
        return failed("tcb_status", AttestationCode.TCB_BELOW_FLOOR, f"{detail}: below every level of Intel's"), ()
    if status.value in policy.allowed_tcb_statuses:
        return passed("tcb_status", detail), ()
    in_force = {exception.weakness: exception for exception in exceptions if now < exception.until}
    if status in in_force:
        return passed("tcb_status", f"{detail}; accepted by exception"), (in_force[status],)
    if advisories and all(item in policy.allowed_advisories or item in in_force for item in advisories):
        used = tuple(in_force[item] for item in advisories if item not in policy.allowed_advisories)
        return passed("tcb_status", f"{detail}; each advisory accepted by {'exception' if used else 'policy'}"), used
    want = ", ".join(policy.allowed_tcb_statuses) or "none"
    return failed("tcb_status", AttestationCode.TCB_STATUS_NOT_ALLOWED, f"{detail}; allowed: {want}"), ()


def appraise_binding(body: TdBody, expected: Expected) -> list[Check]:
    """Hold REPORT_DATA against what the verifier expects in it, whole or as a nonce."""
    checks = []
    if expected.report_data is not None:
        same = body.report_data == expected.report_data
        checks.append(
            passed("report_data", "REPORT_DATA is what was expected")
            if same
            else failed("report_data", AttestationCode.REPORT_DATA_MISMATCH, "REPORT_DATA is not what was expected")
        )
    if expected.nonce is not None:
        checks.append(_check_nonce(body.report_data, expected.nonce))
    return checks


def _check_nonce(report_data: bytes, nonce: bytes) -> Check:
    """At the beginning only zeros may follow, and the second half must be all nonce; else its end would be open."""
    if any(nonce):  # an empty nonce, or one of zeros, makes nothing fresh
        if report_data == nonce.ljust(len(report_data), b"\0"):
            return passed("nonce", "the nonce is at the beginning of REPORT_DATA, and zeros behind it")
        if report_data[_NONCE_AT:] == nonce:
            return passed("nonce", "the nonce is the second half of REPORT_DATA")
    return failed("nonce", AttestationCode.NONCE_MISMATCH, "REPORT_DATA does not hold the verifier's nonce")


def appraise_event_logs(body: TdBody, logs: Sequence[bytes], policy: TdxPolicy) -> list[Check]:
    """Replay each log to all four registers; a register of which it holds no event must be zero."""
    if not logs and policy.require_event_log:
        return [undecided("event_log", AttestationCode.EVENT_LOG_MISSING, "the policy wants an event log")]
    return [_check_event_log(body, log) for log in logs]


def _check_event_log(body: TdBody, log: bytes) -> Check:
    try:
        events = parse_event_log(log)
    except AttestationError as error:
        return failed("event_log", error.code, str(error))
    wrong = [
        f"RTMR{index}" for index, (got, want) in enumerate(zip(replay(events), body.rtmrs, strict=True)) if got != want
    ]
    if wrong:
        detail = f"{len(events)} events do not come to {', '.join(wrong)} of the quote"
        return failed("event_log", AttestationCode.EVENT_LOG_MISMATCH, detail)
    return passed("event_log", f"{len(events)} events come to RTMR0 to RTMR3")
