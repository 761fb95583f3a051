"""Every AWS Nitro vector through `appraise_nitro`, and all of them through their generator."""

import filecmp
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.nitro.policy import NitroPolicy
from tresor.attestation.nitro.verifier import appraise_nitro
from tresor.attestation.roots import TrustAnchors

TESTS = Path(__file__).parents[2]
VECTORS = TESTS / "vectors" / "nitro"


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    outcome: str
    code: str | None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    spec: str
    expect: Expectation
    verify_at: datetime
    evidence: str
    policy: NitroPolicy
    report_data: str | None
    nonce: str | None


def load_vectors() -> dict[str, Manifest]:
    found = {
        path.parent.name: msgspec.json.decode(path.read_bytes(), type=Manifest)
        for path in sorted(VECTORS.glob("*/manifest.json"))
    }
    if not found:
        raise FileNotFoundError(f"no vector below {VECTORS}")
    return found


MANIFESTS = load_vectors()
ANCHORS = TrustAnchors(amd={}, nitro=(x509.load_der_x509_certificate((VECTORS / "root.der").read_bytes()),))


def from_hex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


@pytest.mark.parametrize("name", MANIFESTS)
def test_vector(name: str) -> None:
    manifest = MANIFESTS[name]
    result = appraise_nitro(
        Evidence(EvidenceFormat.NITRO, (VECTORS / name / manifest.evidence).read_bytes()),
        collateral=Collateral(),
        policy=manifest.policy,
        expected=Expected(report_data=from_hex(manifest.report_data), nonce=from_hex(manifest.nonce)),
        anchors=ANCHORS,
        now=manifest.verify_at,
    )
    assert (result.outcome, result.code) == (manifest.expect.outcome, manifest.expect.code)
    assert result.tee == "aws-nitro"
    # Whoever trusts the claim alone is not misled by a refusal.
    genuine_only = {"time_implausible", "register_not_allowed", "user_data_mismatch", "nonce_mismatch", None}
    assert (result.claims.cpu_tee.status == "proven") == (result.code in genuine_only)


def test_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    again = tmp_path / "nitro"
    subprocess.run(
        [sys.executable, TESTS / "vectors" / "generate_nitro.py", again],
        check=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    names = sorted(str(path.relative_to(VECTORS)) for path in VECTORS.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(VECTORS, again, names, shallow=False) == (names, [], [])
