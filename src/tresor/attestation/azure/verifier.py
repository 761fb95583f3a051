"""Azure confidential VMs: well-formed, genuine, acceptable, in one result (docs/spec/attestation.md, 5.4).

Pure: bytes, collateral, policies, anchors and instant come in, one `AttestationResult` goes out; nothing is raised on
bad input.  The hardware report inside is appraised by the package of its TEE, whose checks stand first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import msgspec

from tresor.attestation.azure.abi import HclReport, ReportType, RuntimeData, parse_hcl_report
from tresor.attestation.azure.appraise import appraise_quote, appraise_runtime_data, registers_of
from tresor.attestation.azure.documents import AzureDocument, parse_document
from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.azure.verify import GenuineQuote, verify_quote, verify_runtime_data
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, EvidenceUndecidedError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected, Need
from tresor.attestation.results import (
    AttestationResult,
    Check,
    Claim,
    Claims,
    PolicyException,
    failed,
    passed,
    undecided,
)
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.snp import verifier as snp_verifier
from tresor.attestation.snp.abi import parse_report
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.tdx import verifier as tdx_verifier
from tresor.attestation.tdx.abi import TdReport, parse_quote, parse_tdreport
from tresor.attestation.tdx.policy import TdxPolicy

__all__ = ["appraise_azure", "needs"]

_UNREADABLE: Final = "unknown"
_TEES: Final = {ReportType.SNP: "azure-sev-snp", ReportType.TDX: "azure-tdx"}
_BOOT_CODE: Final = "4"  # PCR 4: the boot loader, or the kernel where it is started by the firmware
# What fails here parts the vTPM from the hardware.
_OF_THE_TEE: Final = ("tdreport", "runtime_data", "tpm_quote")
_OF_THE_FIRMWARE: Final = ("measurement", "mrtd")


def needs(evidence: Evidence, collateral: Collateral) -> tuple[Need, ...]:
    """Return what the hardware report inside needs; nothing of unreadable evidence."""
    try:
        document = parse_document(evidence.data)
        hcl_report = parse_hcl_report(document.hcl_report)
    except AttestationError:
        return ()
    bag = _joined(collateral, document)
    if hcl_report.report_type is ReportType.SNP:
        return snp_verifier.needs(Evidence(EvidenceFormat.SNP_REPORT, hcl_report.hardware_report), bag)
    return tdx_verifier.needs(Evidence(EvidenceFormat.TDX_QUOTE, document.td_quote or b""), bag)


def appraise_azure(
    evidence: Evidence,
    *,
    collateral: Collateral,
    policy: AzurePolicy,
    snp: SnpPolicy,
    tdx: TdxPolicy,
    exceptions: Sequence[PolicyException] = (),
    expected: Expected,
    anchors: TrustAnchors,
    now: datetime,
) -> AttestationResult:
    """Appraise one document, steps (1) to (13) of docs/spec/attestation.md section 5.4.

    Args:
        evidence: report of the paravisor, alone or with its quote in one of the forms of `documents.py`.
        collateral: endorsements of the hardware report; certificates in the document join it.
        policy: what is acceptable of the vTPM.
        snp: what is acceptable of an SNP report.
        tdx: what is acceptable of a TDX quote.
        exceptions: statuses and advisories of TDX that are accepted until a day.
        expected: what the qualifying data of the quote must bind.
        anchors: pinned roots.
        now: instant to appraise at (aware, UTC).
    """
    try:
        document = parse_document(evidence.data)  # (1)
        hcl_report = parse_hcl_report(document.hcl_report)  # (2)
    except AttestationError as error:
        return AttestationResult.of_error(_UNREADABLE, "document", error)
    bag = _joined(collateral, document)
    if hcl_report.report_type is ReportType.SNP:  # (3)
        hardware, report_data = _appraise_snp(hcl_report, collateral=bag, policy=snp, anchors=anchors, now=now)
    else:
        hardware, report_data = _appraise_tdx(
            hcl_report, document, collateral=bag, policy=tdx, exceptions=exceptions, anchors=anchors, now=now
        )
    vtpm = _Vtpm() if report_data is None else _appraise_vtpm(hcl_report, document, report_data, policy, expected)
    first = passed("document", f"HCL report of version {hcl_report.version} with {hcl_report.report_type.name}")
    checks = (first, *hardware.checks, *vtpm.checks)
    firmware_held = any(check.check in _OF_THE_FIRMWARE and check.status == "ok" for check in checks)
    claims = _claims(hardware, checks, policy, firmware_held=firmware_held)
    return replace(
        hardware,
        tee=_TEES[hcl_report.report_type],
        checks=checks,
        claims=claims,
        measurements={**hardware.measurements, **_measurements(hardware, vtpm)},
        not_checked=_not_checked(hardware, claims, expected, firmware_held=firmware_held),
        details={**hardware.details, **_details(hardware, hcl_report, vtpm)},
    )


def _joined(collateral: Collateral, document: AzureDocument) -> Collateral:
    return collateral + Collateral(certificates=document.certificates)


def _appraise_snp(
    hcl_report: HclReport, *, collateral: Collateral, policy: SnpPolicy, anchors: TrustAnchors, now: datetime
) -> tuple[AttestationResult, bytes | None]:
    """Appraise the SNP report; return its REPORT_DATA, too, where it can be read."""
    report = hcl_report.hardware_report
    result = snp_verifier.appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, report),
        collateral=collateral,
        # At any other level the guest above the paravisor has reports made, for runtime data of its own.
        policy=msgspec.structs.replace(policy, allowed_vmpls=tuple(vmpl for vmpl in policy.allowed_vmpls if vmpl == 0)),
        expected=Expected(),
        anchors=anchors,
        now=now,
    )
    try:
        return result, parse_report(report).report_data
    except AttestationError:
        return result, None


def _appraise_tdx(
    hcl_report: HclReport,
    document: AzureDocument,
    *,
    collateral: Collateral,
    policy: TdxPolicy,
    exceptions: Sequence[PolicyException],
    anchors: TrustAnchors,
    now: datetime,
) -> tuple[AttestationResult, bytes | None]:
    """Appraise the TDX quote, which must have been made of the TDREPORT; return its REPORT_DATA, too."""
    tee = _TEES[ReportType.TDX]
    try:
        tdreport = parse_tdreport(hcl_report.hardware_report)
    except AttestationError as error:
        return AttestationResult.of_error(tee, "tdreport", error), None
    if document.td_quote is None:
        missing = EvidenceUndecidedError(
            AttestationCode.QUOTE_MISSING, "there is no TDX quote, and a TDREPORT proves nothing away from its machine"
        )
        return AttestationResult.of_error(tee, "tdreport", missing), tdreport.body.report_data
    result = tdx_verifier.appraise_tdx(
        Evidence(EvidenceFormat.TDX_QUOTE, document.td_quote),
        collateral=collateral,
        # The paravisor beneath the guest handles what SEPT_VE_DISABLE keeps from the guest.
        policy=msgspec.structs.replace(policy, require_sept_ve_disable=False),
        exceptions=exceptions,
        expected=Expected(),
        anchors=anchors,
        now=now,
    )
    checks = (_check_tdreport(tdreport, document.td_quote), *result.checks)
    return replace(result, checks=checks), tdreport.body.report_data


def _check_tdreport(tdreport: TdReport, td_quote: bytes) -> Check:
    """Rebuild the body from the quote and compare wholes; a quote of TDX 1.0 leaves out what 1.5 has added."""
    try:
        quoted = parse_quote(td_quote).body
    except AttestationError as error:
        return failed("tdreport", error.code, str(error))
    reported = tdreport.body
    if quoted.mrservicetd is None:
        reported = replace(reported, tee_tcb_svn2=None, mrservicetd=None)
    if quoted == reported:
        return passed("tdreport", "the TDX quote was made of the TDREPORT in the HCL report")
    return failed(
        "tdreport", AttestationCode.RUNTIME_DATA_MISMATCH, "the TDX quote is not of the TDREPORT in the HCL report"
    )


@dataclass(slots=True)
class _Vtpm:
    """What was found of the vTPM; `runtime_data` and `quote` only where they are genuine."""

    checks: list[Check] = field(default_factory=list)
    runtime_data: RuntimeData | None = None
    quote: GenuineQuote | None = None


def _appraise_vtpm(
    hcl_report: HclReport, document: AzureDocument, report_data: bytes, policy: AzurePolicy, expected: Expected
) -> _Vtpm:
    found = _Vtpm()
    step = "runtime_data"
    try:
        found.runtime_data = verify_runtime_data(hcl_report, report_data)
        found.checks.append(passed(step, f"REPORT_DATA is their {hcl_report.hash_name}; they name one attestation key"))
        found.checks += appraise_runtime_data(found.runtime_data, policy)
        step = "tpm_quote"
        if document.quote is None:
            raise EvidenceUndecidedError(AttestationCode.QUOTE_MISSING, "the HCL report came without a TPM quote")
        found.quote = verify_quote(document.quote, found.runtime_data.ak)
    except AttestationError as error:
        make = undecided if isinstance(error, EvidenceUndecidedError) else failed
        found.checks.append(make(step, error.code, str(error)))
        return found
    found.checks.append(passed(step, f"quote of {len(found.quote.registers)} registers by the attestation key"))
    found.checks += appraise_quote(found.quote, policy=policy, expected=expected)
    return found


def _claims(
    hardware: AttestationResult, checks: Sequence[Check], policy: AzurePolicy, *, firmware_held: bool
) -> Claims:
    wrong = {check.check: check.code for check in checks if check.status == "failed"}
    parted = next((wrong[name] for name in _OF_THE_TEE if name in wrong), None)
    if parted is not None:
        return Claims(cpu_tee=Claim(status="refuted", source="hardware", reason=parted))
    if not _is_genuine(hardware):
        return hardware.claims
    # The firmware measures what the registers show: either without the other shows no workload.
    refuted = next((wrong[name] for name in (*_OF_THE_FIRMWARE, "pcrs") if name in wrong), None)
    lacking = [
        *(() if firmware_held else ("the firmware was held against no reference values",)),
        *(() if _BOOT_CODE in policy.allowed_pcrs else ("PCR4 was held against none",)),
        *(() if any(check.check == "tpm_quote" and check.status == "ok" for check in checks) else ("no quote",)),
    ]
    if refuted is not None:
        workload = Claim(status="refuted", source="hardware", reason=refuted)
    elif lacking:
        workload = Claim(status="unknown", source="hardware", reason="; ".join(lacking))
    else:
        workload = Claim(status="proven", source="hardware", reason="firmware and registers allowed")
    return msgspec.structs.replace(hardware.claims, workload=workload)


def _is_genuine(hardware: AttestationResult) -> bool:
    return hardware.report_data is not None


def _measurements(hardware: AttestationResult, vtpm: _Vtpm) -> dict[str, str]:
    if vtpm.quote is None or not _is_genuine(hardware):
        return {}
    return {f"PCR{index}": value.hex() for index, value in sorted(registers_of(vtpm.quote).items())}


def _not_checked(
    hardware: AttestationResult, claims: Claims, expected: Expected, *, firmware_held: bool
) -> dict[str, str]:
    omitted = {name: why for name, why in hardware.not_checked.items() if name not in {"tls_binding", "nonce"}}
    omitted["event_log"] = "the TPM's event log is not replayed"
    omitted.pop("workload", None)
    if claims.workload.status == "unknown":
        omitted["workload"] = claims.workload.reason or ""
    if not firmware_held:
        omitted["vtpm"] = "the firmware was held against no reference values, so any guest could play this vTPM"
    if expected.report_data is None:
        omitted["tls_binding"] = "no REPORT_DATA was expected, so nothing binds a channel"
    if expected.nonce is None:
        omitted["nonce"] = "no nonce was expected"
    return omitted


def _details(hardware: AttestationResult, hcl_report: HclReport, vtpm: _Vtpm) -> dict[str, str]:
    details = {"hcl_version": str(hcl_report.version)}
    if not _is_genuine(hardware):
        return details
    if vtpm.runtime_data is not None:
        known = {
            "secure_boot": str(vtpm.runtime_data.secure_boot).lower(),
            "console_enabled": str(vtpm.runtime_data.console_enabled).lower(),
            "vm_id": vtpm.runtime_data.vm_id,
            "user_data": None if vtpm.runtime_data.user_data is None else vtpm.runtime_data.user_data.hex(),
        }
        details |= {name: value for name, value in known.items() if value is not None}
    if vtpm.quote is not None:
        details["qualifying_data"] = vtpm.quote.quote.extra_data.hex()
    return details
