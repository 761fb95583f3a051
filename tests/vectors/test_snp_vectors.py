"""Every SEV-SNP vector, as its generator writes it, through `appraise_snp`."""

from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from generate_snp import cases, main

from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import TrustAnchors, vendor_anchors
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.verifier import appraise_snp
from tresor.attestation.x509 import load_certificate

NAMES = [case.name for case in cases()]
GENUINE = {"0", "5", "6"}
GENUINE_BY_REVOCATION = {"405", "406", "407", "408", "409"}


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    outcome: Literal["accepted", "rejected", "undecided"]
    not_ok: tuple[tuple[str, str], ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    spec: str
    expect: Expectation
    verify_at: datetime
    report: str
    certificates: tuple[str, ...]
    crls: tuple[str, ...]
    roots: dict[str, str] | None
    policy: SnpPolicy
    report_data: str | None
    nonce: str | None


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "snp"
    main(str(folder))
    return folder


def from_hex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def test_there_are_vectors() -> None:
    assert len(NAMES) > 150


@pytest.mark.parametrize("name", NAMES)
def test_vector(name: str, vectors: Path) -> None:
    folder = vectors / name
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)

    def read(names: tuple[str, ...]) -> tuple[bytes, ...]:
        return tuple((folder / file).read_bytes() for file in names)

    anchors = vendor_anchors()
    if manifest.roots is not None:
        roots = {product: load_certificate((folder / file).read_bytes()) for product, file in manifest.roots.items()}
        anchors = TrustAnchors(amd={product: (certificate,) for product, certificate in roots.items()})
    result = appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, (folder / manifest.report).read_bytes()),
        collateral=Collateral(certificates=read(manifest.certificates), crls=read(manifest.crls)),
        policy=manifest.policy,
        expected=Expected(report_data=from_hex(manifest.report_data), nonce=from_hex(manifest.nonce)),
        anchors=anchors,
        now=manifest.verify_at,
    )
    not_ok = tuple((check.check, check.code) for check in result.checks if check.status != "ok")
    assert (result.outcome, not_ok) == (manifest.expect.outcome, manifest.expect.not_ok)
    genuine = name[0] in GENUINE or name[:3] in GENUINE_BY_REVOCATION
    assert bool(result.measurements) == genuine
    assert result.claims.cpu_tee.status == "proven" or manifest.expect.outcome != "accepted"
    assert not result.simulated
