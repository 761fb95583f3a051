"""Intel TDX: well-formed, genuine, acceptable, in one result (docs/spec/attestation.md, 5.2).

Pure: bytes, collateral, policy, anchors and instant come in, one `AttestationResult` goes out; nothing is raised on
bad input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, Expected, Need
from tresor.attestation.results import AttestationResult, Check, Claim, Claims, PolicyException, passed
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.tdx.abi import TdBody, parse_quote
from tresor.attestation.tdx.appraise import appraise_binding, appraise_body, appraise_event_logs, appraise_tcb
from tresor.attestation.tdx.collateral import TcbStatus, parse_collateral, pcs_urls
from tresor.attestation.tdx.pck import parse_pck
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.attestation.tdx.verify import (
    GenuineTdxQuote,
    pck_certificates,
    verify_signature,
    verify_tcb,
)

__all__ = ["appraise_tdx", "measurements", "needs"]

_TEE: Final = "tdx"


def needs(evidence: Evidence, collateral: Collateral) -> tuple[Need, ...]:
    """Return the collateral that a quote needs and the bag does not hold.

    One document of collateral is made of four answers, whose addresses are in the order of `assemble`'s arguments.
    Nothing is verified, and whether what the bag holds is in force is not looked at.
    """
    try:
        platform = parse_pck(pck_certificates(parse_quote(evidence.data))[0])
    except AttestationError:
        return ()
    if any(_fmspc(document) == platform.fmspc for document in collateral.tdx):
        return ()
    url, *also = pcs_urls(platform.fmspc, platform.ca)
    return (Need(CollateralKind.TDX, url, also=tuple(also)),)


def _fmspc(document: bytes) -> bytes | None:
    try:
        return parse_collateral(document).fmspc
    except AttestationError:
        return None


def appraise_tdx(
    evidence: Evidence,
    *,
    collateral: Collateral,
    policy: TdxPolicy,
    exceptions: Sequence[PolicyException] = (),
    expected: Expected,
    anchors: TrustAnchors,
    now: datetime,
) -> AttestationResult:
    """Appraise one quote with its event logs, steps (1) to (13) of docs/spec/attestation.md section 5.2.

    Args:
        evidence: quote and event logs.
        collateral: a bag that may hold Intel's collateral for the platform.
        policy: what is acceptable.
        exceptions: statuses and advisories that are accepted until a day.
        expected: what REPORT_DATA must bind.
        anchors: pinned roots.
        now: instant to appraise at (aware, UTC).
    """
    checks: list[Check] = []
    step = "quote"
    try:
        quote = parse_quote(evidence.data)  # (1)
        checks.append(passed(step, f"TDX quote of version {quote.version}"))
        step = "quote_signature"
        signed = verify_signature(quote, roots=anchors.intel, now=now)
    except AttestationError as error:
        return AttestationResult.of_error(_TEE, step, error, before=checks)
    checks.append(passed(step, "attestation key, quoting enclave and PCK chain to the pinned root"))
    wanted = [  # (12)
        *appraise_body(quote.body, policy),
        *appraise_binding(quote.body, expected),
        *appraise_event_logs(quote.body, evidence.event_logs, policy),
    ]
    omitted = _not_checked(evidence, policy, expected)
    details = {
        "quote_version": str(quote.version),
        "signed_sha256": quote.signed_sha256,
        "fmspc": signed.platform.fmspc.hex(),
        "tee_tcb_svn": quote.body.tee_tcb_svn.hex(),
    }
    try:
        genuine = verify_tcb(signed, collateral=collateral, roots=anchors.intel, now=now)
    except AttestationError as error:
        # Nothing speaks for the content of a quote whose quoting enclave is not known; what it says against itself
        # counts all the same.
        result = AttestationResult.of_error(_TEE, "collateral", error, before=checks)
        omitted |= {"tcb": str(error), "revocation": str(error)}
        return replace(result, checks=(*result.checks, *wanted), not_checked=omitted, details=details)
    number = genuine.collateral.tcb_evaluation_data_number
    checks.append(passed("collateral", f"in force, TCB evaluation data number {number}"))
    tcb_checks, used = appraise_tcb(genuine, policy, exceptions, now)  # (13)
    checks += (*wanted, *tcb_checks)
    claims = _claims(genuine, checks, policy, used)
    return AttestationResult(
        tee=_TEE,
        checks=tuple(checks),
        claims=claims,
        measurements=measurements(quote.body),
        not_checked=omitted | _weaknesses(genuine, claims, used),
        report_data=quote.body.report_data,
        valid_from=genuine.valid_from,
        valid_until=min((genuine.valid_until, *(exception.until for exception in used))),
        exceptions=used,
        details=details | _tcb_details(genuine),
    )


def measurements(body: TdBody) -> dict[str, str]:
    """Return what is measured of a domain by Intel's names, lower-case hexadecimal."""
    values = {
        "MRTD": body.mrtd,
        "RTMR0": body.rtmr0,
        "RTMR1": body.rtmr1,
        "RTMR2": body.rtmr2,
        "RTMR3": body.rtmr3,
        "MRSEAM": body.mrseam,
        "MRCONFIGID": body.mrconfigid,
        "MROWNER": body.mrowner,
        "MROWNERCONFIG": body.mrownerconfig,
    }
    if body.mrservicetd is not None:
        values["MRSERVICETD"] = body.mrservicetd
    return {name: value.hex() for name, value in values.items()}


def _claims(
    genuine: GenuineTdxQuote, checks: Sequence[Check], policy: TdxPolicy, used: Sequence[PolicyException]
) -> Claims:
    failed: dict[str, StrEnum | None] = {check.check: check.code for check in checks if check.status == "failed"}
    debug = failed.get("debug")
    status = genuine.tcb.status
    tcb_code = failed.get("tcb_status") or failed.get("tee_tcb_svn")
    if tcb_code is not None:
        tcb = Claim(status="refuted", source="hardware", reason=tcb_code)
    elif status == TcbStatus.UP_TO_DATE:
        tcb = Claim(status="proven", source="hardware", reason=status)
    else:
        until = f"until {min(exception.until for exception in used).isoformat()}" if used else "by policy"
        tcb = Claim(status="unknown", source="operator", reason=f"{status}, accepted {until}")
    return Claims(
        cpu_tee=Claim(status="refuted" if debug else "proven", source="hardware", reason=debug),
        tcb=tcb,
        workload=_workload(failed, policy),
    )


def _workload(failed: Mapping[str, StrEnum | None], policy: TdxPolicy) -> Claim:
    """Firmware alone shows no workload, and registers or a configuration not without the firmware that fills them."""
    refuted = next((failed[name] for name in ("mrtd", "rtmrs", "mrconfigid") if name in failed), None)
    if refuted is not None:
        return Claim(status="refuted", source="hardware", reason=refuted)
    if policy.skip_mrtd or (policy.skip_rtmrs and policy.skip_mrconfigid):
        reason = "MRTD and one of RTMR0 to RTMR3 or MRCONFIGID would have to be held against reference values"
        return Claim(status="unknown", source="hardware", reason=reason)
    held = (*(() if policy.skip_rtmrs else policy.allowed_rtmrs), *(() if policy.skip_mrconfigid else ("MRCONFIGID",)))
    return Claim(status="proven", source="hardware", reason=f"MRTD, {', '.join(held)} allowed")


def _not_checked(evidence: Evidence, policy: TdxPolicy, expected: Expected) -> dict[str, str]:
    """Return what was left out whatever the quote says."""
    skips = {"MRTD": policy.skip_mrtd, "RTMR0 to RTMR3": policy.skip_rtmrs, "MRCONFIGID": policy.skip_mrconfigid}
    skipped = [name for name, skip in skips.items() if skip]
    omitted = {}
    if skipped:
        omitted["workload"] = f"no reference values for {', '.join(skipped)}"
    if not evidence.event_logs:
        omitted["event_log"] = "no event log came with the quote"
    if expected.report_data is None:
        omitted["tls_binding"] = "no REPORT_DATA was expected, so nothing binds a channel"
    if expected.nonce is None:
        omitted["nonce"] = "no nonce was expected"
    return omitted


def _weaknesses(genuine: GenuineTdxQuote, claims: Claims, used: Sequence[PolicyException]) -> dict[str, str]:
    """Return what was accepted although Intel advises against it, and whether one verifier stood alone."""
    omitted = {}
    if claims.tcb.status == "unknown":
        accepted = "; ".join(f"{item.weakness} until {item.until.isoformat()}" for item in used) or "by policy"
        omitted["tcb"] = f"TCB status is {genuine.tcb.status}, accepted: {accepted}"
    if not genuine.seconded:
        omitted["second_verifier"] = "dcap-qvl does not judge domains with these attributes or this TCB"
    return omitted


def _tcb_details(genuine: GenuineTdxQuote) -> dict[str, str]:
    details = {
        "tcb_status": str(genuine.tcb.status),
        "advisories": ", ".join(genuine.tcb.advisories),
        "tcb_evaluation_data_number": str(genuine.collateral.tcb_evaluation_data_number),
        "second_verifier": "dcap-qvl agrees" if genuine.seconded else "dcap-qvl does not judge it",
    }
    if genuine.tcb.tcb_date is not None:
        details["tcb_date"] = genuine.tcb.tcb_date.isoformat()
    return details | {name: str(value).lower() for name, value in sorted(genuine.platform.flags.items())}
