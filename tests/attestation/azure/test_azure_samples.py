"""Evidence of real Azure machines: verdicts, values, claims, bindings."""

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from support.evidence import facts, sample, verify_at
from support.fake_amd import AT, fake_amd, make_report
from support.fake_tpm import PCRS, azure_document, fake_tpm, hcl_report
from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.azure.verifier import appraise_azure, needs
from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import TrustAnchors, vendor_anchors
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.attestation.x509 import split_certificates

GENOA, MILAN = "azure/snp-genoa", "azure/snp-milan-userdata"
WRONG_CHIP, TDX = "azure/snp-wrong-chip", "azure/tdx-2023"


def evidence(name: str) -> Evidence:
    folder = sample(name)
    path = next(path for path in (folder / "evidence.json", folder / "hcl-report-snp.bin") if path.exists())
    return Evidence(EvidenceFormat.AZURE_VTPM, path.read_bytes())


def collateral(name: str) -> Collateral:
    path = sample(name) / "certs.pem"
    return Collateral(certificates=tuple(split_certificates(path.read_bytes())) if path.exists() else ())


def appraised(
    name: str,
    *,
    azure: AzurePolicy | None = None,
    snp: SnpPolicy | None = None,
    expected: Expected | None = None,
    at: datetime | None = None,
) -> AttestationResult:
    return appraise_azure(
        evidence(name),
        collateral=collateral(name),
        policy=azure or AzurePolicy(),
        snp=snp or SnpPolicy(),
        tdx=TdxPolicy(),
        expected=expected or Expected(),
        anchors=vendor_anchors(),
        now=at or verify_at(name),
    )


@pytest.mark.parametrize(
    ("name", "tee", "outcome", "code"),
    [
        (GENOA, "azure-sev-snp", "accepted", None),
        (MILAN, "azure-sev-snp", "accepted", None),
        (WRONG_CHIP, "azure-sev-snp", "rejected", AttestationCode.CHIP_ID_MISMATCH),
        (TDX, "azure-tdx", "undecided", AttestationCode.COLLATERAL_MISSING),
    ],
)
def test_verdict(name: str, tee: str, outcome: str, code: AttestationCode | None) -> None:
    result = appraised(name)
    assert (result.tee, result.outcome, result.code) == (tee, outcome, code)
    assert result.tee == facts(name)["tee"]


@pytest.mark.parametrize("name", [GENOA, MILAN])
def test_values(name: str) -> None:
    known, result = facts(name), appraised(name)
    assert result.report_data is not None
    assert result.report_data.hex() == known["rep"]["report_data"]
    assert result.measurements["MEASUREMENT"] == known["rep"]["measurement"]
    assert result.details["qualifying_data"] == known["quote"]["qualifying_data"]
    assert result.details["user_data"].startswith(known["userdata"].lower())
    assert result.details["vm_id"] == known["vmconf"]["vmUniqueId"]
    assert result.details["hcl_version"] == str(known["hcl"]["ver"])
    assert [result.valid_from, result.valid_until] == [datetime.fromisoformat(at) for at in known["vcek_window"]]
    assert {f"PCR{index}" for index in range(24)} <= result.measurements.keys()


def test_what_nothing_genuine_stands_behind_is_not_shown() -> None:
    for name in (WRONG_CHIP, TDX):
        result = appraised(name)
        assert not result.measurements
        assert result.report_data is None
        assert "qualifying_data" not in result.details


def test_registers_are_those_of_the_document() -> None:
    document: dict[str, Any] = json.loads(evidence(MILAN).data)  # noqa: TID251 - a sample
    result = appraised(MILAN)
    assert [result.measurements[f"PCR{index}"] for index in range(24)] == document["tpm_quote"]["pcrs"]


@pytest.mark.parametrize(("name", "status"), [(GENOA, "proven"), (MILAN, "proven"), (TDX, "unknown")])
def test_claims_and_what_was_not_checked(name: str, status: str) -> None:
    result = appraised(name)
    statuses = (result.claims.cpu_tee.status, result.claims.tcb.status, result.claims.workload.status)
    assert statuses == (status, "unknown", "unknown")
    assert {"tcb", "workload", "revocation", "tls_binding", "nonce", "event_log", "vtpm"} <= set(result.not_checked)


@pytest.mark.parametrize(
    ("firmware", "register", "outcome", "status"),
    [
        (True, "4", "accepted", "proven"),
        (True, "7", "accepted", "unknown"),
        (False, "4", "accepted", "unknown"),
        (None, "4", "rejected", "refuted"),
    ],
)
def test_workload_takes_firmware_and_boot_code(
    *, firmware: bool | None, register: str, outcome: str, status: str
) -> None:
    known = appraised(MILAN).measurements
    allowed = known["MEASUREMENT"] if firmware else "00" * 48
    result = appraised(
        MILAN,
        azure=AzurePolicy(allowed_pcrs={register: (known[f"PCR{register}"],)}, skip_pcrs=False),
        snp=SnpPolicy() if firmware is False else SnpPolicy(allowed_measurements=(allowed,), skip_measurement=False),
    )
    assert (result.outcome, result.claims.workload.status) == (outcome, status)
    assert ("workload" in result.not_checked) == (status == "unknown")
    assert ("vtpm" in result.not_checked) == (firmware is not True)


@pytest.mark.parametrize("name", [GENOA, MILAN, TDX])
def test_nonce(name: str) -> None:
    nonce = bytes.fromhex(facts(name)["quote"]["qualifying_data"])
    checks = {check.check: check.status for check in appraised(name, expected=Expected(nonce=nonce)).checks}
    assert checks["nonce"] == "ok"
    other = appraised(name, expected=Expected(nonce=nonce[:-1] + bytes([nonce[-1] ^ 1])))
    assert (other.outcome, other.code) == ("rejected", AttestationCode.NONCE_MISMATCH)


def test_every_mismatch_is_listed() -> None:
    result = appraised(
        GENOA,
        azure=AzurePolicy(allowed_pcrs={"4": ("00" * 32,)}, skip_pcrs=False),
        snp=SnpPolicy(allowed_vmpls=(1,), skip_measurement=False),
        expected=Expected(report_data=bytes(64), nonce=b"other"),
    )
    failed = [check.check for check in result.checks if check.status == "failed"]
    assert failed == ["vmpl", "measurement", "pcrs", "report_data", "nonce"]


def test_after_the_vcek_it_is_expired() -> None:
    until = appraised(MILAN).valid_until
    assert until is not None
    assert appraised(MILAN, at=until + timedelta(seconds=1)).code == AttestationCode.CERTIFICATE_EXPIRED


def test_needs_are_those_of_the_hardware_report() -> None:
    vcek, *_ = needs(evidence(WRONG_CHIP), Collateral())
    assert (vcek.kind, vcek.required) == (CollateralKind.CERTIFICATE, True)
    assert "/vcek/v1/Milan/3a5d5b1d059d193e" in vcek.url
    assert all(not need.required for need in needs(evidence(GENOA), Collateral()))  # its VCEK is inside
    (tdx,) = needs(evidence(TDX), Collateral())
    assert tdx.kind == CollateralKind.TDX
    assert "00806f050000" in tdx.url.lower()
    assert needs(Evidence(EvidenceFormat.AZURE_VTPM, b"HCLA"), Collateral()) == ()


def test_the_certificates_inside_count_as_little_as_any() -> None:
    document: dict[str, Any] = json.loads(evidence(MILAN).data)  # noqa: TID251 - a sample
    document["vcek"] = json.loads(evidence(GENOA).data)["vcek"]  # noqa: TID251 - a sample
    result = appraise_azure(
        Evidence(EvidenceFormat.AZURE_VTPM, json.dumps(document).encode()),
        collateral=Collateral(),
        policy=AzurePolicy(),
        snp=SnpPolicy(),
        tdx=TdxPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(MILAN),
    )
    assert (result.outcome, result.code) == ("rejected", AttestationCode.COLLATERAL_MISMATCH)


def test_no_root_accepts_nothing() -> None:
    tpm, amd = fake_tpm(), fake_amd("Milan")
    runtime_data = tpm.runtime_data()
    chip = amd.vcek()
    report = chip.sign(make_report("Milan", report_data=hashlib.sha256(runtime_data).digest().ljust(64, b"\0")))
    result = appraise_azure(
        Evidence(EvidenceFormat.AZURE_VTPM, azure_document(hcl_report(2, report, runtime_data), tpm.quote(b"", PCRS))),
        collateral=Collateral(certificates=(chip.der, *amd.issuers)),
        policy=AzurePolicy(),
        snp=SnpPolicy(),
        tdx=TdxPolicy(),
        expected=Expected(),
        anchors=TrustAnchors(amd={}),
        now=AT,
    )
    assert (result.outcome, result.code) == ("rejected", AttestationCode.ROOT_NOT_PINNED)


def test_a_policy_that_names_values_and_skips_them_is_contradictory() -> None:
    with pytest.raises(ValueError, match="skip_pcrs = false"):
        AzurePolicy(allowed_pcrs={"4": ("00" * 32,)})
