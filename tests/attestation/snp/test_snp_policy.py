"""The policy of SEV-SNP: read from TOML and JSON, contradictions refused, forgetting never loosens."""

from typing import Any

import msgspec
import pytest

from support.fake_amd import AT, TCB, fake_amd, make_report
from tresor.attestation.errors import PolicyError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.policy import parse_policy
from tresor.attestation.results import AttestationResult
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.verifier import appraise_snp


def appraise(policy: SnpPolicy, expected: Expected | None = None, **fields: Any) -> AttestationResult:
    amd = fake_amd()
    chip = amd.vcek()
    return appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, chip.sign(make_report(**fields))),
        collateral=Collateral(certificates=(chip.der, *amd.issuers)),
        policy=policy,
        expected=expected or Expected(),
        anchors=amd.anchors,
        now=AT,
    )


@pytest.mark.parametrize(
    "members",
    [
        {"allowed_measurements": ["ab" * 48]},
        {"allowed_measurements": ["ab" * 48], "skip_measurement": True},
        {"min_tcb": {"Milan": {"bl": 0, "tee": 0, "snp": 0, "ucode": 0}}},
        {"min_tcb": {"Milan": {"bl": 4}}, "skip_tcb_floor": False},
        {"min_tcb": {"Milan": {"fmc": 1, "bl": 0, "tee": 0, "snp": 0, "ucode": 0}}, "skip_tcb_floor": False},
        {"min_tcb": {"Turin": {"bl": 0, "tee": 0, "snp": 0, "ucode": 0}}, "skip_tcb_floor": False},
        {"min_tcb": {"Milan": {"bl": 256, "tee": 0, "snp": 0, "ucode": 0}}, "skip_tcb_floor": False},
        {"min_tcb": {"Rome": {"bl": 0, "tee": 0, "snp": 0, "ucode": 0}}, "skip_tcb_floor": False},
        {"min_tcb": {"Milan": 15_828_362_011_222_540_292}, "skip_tcb_floor": False},
        {"allowed_measurements": ["AB" * 48], "skip_measurement": False},
        {"allowed_measurements": ["ab" * 32], "skip_measurement": False},
        {"allowed_measurements": ["ab" * 48 + "\n"], "skip_measurement": False},
        {"allowed_measurements": "ab" * 48, "skip_measurement": False},
        {"allowed_host_data": ["ab" * 48]},
        {"allowed_signers": ["vcek", "ark"]},
        {"allowed_vmpls": [4]},
        {"allowed_vmpls": 0},
        {"allow_debug": True},
        {"allowed_measurement": []},
        {"required_policy": ["debug"]},
        {"required_platform_info": ["ALIAS_CHECK_COMPLETE"]},
        {"min_guest_svn": -1},
        {"require_crl": "yes"},
    ],
)
def test_refused(members: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        parse_policy(msgspec.json.encode({"snp": members}))


def test_toml_and_json_say_the_same() -> None:
    toml = b"""
    [snp]
    allowed_measurements = ["%s"]
    skip_measurement = false
    skip_tcb_floor = false
    allowed_vmpls = [0, 1]
    [snp.min_tcb.Turin]
    fmc = 1
    bl = 1
    tee = 1
    snp = 4
    ucode = 81
    """ % (b"ab" * 48)
    policy = parse_policy(toml).snp
    assert policy == parse_policy(msgspec.json.encode({"snp": policy})).snp
    assert policy.min_tcb == {"Turin": {"fmc": 1, "bl": 1, "tee": 1, "snp": 4, "ucode": 81}}


def test_members_cannot_be_exchanged() -> None:
    with pytest.raises(AttributeError):
        SnpPolicy().allowed_vmpls = (3,)  # type: ignore[misc]  # frozen, which is what is tested


def test_the_default_says_what_it_did_not_look_at() -> None:
    result = appraise(SnpPolicy())
    assert result.outcome == "accepted"
    assert {"tcb", "workload", "revocation", "host_data", "id_block", "tls_binding", "nonce"} <= set(result.not_checked)
    assert result.claims.tcb.status == result.claims.workload.status == "unknown"


def test_a_failed_policy_lists_every_mismatch() -> None:
    policy = SnpPolicy(
        allowed_measurements=("00" * 48,),
        skip_measurement=False,
        min_tcb={"Milan": {"bl": 5, "tee": 1, "snp": 25, "ucode": 220}},
        skip_tcb_floor=False,
        allowed_vmpls=(),
        allowed_signers=(),
        allowed_products=(),
        denied_chip_ids=(),
        allowed_chip_ids=(),
        require_crl=True,
        require_committed_firmware=True,
        allow_smt=False,
        min_guest_svn=9,
        allowed_host_data=(),
        allowed_id_key_digests=(),
        allowed_author_key_digests=(),
        allowed_family_ids=(),
        allowed_image_ids=(),
    )
    result = appraise(policy, Expected(report_data=b"", nonce=b"n"), current_version=bytes((30, 55, 1)))
    good = [check.check for check in result.checks if check.status == "ok"]
    assert good == ["report", "endorsement", "report_signature", "debug", "migration_agent"]
    assert len(result.checks) == 22
    (floor,) = (check.detail for check in result.checks if check.check == "tcb")
    for field in ("REPORTED_TCB", "LAUNCH_TCB", "COMMITTED_TCB", "CURRENT_TCB"):
        for part, want in (("bl", 5), ("tee", 1), ("snp", 25), ("ucode", 220)):
            assert f"{field} has {part} {TCB[part]}, want {want}" in floor
    assert result.claims.cpu_tee.status == result.claims.tcb.status == result.claims.workload.status == "refuted"


@pytest.mark.parametrize(
    ("policy", "claims"),
    [
        (SnpPolicy(skip_measurement=False), ("proven", "unknown", "refuted")),
        (SnpPolicy(skip_tcb_floor=False), ("proven", "refuted", "unknown")),
        (SnpPolicy(allowed_host_data=()), ("proven", "unknown", "unknown")),
        (SnpPolicy(allowed_vmpls=()), ("refuted", "unknown", "unknown")),
        (SnpPolicy(require_crl=True), ("unknown", "unknown", "unknown")),
    ],
)
def test_claims_are_judged_each_by_itself(policy: SnpPolicy, claims: tuple[str, str, str]) -> None:
    result = appraise(policy)
    assert result.outcome != "accepted"
    assert (result.claims.cpu_tee.status, result.claims.tcb.status, result.claims.workload.status) == claims


def test_firmware_that_can_be_taken_back_is_named() -> None:
    result = appraise(SnpPolicy(), current_tcb={**TCB, "snp": 25})
    assert result.outcome == "accepted"
    assert result.not_checked["firmware"] == "the host can take back the firmware that runs"
    assert "firmware" not in appraise(SnpPolicy(), current_tcb={**TCB, "ucode": 220}).not_checked
