"""Every NVIDIA vector through `appraise_nvidia`, and all of them through their generator."""

import filecmp
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.nvidia.verifier import appraise_nvidia
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.x509 import fingerprint, load_certificate, split_certificates

TESTS = Path(__file__).parents[2]
VECTORS = TESTS / "vectors" / "nvidia"


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    outcome: str
    code: str | None
    gpu_tee: str


class Files(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    certificates: tuple[str, ...] = ()
    rims: tuple[str, ...] = ()
    ocsp_responses: tuple[str, ...] = ()
    jwks: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    spec: str
    expect: Expectation
    verify_at: datetime
    format: EvidenceFormat
    evidence: str
    collateral: Files
    policy: NvidiaPolicy
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
DEVICE_ROOT, RIM_ROOT, INTERMEDIATE = (
    load_certificate((VECTORS / f"{name}.der").read_bytes())
    for name in ("device_root", "rim_root", "nras_intermediate")
)
ANCHORS = TrustAnchors(
    amd={},
    nvidia_device=(DEVICE_ROOT,),
    nvidia_rim=(RIM_ROOT,),
    nras_intermediates=frozenset({fingerprint(INTERMEDIATE)}),
)


def appraised(name: str) -> AttestationResult:
    manifest = MANIFESTS[name]

    def read(names: tuple[str, ...]) -> tuple[bytes, ...]:
        return tuple((VECTORS / name / file).read_bytes() for file in names)

    files = manifest.collateral
    return appraise_nvidia(
        Evidence(manifest.format, (VECTORS / name / manifest.evidence).read_bytes()),
        collateral=Collateral(
            certificates=tuple(der for text in read(files.certificates) for der in split_certificates(text)),
            rims=read(files.rims),
            ocsp_responses=read(files.ocsp_responses),
            jwks=read(files.jwks),
        ),
        policy=manifest.policy,
        expected=Expected(nonce=None if manifest.nonce is None else bytes.fromhex(manifest.nonce)),
        anchors=ANCHORS,
        now=manifest.verify_at,
    )


@pytest.mark.parametrize("name", MANIFESTS)
def test_vector(name: str) -> None:
    expect = MANIFESTS[name].expect
    result = appraised(name)
    assert (result.outcome, result.code, result.claims.gpu_tee.status) == (expect.outcome, expect.code, expect.gpu_tee)
    assert result.tee == "nvidia-gpu"
    assert result.claims.cpu_tee.status == "unknown"
    # One thing is wrong in each vector, and nothing else is found to be.
    assert {check.code for check in result.checks} - {None} == {expect.code} - {None}


def test_everything_leaves_nothing_unchecked() -> None:
    result = appraised("401-everything")
    assert result.not_checked == {}
    assert result.details["gpu[0].firmware_measurements"] == "proven"
    assert result.details["gpu[0].devtools"] == "off"


@pytest.mark.parametrize("name", ["305-one-of-two-forged", "306-one-of-two-self-made", "689-second-of-two-fails"])
def test_no_device_hides_behind_another(name: str) -> None:
    failed = [check.check for check in appraised(name).checks if check.status == "failed"]
    assert failed
    assert all(check.startswith("gpu[1].") for check in failed)


def test_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    again = tmp_path / "nvidia"
    subprocess.run(
        [sys.executable, TESTS / "vectors" / "generate_nvidia.py", again],
        check=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    names = sorted(str(path.relative_to(VECTORS)) for path in VECTORS.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(VECTORS, again, names, shallow=False) == (names, [], [])
