import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from tresor.attestation.simulated.layout import measurement_of
from tresor.attestation.snp.abi import parse_report
from tresor.identity.source import EvidenceSourceError, SourceCode
from tresor.identity.sources.simulated import SimulatedSource, open_root

REPORT_DATA = bytes(range(64))
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def test_evidence(tmp_path: Path) -> None:
    root = open_root(tmp_path / "root.pem")
    evidence = SimulatedSource(root, image_digest=b"image", clock=lambda: NOW).collect(REPORT_DATA)
    report = parse_report(evidence.parts["snp_report"])
    assert (evidence.tee, set(evidence.parts)) == ("simulated", {"snp_report"})
    assert (report.report_data, report.measurement) == (REPORT_DATA, measurement_of(b"image"))
    leaf, issuer = map(x509.load_der_x509_certificate, evidence.certificates)
    leaf.verify_directly_issued_by(issuer)
    assert issuer == root.certificate
    assert leaf.not_valid_before_utc <= NOW <= leaf.not_valid_after_utc


def test_the_root_is_made_once_and_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    first = open_root(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_root(path).certificate == first.certificate
    assert [entry.name for entry in tmp_path.iterdir()] == ["root.pem"]


def test_processes_that_come_together_get_one_root(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        roots = list(pool.map(lambda _: open_root(tmp_path / "root.pem").certificate, range(8)))
    assert len(set(roots)) == 1


def test_a_root_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    open_root(path)
    path.chmod(0o640)
    with pytest.raises(EvidenceSourceError, match="mode is 640, want 600") as caught:
        open_root(path)
    assert caught.value.code == SourceCode.UNAVAILABLE


def test_a_file_that_is_no_root(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(os.urandom(100))
    path.chmod(0o600)
    with pytest.raises(EvidenceSourceError, match="simulated root"):
        open_root(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EvidenceSourceError, match="its folder has to be writable"):
        open_root(tmp_path / "folder" / "root.pem")
