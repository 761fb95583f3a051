"""Documents of real enclaves: verdicts, values, claims, and a second implementation."""

import hashlib
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.evidence import facts, sample, verify_at
from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.nitro.policy import NitroPolicy
from tresor.attestation.nitro.verifier import appraise_nitro, needs
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors

GOOD = "nitro/enclave-good"
ONES = b"\x01" * 1024


def document(name: str) -> bytes:
    return (sample(name) / "attestation.cbor").read_bytes()


def appraised(
    data: bytes, at: datetime, *, policy: NitroPolicy | None = None, expected: Expected | None = None
) -> AttestationResult:
    return appraise_nitro(
        Evidence(EvidenceFormat.NITRO, data),
        collateral=Collateral(),
        policy=policy or NitroPolicy(),
        expected=expected or Expected(),
        anchors=vendor_anchors(),
        now=at,
    )


@pytest.mark.parametrize(
    ("name", "outcome", "code"),
    [
        (GOOD, "accepted", None),
        ("nitro/enclave-debug", "rejected", AttestationCode.DEBUG_ENABLED),
        ("nitro/self-signed", "rejected", AttestationCode.EVIDENCE_MALFORMED),
    ],
)
def test_verdict(name: str, outcome: str, code: AttestationCode | None) -> None:
    result = appraised(document(name), verify_at(name))
    assert (result.outcome, result.code) == (outcome, code)


def test_why_the_stand_in_is_refused() -> None:
    (check,) = appraised(document("nitro/self-signed"), verify_at("nitro/self-signed")).checks
    assert "got `null` - at `$.cabundle`" in check.detail


@pytest.mark.parametrize("name", [GOOD, "nitro/enclave-debug"])
def test_values(name: str) -> None:
    known = facts(name)["document"]
    result = appraised(document(name), verify_at(name))
    assert {index: result.measurements[f"PCR{index}"] for index in known["pcrs"]} == known["pcrs"]
    assert result.report_data is not None
    assert hashlib.sha256(result.report_data).hexdigest() == known["user_data_sha256"]
    assert [result.valid_from, result.valid_until] == [datetime.fromisoformat(at) for at in known["chain_valid"]]
    assert result.details["module_id"] == known["module_id"]
    made = datetime.fromtimestamp(int(result.details["timestamp_ms"]) / 1000, UTC)
    assert made == datetime.fromisoformat(known["timestamp"])


def test_claims_and_what_was_not_checked() -> None:
    result = appraised(document(GOOD), verify_at(GOOD))
    statuses = (result.claims.cpu_tee.status, result.claims.tcb.status, result.claims.workload.status)
    assert statuses == ("proven", "unknown", "unknown")
    assert {"tcb", "workload", "revocation", "tls_binding", "nonce", "gpu_tee", "public_key"} == set(result.not_checked)


@pytest.mark.parametrize(
    ("registers", "status"), [("0", "proven"), ("12", "proven"), ("1", "unknown"), ("4", "unknown")]
)
def test_workload_is_proven_by_the_image_registers_alone(registers: str, status: str) -> None:
    known = facts(GOOD)["document"]["pcrs"]
    policy = NitroPolicy(allowed_pcrs={index: (known[index],) for index in registers}, skip_pcrs=False)
    result = appraised(document(GOOD), verify_at(GOOD), policy=policy)
    assert (result.outcome, result.claims.workload.status) == ("accepted", status)
    assert "workload" not in result.not_checked


def test_workload_is_refuted_by_another_value() -> None:
    policy = NitroPolicy(allowed_pcrs={"0": ("00" * 48,)}, skip_pcrs=False)
    result = appraised(document(GOOD), verify_at(GOOD), policy=policy)
    assert (result.outcome, result.claims.workload.status) == ("rejected", "refuted")


def test_bindings() -> None:
    expected = Expected(report_data=ONES, nonce=ONES)
    result = appraised(document(GOOD), verify_at(GOOD), expected=expected)
    assert result.outcome == "accepted"
    assert not {"tls_binding", "nonce"} & set(result.not_checked)


def test_every_mismatch_is_listed() -> None:
    result = appraised(
        document("nitro/enclave-debug"),
        verify_at("nitro/enclave-debug"),
        policy=NitroPolicy(allowed_pcrs={"4": ("00" * 48,)}, skip_pcrs=False),
        expected=Expected(report_data=b"", nonce=b"m"),
    )
    failed = [check.check for check in result.checks if check.status == "failed"]
    assert failed == ["debug", "pcrs", "report_data", "nonce"]


def test_under_tag_18_it_is_the_same_document() -> None:
    assert appraised(b"\xd2" + document(GOOD), verify_at(GOOD)).outcome == "accepted"


def test_three_hours_later_it_is_expired() -> None:
    result = appraised(document(GOOD), verify_at(GOOD) + timedelta(hours=3))
    assert result.code == AttestationCode.CERTIFICATE_EXPIRED


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"cabundle": "reversed"}, AttestationCode.CHAIN_INVALID),
        ({"cabundle": "dropped"}, AttestationCode.CHAIN_INVALID),
        ({"pcrs": {0: b"\x01" * 48}}, AttestationCode.SIGNATURE_INVALID),
    ],
)
def test_what_was_changed_after_signing(change: dict[str, object], code: AttestationCode) -> None:
    protected, unprotected, payload, signature = cbor2.loads(document(GOOD))
    members = cbor2.loads(payload)
    bundle = {"reversed": members["cabundle"][::-1], "dropped": members["cabundle"][:2] + members["cabundle"][3:]}
    change = {name: bundle.get(str(value), value) for name, value in change.items()}
    changed = cbor2.dumps([protected, unprotected, cbor2.dumps({**members, **change}), signature])
    assert appraised(changed, verify_at(GOOD)).code == code


def test_it_needs_nothing() -> None:
    assert needs(Evidence(EvidenceFormat.NITRO, document(GOOD)), Collateral()) == ()


@pytest.mark.parametrize("change", [{}, {"allowed_pcrs": {"0": ("00" * 48,)}, "skip_pcrs": True}])
def test_a_policy_that_names_values_and_skips_them_is_contradictory(change: dict[str, object]) -> None:
    if change:
        with pytest.raises(ValueError, match="skip_pcrs = false"):
            NitroPolicy(**change)  # type: ignore[arg-type] # as a mapping, to be parametrised
    else:
        assert NitroPolicy().skip_pcrs


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program")
def test_openssl_agrees(tmp_path: Path) -> None:
    protected, _, payload, signature = cbor2.loads(document(GOOD))
    members = cbor2.loads(payload)

    def pem(name: str, *ders: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders))
        return path

    root = pem("root.pem", *(anchor.public_bytes(Encoding.DER) for anchor in vendor_anchors().nitro))
    others, leaf = pem("others.pem", *members["cabundle"][1:]), pem("leaf.pem", members["certificate"])
    at = int(verify_at(GOOD).timestamp())
    chain: list[str | Path] = ["openssl", "verify", "-attime", str(at), "-CAfile", root, "-untrusted", others, leaf]
    assert subprocess.run(chain, check=False, capture_output=True).returncode == 0
    late = [*chain[:3], str(at + 3 * 3600), *chain[4:]]
    assert subprocess.run(late, check=False, capture_output=True).returncode != 0

    key, der, signed = tmp_path / "key.pem", tmp_path / "signature.der", tmp_path / "signed"
    public = x509.load_der_x509_certificate(members["certificate"]).public_key()
    key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    der.write_bytes(encode_dss_signature(int.from_bytes(signature[:48]), int.from_bytes(signature[48:])))
    signed.write_bytes(cbor2.dumps(["Signature1", protected, b"", payload]))
    line: list[str | Path] = ["openssl", "dgst", "-sha384", "-verify", key, "-signature", der, signed]
    assert subprocess.run(line, check=False, capture_output=True).returncode == 0
