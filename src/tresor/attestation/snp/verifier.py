"""SEV-SNP reports: well-formed, genuine, acceptable, in one result (docs/spec/attestation.md, 5.1).

Pure: bytes, policy, anchors and instant come in, one `AttestationResult` goes out; nothing is raised on bad input.
The functions `report_*` say what a genuine report shows; evidence that wraps a report uses them too.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, EvidenceMalformedError
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, Expected, Need
from tresor.attestation.results import AttestationResult, Check, Claim, Claims, passed
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.snp.abi import SigningKey, SnpReport, parse_report, product_of_cpuid
from tresor.attestation.snp.appraise import appraise_report, is_chip_id_masked, is_firmware_provisional
from tresor.attestation.snp.certificates import HWID_BYTES, find_endorsements
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.tcb import Product, Tcb
from tresor.attestation.snp.verify import GenuineSnpReport, is_for_report, verify_report

__all__ = [
    "appraise_snp",
    "failed_step",
    "needs",
    "report_claims",
    "report_details",
    "report_measurements",
    "report_needs",
    "report_not_checked",
    "verified_checks",
]

_TEE: Final = "sev-snp"
_KDS: Final = "https://kdsintf.amd.com"
_MEASURED: Final = (
    "measurement",
    "report_data",
    "host_data",
    "id_key_digest",
    "author_key_digest",
    "family_id",
    "image_id",
)
# What fails here makes the guest another one than hoped for, or answers someone else; it is a confidential guest still.
_BESIDE_THE_TEE: Final = frozenset(
    {
        "tcb",
        "measurement",
        "host_data",
        "id_key_digest",
        "author_key_digest",
        "family_id",
        "image_id",
        "guest_svn",
        "report_data",
        "nonce",
    }
)


def needs(evidence: Evidence, collateral: Collateral) -> tuple[Need, ...]:
    """Return where AMD serves the VCEK and revocation list that `collateral` lacks; nothing of an unreadable report."""
    try:
        return report_needs(parse_report(evidence.data), collateral)
    except EvidenceMalformedError:
        return ()


def report_needs(report: SnpReport, collateral: Collateral) -> tuple[Need, ...]:
    """Return what the verification of a report could use (AMD 57230, chapter 4).

    A VLEK is not served to the public: it comes with the report, from the host.  A version 2 report does not tell its
    product: there each line that such reports come from is named, and one of them answers.

    Raises:
        EvidenceMalformedError: REPORTED_TCB is none of the product's.
    """
    if report.cpuid is None:
        products: tuple[Product, ...] = ("Milan", "Genoa")
    else:
        product = product_of_cpuid(*report.cpuid[:2])
        products = () if product is None else (product,)
    service = "vlek" if report.signing_key == SigningKey.VLEK else "vcek"
    wanted = []
    if service == "vcek" and any(report.chip_id):
        found, _ = find_endorsements(collateral.certificates)
        if not any(is_for_report(endorsement, report) for endorsement in found):
            wanted += [Need(CollateralKind.CERTIFICATE, _vcek_url(report, product)) for product in products]
    if not collateral.crls:
        wanted += [
            Need(CollateralKind.CRL, f"{_KDS}/{service}/v1/{product}/crl", required=False) for product in products
        ]
    return tuple(wanted)


def _vcek_url(report: SnpReport, product: Product) -> str:
    versions = "&".join(f"{name}SPL={spl:02}" for name, spl in Tcb.parse(report.reported_tcb, product).parts.items())
    return f"{_KDS}/vcek/v1/{product}/{report.chip_id[: HWID_BYTES[product]].hex()}?{versions}"


def appraise_snp(
    evidence: Evidence,
    *,
    collateral: Collateral,
    policy: SnpPolicy,
    expected: Expected,
    anchors: TrustAnchors,
    now: datetime,
) -> AttestationResult:
    """Appraise one report, steps (1) to (22) of docs/spec/attestation.md section 5.1.

    Args:
        evidence: the report as the firmware gave it.
        collateral: the VCEK or VLEK, and revocation lists where there are any.
        policy: what is acceptable.
        expected: what REPORT_DATA must be.
        anchors: pinned roots.
        now: instant to appraise at (aware, UTC).
    """
    checks: list[Check] = []
    try:
        report = parse_report(evidence.data)  # (1)
        checks.append(passed("report", f"SNP report of version {report.version}"))
        genuine = verify_report(report, collateral=collateral, anchors=anchors, now=now)
    except AttestationError as error:
        return AttestationResult.of_error(_TEE, failed_step(checks, error), error, before=checks)
    checks += verified_checks(genuine)
    checks += appraise_report(genuine, policy=policy, expected=expected)
    return AttestationResult(
        tee=_TEE,
        checks=tuple(checks),
        claims=report_claims(checks, policy),
        measurements=report_measurements(genuine),
        not_checked=report_not_checked(genuine, policy, expected),
        report_data=genuine.report.report_data,
        valid_from=genuine.valid_from,
        valid_until=genuine.valid_until,
        details=report_details(genuine),
    )


def failed_step(before: Sequence[Check], error: AttestationError) -> str:
    """Name the check that ended with `error`, after the checks `before`."""
    if not before:
        return "report"
    return "report_signature" if error.code is AttestationCode.SIGNATURE_INVALID else "endorsement"


def verified_checks(genuine: GenuineSnpReport) -> list[Check]:
    """Return what `verify_report` has found to hold."""
    return [
        passed("endorsement", f"{genuine.endorsement}, TCB {genuine.reported_tcb}, under the pinned ARK"),
        passed("report_signature", f"ECDSA P-384 by the {genuine.endorsement.kind.upper()}"),
    ]


def report_claims(checks: Sequence[Check], policy: SnpPolicy) -> Claims:
    """Return what the checks of a genuine report show together."""
    wrong = {check.check: check for check in checks if check.status != "ok"}
    against = [check for name, check in wrong.items() if name not in _BESIDE_THE_TEE]
    if not against:
        cpu_tee = Claim(status="proven", source="hardware", reason="signed under AMD's root, and not debugged")
    else:
        refuted = any(check.status == "failed" for check in against)
        cpu_tee = Claim(status="refuted" if refuted else "unknown", source="hardware", reason=against[0].code)
    return Claims(
        cpu_tee=cpu_tee,
        tcb=_held(wrong.get("tcb"), skipped=policy.skip_tcb_floor, against="TCB floor"),
        workload=_held(wrong.get("measurement"), skipped=policy.skip_measurement, against="allowed measurements"),
    )


def _held(wrong: Check | None, *, skipped: bool, against: str) -> Claim:
    if skipped:
        return Claim(status="unknown", source="hardware", reason=f"held against no {against}")
    if wrong is not None:
        return Claim(status="refuted", source="hardware", reason=wrong.code)
    return Claim(status="proven", source="hardware", reason=f"held against {against}")


def report_measurements(genuine: GenuineSnpReport) -> dict[str, str]:
    """Return what was measured of the guest and chosen for it, under AMD's names."""
    return {name.upper(): getattr(genuine.report, name).hex() for name in _MEASURED}


def report_not_checked(genuine: GenuineSnpReport, policy: SnpPolicy, expected: Expected) -> dict[str, str]:
    """Return what a reader might take for checked and was not."""
    omitted = {"gpu_tee": "no GPU is part of an SNP report"}
    if policy.skip_tcb_floor:
        omitted["tcb"] = "the policy skips the TCB floor"
    if policy.skip_measurement:
        omitted["workload"] = "the policy skips MEASUREMENT"
    if genuine.revocation != "current" and not policy.require_crl:
        omitted["revocation"] = f"the ARK's revocation list is {genuine.revocation.replace('_', ' ')}"
    if policy.allowed_host_data is None:
        omitted["host_data"] = "the policy restricts no HOST_DATA"
    if policy.allowed_id_key_digests is None and policy.allowed_author_key_digests is None:
        omitted["id_block"] = "the policy names no key that must have signed the ID block"
    if is_firmware_provisional(genuine) and not policy.require_committed_firmware:
        omitted["firmware"] = "the host can take back the firmware that runs"
    if is_chip_id_masked(genuine):
        omitted["chip_id"] = "the report does not tell its chip"
    if expected.report_data is None:
        omitted["tls_binding"] = "no REPORT_DATA was expected, so nothing binds a channel"
    if expected.nonce is None:
        omitted["nonce"] = "no nonce was expected"
    return omitted


def report_details(genuine: GenuineSnpReport) -> dict[str, str]:
    """Return facts for people and receipts."""
    report = genuine.report
    details = {
        "product": genuine.product,
        "report_version": str(report.version),
        "signer": genuine.endorsement.kind,
        "vmpl": str(report.vmpl),
        "policy": f"{report.policy:#x}",
        "platform_info": f"{report.platform_info:#x}",
        "guest_svn": str(report.guest_svn),
        "chip_id": report.chip_id.hex(),
        "reported_tcb": str(genuine.reported_tcb),
        "launch_tcb": str(genuine.launch_tcb),
        "committed_tcb": str(genuine.committed_tcb),
        "current_tcb": str(genuine.current_tcb),
        "firmware": ".".join(map(str, report.current_version)),
    }
    if genuine.endorsement.csp_id is not None:
        details["csp_id"] = genuine.endorsement.csp_id
    if report.current_mit_vector is not None:
        details["mit_vector"] = f"{report.current_mit_vector:#x}"
    return details
