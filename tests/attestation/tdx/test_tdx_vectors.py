"""Every Intel TDX vector through `appraise_tdx` and through dcap-qvl, and all of them through their generator."""

import filecmp
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import dcap_qvl  # type: ignore[import-untyped] # the package has stubs and does not say so
import msgspec
import pytest
from cryptography import x509

from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import PolicyException
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.attestation.tdx.verifier import appraise_tdx

TESTS = Path(__file__).parents[2]
VECTORS = TESTS / "vectors" / "tdx"


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    outcome: str
    code: str | None
    dcap_qvl: bool | None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    spec: str
    expect: Expectation
    verify_at: datetime
    quote: str
    collateral: tuple[str, ...]
    event_logs: tuple[str, ...]
    policy: TdxPolicy
    exceptions: tuple[PolicyException, ...]
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
ROOT = (VECTORS / "root.der").read_bytes()
ANCHORS = TrustAnchors(amd={}, intel=(x509.load_der_x509_certificate(ROOT),))


def from_hex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


@pytest.mark.parametrize("name", MANIFESTS)
def test_vector(name: str) -> None:
    manifest, folder = MANIFESTS[name], VECTORS / name
    result = appraise_tdx(
        Evidence(
            EvidenceFormat.TDX_QUOTE,
            (folder / manifest.quote).read_bytes(),
            tuple((folder / log).read_bytes() for log in manifest.event_logs),
        ),
        collateral=Collateral(tdx=tuple((folder / document).read_bytes() for document in manifest.collateral)),
        policy=manifest.policy,
        exceptions=manifest.exceptions,
        expected=Expected(report_data=from_hex(manifest.report_data), nonce=from_hex(manifest.nonce)),
        anchors=ANCHORS,
        now=manifest.verify_at,
    )
    assert (result.outcome, result.code) == (manifest.expect.outcome, manifest.expect.code)
    assert result.tee == "tdx"
    # Nothing is said of what is not genuine, and nothing weak is accepted without saying so.
    genuine = any(check.check == "collateral" and check.status == "ok" for check in result.checks)
    assert genuine == bool(result.measurements) == (result.report_data is not None)
    assert (result.claims.cpu_tee.status == "proven") == (genuine and result.code != "debug_enabled")
    if result.outcome == "accepted" and result.details["tcb_status"] != "UpToDate":
        assert result.claims.tcb.status == "unknown"
        assert result.not_checked["tcb"]
        assert set(result.exceptions) == set(manifest.exceptions)


@pytest.mark.parametrize("name", [name for name, found in MANIFESTS.items() if found.expect.dcap_qvl is not None])
def test_dcap_qvl(name: str) -> None:
    manifest, folder = MANIFESTS[name], VECTORS / name
    now_s = int(manifest.verify_at.timestamp())
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(
            (folder / (manifest.collateral or ("../collateral.json",))[0]).read_text()
        )
        dcap_qvl.QuoteVerifier(ROOT).verify_with_policy(
            (folder / manifest.quote).read_bytes(), collateral, now_s, dcap_qvl.QuotePolicy.claims_only(now_s)
        )
    except ValueError:
        verified = False
    else:
        verified = True
    assert verified == manifest.expect.dcap_qvl


def test_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    again = tmp_path / "tdx"
    subprocess.run(
        [sys.executable, TESTS / "vectors" / "generate_tdx.py", again],
        check=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    names = sorted(str(path.relative_to(VECTORS)) for path in VECTORS.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(VECTORS, again, names, shallow=False) == (names, [], [])
