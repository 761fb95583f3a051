"""SEV-SNP reports: what we want, or not (docs/spec/attestation.md, 5.1.3).

Says nothing about who signed: that is `verify.py`.

Checks that could make sense and are not made: the firmware's version numbers (CURRENT_VERSION) and mitigation vectors,
because the TCB is what the signing key was derived from; REPORT_ID and REPORT_ID_MA, which name one run of one guest;
bits of PLATFORM_INFO that newer firmware sets, because none that AMD has added says less than its absence.
"""

from collections.abc import Mapping
from typing import Final

from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Expected
from tresor.attestation.results import Check, failed, passed, undecided
from tresor.attestation.snp.abi import GuestPolicy, PlatformInfo
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.tcb import Tcb
from tresor.attestation.snp.verify import GenuineSnpReport, Revocation

__all__ = ["appraise_report", "check_binding", "check_measurement", "is_chip_id_masked", "is_firmware_provisional"]

_HALF = 32


def appraise_report(genuine: GenuineSnpReport, *, policy: SnpPolicy, expected: Expected) -> list[Check]:
    """Hold a genuine report against policy and expectations; every mismatch is listed.

    Args:
        genuine: what `verify_report` found to be signed.
        policy: what is acceptable.
        expected: `report_data` is compared with the whole 64 bytes; `nonce` must be the beginning of REPORT_DATA, the
            rest of which is then zero, or be its second half.
    """
    checks = [
        _check_debug(genuine),
        _check_migration_agent(genuine),
        _check_guest_policy(genuine, policy),
        _check_vmpl(genuine, policy),
        _check_signer(genuine, policy),
        _check_platform(genuine, policy),
        _check_chip_id(genuine, policy),
        *_check_revocation(genuine, policy),
    ]
    if policy.require_committed_firmware:  # (17)
        checks.append(_check_firmware(genuine))
    if not policy.skip_tcb_floor:
        checks.append(_check_tcb(genuine, policy))
    if not policy.skip_measurement:
        checks.append(check_measurement(genuine.report.measurement, policy))
    checks += _check_launch_data(genuine, policy)
    checks += check_binding(genuine.report.report_data, expected)
    return checks


def _check(check: str, code: AttestationCode, *, holds: bool, got: str, want: str) -> Check:
    return passed(check, got) if holds else failed(check, code, f"{got}, want {want}")


def _check_debug(genuine: GenuineSnpReport) -> Check:  # (9)
    """The host of a debugged guest reads and writes its memory."""
    debug = bool(genuine.report.policy & GuestPolicy.DEBUG)
    got = f"guest policy {genuine.report.policy:#x} {'allows' if debug else 'forbids'} debugging"
    return _check("debug", AttestationCode.DEBUG_ENABLED, holds=not debug, got=got, want="it forbidden")


def _check_migration_agent(genuine: GenuineSnpReport) -> Check:  # (10)
    """A migration agent holds the guest's keys, and is a guest that nobody here has looked at."""
    allowed = bool(genuine.report.policy & GuestPolicy.MIGRATE_MA)
    got = f"guest policy {genuine.report.policy:#x} {'allows' if allowed else 'forbids'} a migration agent"
    code = AttestationCode.MIGRATION_AGENT_ALLOWED
    return _check("migration_agent", code, holds=not allowed, got=got, want="none")


def _check_guest_policy(genuine: GenuineSnpReport, policy: SnpPolicy) -> Check:  # (11)
    bits = genuine.report.policy
    wrong = [f"{name} is not set" for name in policy.required_policy if not bits & GuestPolicy[name.upper()]]
    if bits & GuestPolicy.SMT and not policy.allow_smt:
        wrong.append("smt is set")
    if bits & GuestPolicy.CXL_ALLOW and not policy.allow_cxl:
        wrong.append("cxl_allow is set")
    got = f"guest policy {bits:#x}"
    if wrong:
        return failed("guest_policy", AttestationCode.POLICY_BITS_NOT_ALLOWED, f"{got}: {', '.join(wrong)}")
    return passed("guest_policy", got)


def _check_vmpl(genuine: GenuineSnpReport, policy: SnpPolicy) -> Check:  # (12)
    return _check(
        "vmpl",
        AttestationCode.VMPL_NOT_ALLOWED,
        holds=genuine.report.vmpl in policy.allowed_vmpls,
        got=f"VMPL {genuine.report.vmpl}",
        want=f"one of {policy.allowed_vmpls}",
    )


def _check_signer(genuine: GenuineSnpReport, policy: SnpPolicy) -> Check:  # (13)
    signer = genuine.endorsement
    lent_elsewhere = policy.allowed_csp_ids is not None and signer.kind == "vlek"
    return _check(
        "signer",
        AttestationCode.SIGNER_NOT_ALLOWED,
        holds=signer.kind in policy.allowed_signers
        and (not lent_elsewhere or signer.csp_id in (policy.allowed_csp_ids or ())),
        got=f"signed by a {signer}",
        want=f"a key of {policy.allowed_signers} and an allowed CSP_ID",
    )


def _check_platform(genuine: GenuineSnpReport, policy: SnpPolicy) -> Check:  # (14)
    information = genuine.report.platform_info
    absent = [name for name in policy.required_platform_info if not information & PlatformInfo[name.upper()]]
    return _check(
        "platform",
        AttestationCode.PLATFORM_NOT_ALLOWED,
        holds=genuine.product in policy.allowed_products and not absent,
        got=f"{genuine.product} with PLATFORM_INFO {information:#x}",
        want=f"one of {policy.allowed_products} with {policy.required_platform_info or 'anything'}",
    )


def is_chip_id_masked(genuine: GenuineSnpReport) -> bool:
    """Whether the report keeps its chip to itself: MASK_CHIP_KEY is set, or CHIP_ID is all zeros."""
    return genuine.report.mask_chip_key or not any(genuine.report.chip_id)


def _check_chip_id(genuine: GenuineSnpReport, policy: SnpPolicy) -> Check:  # (15)
    """A VLEK is no chip's, so there CHIP_ID matters only where chips are listed."""
    chip_id = genuine.report.chip_id.hex()
    listed = policy.allowed_chip_ids is None or chip_id in policy.allowed_chip_ids
    if not listed or chip_id in policy.denied_chip_ids:
        detail = f"chip {chip_id[:16]} is denied, or not among those allowed"
        return failed("chip_id", AttestationCode.PLATFORM_NOT_ALLOWED, detail)
    matters = genuine.endorsement.kind == "vcek" or policy.denied_chip_ids
    if is_chip_id_masked(genuine) and matters and not policy.allow_masked_chip_id:
        return failed("chip_id", AttestationCode.CHIP_ID_MASKED, "the report does not tell its chip")
    return passed("chip_id", f"CHIP_ID {chip_id[:16]}")


_REVOCATION: Final[Mapping[Revocation, AttestationCode]] = {
    "expired": AttestationCode.CRL_EXPIRED,
    "not_yet_valid": AttestationCode.CRL_NOT_YET_VALID,
}


def _check_revocation(genuine: GenuineSnpReport, policy: SnpPolicy) -> list[Check]:  # (16)
    if genuine.revocation == "current":
        return [passed("revocation", "the ARK's current revocation list names none of the chain")]
    if not policy.require_crl:
        return []
    if genuine.revocation == "absent":
        return [undecided("revocation", AttestationCode.REVOCATION_UNKNOWN, "no revocation list of the ARK is at hand")]
    return [failed("revocation", _REVOCATION[genuine.revocation], f"the ARK's list is {genuine.revocation}")]


def is_firmware_provisional(genuine: GenuineSnpReport) -> bool:
    """Whether the host has loaded SNP firmware that it has not committed to.

    Microcode is not part of it: the operating system loads that at any time, and it is gone at the next reset.
    """
    report = genuine.report
    firmware = [
        {name: number for name, number in tcb.parts.items() if name != "ucode"}
        for tcb in (genuine.current_tcb, genuine.committed_tcb)
    ]
    return report.current_version != report.committed_version or firmware[0] != firmware[1]


def _check_firmware(genuine: GenuineSnpReport) -> Check:
    versions = (genuine.report.current_version, genuine.report.committed_version)
    current, committed = (".".join(map(str, version)) for version in versions)
    return _check(
        "firmware",
        AttestationCode.PROVISIONAL_FIRMWARE,
        holds=not is_firmware_provisional(genuine),
        got=f"firmware {current} runs, {committed} is committed",
        want="the same version and TCB",
    )


def _check_tcb(genuine: GenuineSnpReport, policy: SnpPolicy) -> Check:  # (18)
    """Part by part, and for each TCB version that the report states."""
    floor = policy.min_tcb.get(genuine.product)
    if floor is None:
        return failed("tcb", AttestationCode.TCB_BELOW_FLOOR, f"min_tcb has no floor for {genuine.product}")
    versions: dict[str, Tcb] = {
        "REPORTED_TCB": genuine.reported_tcb,
        "LAUNCH_TCB": genuine.launch_tcb,
        "COMMITTED_TCB": genuine.committed_tcb,
        "CURRENT_TCB": genuine.current_tcb,
    }
    wrong = [
        f"{field} has {part} {tcb.parts[part]}, want {floor[part]}"
        for field, tcb in versions.items()
        for part in tcb.below(floor)
    ]
    if wrong:
        return failed("tcb", AttestationCode.TCB_BELOW_FLOOR, "; ".join(wrong))
    return passed("tcb", f"REPORTED_TCB {genuine.reported_tcb} is not below the floor of {genuine.product}")


def check_measurement(measurement: bytes, policy: SnpPolicy) -> Check:  # (19)
    """Hold MEASUREMENT against the values that are allowed; against none, it fails."""
    return _check(
        "measurement",
        AttestationCode.MEASUREMENT_NOT_ALLOWED,
        holds=measurement.hex() in policy.allowed_measurements,
        got=f"MEASUREMENT {measurement.hex()}",
        want=f"one of {len(policy.allowed_measurements)} allowed",
    )


def _check_launch_data(genuine: GenuineSnpReport, policy: SnpPolicy) -> list[Check]:  # (20)
    """What the host chose at launch, and what the signed ID block says of the guest."""
    report, id_block = genuine.report, AttestationCode.ID_BLOCK_NOT_ALLOWED
    rules = (
        ("host_data", AttestationCode.HOST_DATA_NOT_ALLOWED, report.host_data, policy.allowed_host_data),
        ("id_key_digest", id_block, report.id_key_digest, policy.allowed_id_key_digests),
        ("author_key_digest", id_block, report.author_key_digest, policy.allowed_author_key_digests),
        ("family_id", id_block, report.family_id, policy.allowed_family_ids),
        ("image_id", id_block, report.image_id, policy.allowed_image_ids),
    )
    checks = [
        _check(
            name,
            code,
            holds=value.hex() in allowed,
            got=f"{name.upper()} {value.hex()}",
            want=f"one of {len(allowed)} allowed",
        )
        for name, code, value, allowed in rules
        if allowed is not None
    ]
    if policy.min_guest_svn:
        holds = report.guest_svn >= policy.min_guest_svn
        got, want = f"GUEST_SVN {report.guest_svn}", f"at least {policy.min_guest_svn}"
        checks.append(_check("guest_svn", id_block, holds=holds, got=got, want=want))
    return checks


def check_binding(report_data: bytes, expected: Expected) -> list[Check]:
    """Hold REPORT_DATA, 64 bytes, against what it must bind."""
    checks = []
    if expected.report_data is not None:  # (21)
        checks.append(
            _check(
                "report_data",
                AttestationCode.REPORT_DATA_MISMATCH,
                holds=report_data == expected.report_data,
                got=f"REPORT_DATA {report_data.hex()}",
                want=expected.report_data.hex(),
            )
        )
    if expected.nonce is not None:  # (22) A nonce of zeros, or none, would be found in REPORT_DATA that nobody filled.
        found = expected.nonce.ljust(len(report_data), b"\0") == report_data or expected.nonce == report_data[_HALF:]
        checks.append(
            _check(
                "nonce",
                AttestationCode.NONCE_MISMATCH,
                holds=found and any(expected.nonce),
                got=f"REPORT_DATA {report_data.hex()}",
                want=f"nonce {expected.nonce.hex()} in it",
            )
        )
    return checks
