"""Evidence of real processors: the verdict and the values that its collectors state, under the strict default."""

from datetime import timedelta
from typing import Any

import pytest

from support.evidence import facts, sample, verify_at
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.snp.abi import GuestPolicy, SigningKey, parse_report, product_of_cpuid
from tresor.attestation.snp.certificates import parse_endorsement
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.tcb import Product, Tcb
from tresor.attestation.snp.verifier import appraise_snp
from tresor.attestation.x509 import split_certificates

VERDICTS = {
    "snp/genoa-v5-vcek": None,
    "snp/milan-v2-debug-policy": "debug_enabled",
    "snp/milan-v2-forged-vcek-legacy": "chain_invalid",
    "snp/milan-v2-forged-vcek-new": "chain_invalid",
    "snp/milan-v2-vcek": None,
    "snp/milan-v3-vcek": None,
    "snp/milan-v3-vlek-aws": "vmpl_not_allowed",
    "snp/turin-v5-vcek": None,
}
every_sample = pytest.mark.parametrize("name", VERDICTS)


def report_of(name: str) -> bytes:
    return (sample(name) / "report.bin").read_bytes()


def certificates_of(name: str) -> tuple[bytes, ...]:
    (file,) = (path for path in sample(name).iterdir() if path.stem in {"vcek", "vlek"})
    return tuple(split_certificates(file.read_bytes()))


def appraise(name: str, policy: SnpPolicy | None = None, **changes: Any) -> AttestationResult:
    arguments: dict[str, Any] = {
        "collateral": Collateral(certificates=certificates_of(name)),
        "policy": policy or SnpPolicy(),
        "expected": Expected(),
        "anchors": vendor_anchors(),
        "now": verify_at(name),
    }
    return appraise_snp(Evidence(EvidenceFormat.SNP_REPORT, report_of(name)), **(arguments | changes))


def test_every_sample_is_here() -> None:
    assert {f"snp/{folder.name}" for folder in sample("snp").iterdir() if folder.is_dir()} == set(VERDICTS)


@every_sample
def test_verdict(name: str) -> None:
    result = appraise(name)
    assert {"accepted": "accept", "rejected": "reject"}[result.outcome] == facts(name)["verdict"]
    # For the reason that is stated, and no other.
    assert [check.code for check in result.checks if check.status != "ok"] == [VERDICTS[name]] * (not_accepted(name))
    assert result.code == VERDICTS[name]
    assert result.tee == "sev-snp"
    assert (result.claims.cpu_tee.status == "proven") == (VERDICTS[name] is None)
    assert (result.claims.tcb.status, result.claims.workload.status) == ("unknown", "unknown")


def not_accepted(name: str) -> int:
    return int(VERDICTS[name] is not None)


@every_sample
def test_every_field_is_read(name: str) -> None:
    report, known = parse_report(report_of(name)), facts(name)["report"]
    for field in ("version", "guest_svn", "vmpl", "mask_chip_key"):
        assert getattr(report, field) == known[field]
    for field in (
        "family_id",
        "image_id",
        "report_data",
        "measurement",
        "host_data",
        "id_key_digest",
        "author_key_digest",
        "report_id",
        "report_id_ma",
        "chip_id",
    ):
        assert getattr(report, field).hex() == known[field]
    assert report.policy == int(known["policy"], 16)
    assert bool(report.policy & GuestPolicy.DEBUG) == known["debug"]
    assert bool(report.policy & GuestPolicy.SMT) == known["smt"]
    assert bool(report.policy & GuestPolicy.MIGRATE_MA) == known["migrate_ma"]
    assert bool(report.policy & GuestPolicy.SINGLE_SOCKET) == known["single_socket"]
    assert report.platform_info == int(known["platform_info"], 16)
    assert SigningKey(report.signing_key).name == known["signing_key"]
    assert report.author_key_en == known["author_key_en"]
    assert ".".join(map(str, report.current_version)) == known["current_fw"]
    assert ".".join(map(str, report.committed_version)) == known["committed_fw"]
    assert report.cpuid == (None if known["cpuid"][0] is None else tuple(known["cpuid"]))
    product: Product = "Milan" if report.cpuid is None else product_of_cpuid(*report.cpuid[:2]) or "Milan"
    for field in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"):
        assert Tcb.parse(getattr(report, field), product).parts == known[field]
    assert (report.launch_mit_vector is None) == (report.current_mit_vector is None) == (report.version < 5)


@every_sample
def test_every_extension_is_read(name: str) -> None:
    (der,) = certificates_of(name)
    endorsement, known = parse_endorsement(der), facts(name)["endorsement_cert"]
    assert endorsement is not None
    extensions = known["ext"]
    assert endorsement.product_name == extensions["product"]
    assert endorsement.tcb.parts == {part: extensions[part] for part in endorsement.tcb.parts}
    assert endorsement.csp_id == extensions.get("csp")
    assert ("hwid" in extensions) == (endorsement.kind == "vcek")
    if endorsement.hwid is not None:
        assert extensions["hwid"].endswith(endorsement.hwid.hex())  # one look-alike writes it as an OCTET STRING
    assert endorsement.not_valid_before_utc.isoformat() == known["not_before"].replace("Z", "+00:00")
    assert endorsement.not_valid_after_utc.isoformat() == known["not_after"].replace("Z", "+00:00")


@pytest.mark.parametrize("name", [name for name, code in VERDICTS.items() if code is None])
def test_what_a_good_sample_shows(name: str) -> None:
    known = facts(name)["report"]
    floor = {facts(name)["endorsement_cert"]["product_line"].capitalize(): known["reported_tcb"]}
    policy = SnpPolicy(
        allowed_measurements=(known["measurement"],), skip_measurement=False, min_tcb=floor, skip_tcb_floor=False
    )
    result = appraise(name, policy, expected=Expected(report_data=bytes.fromhex(known["report_data"])))
    assert result.outcome == "accepted"
    claims = result.claims
    assert [claim.status for claim in (claims.cpu_tee, claims.tcb, claims.workload)] == ["proven"] * 3
    assert claims.gpu_tee.status == "unknown"
    assert result.measurements["MEASUREMENT"] == known["measurement"]
    assert result.measurements["HOST_DATA"] == known["host_data"]
    assert result.report_data == bytes.fromhex(known["report_data"])
    assert set(result.not_checked) == {"gpu_tee", "revocation", "host_data", "id_block", "nonce"}
    assert result.details["chip_id"] == known["chip_id"]
    assert result.details["vmpl"] == "0"


def test_validity_is_that_of_the_vcek() -> None:
    name = "snp/milan-v3-vcek"
    result = appraise(name)
    assert result.valid_from is not None
    assert result.valid_until is not None
    assert appraise(name, now=result.valid_from).outcome == "accepted"
    assert appraise(name, now=result.valid_until).outcome == "accepted"
    assert appraise(name, now=result.valid_from - timedelta(seconds=1)).code == "certificate_not_yet_valid"
    assert appraise(name, now=result.valid_until + timedelta(seconds=1)).code == "certificate_expired"


def test_vlek_is_genuine_although_its_vmpl_is_not_wanted() -> None:
    result = appraise("snp/milan-v3-vlek-aws")
    assert [check.check for check in result.checks[:3]] == ["report", "endorsement", "report_signature"]
    assert all(check.status == "ok" for check in result.checks[:3])
    assert result.details["csp_id"] == "CN=cc-us-east-2.amazonaws.com"
    assert result.not_checked["chip_id"]
    assert appraise("snp/milan-v3-vlek-aws", SnpPolicy(allowed_vmpls=(1,))).outcome == "accepted"


def test_debug_is_refused_with_chain_and_signature_reported_good() -> None:
    result = appraise("snp/milan-v2-debug-policy")
    good = {check.check for check in result.checks if check.status == "ok"}
    assert {"report", "endorsement", "report_signature"} <= good
    assert result.claims.cpu_tee.status == "refuted"
    assert result.measurements  # genuine, and so shown
