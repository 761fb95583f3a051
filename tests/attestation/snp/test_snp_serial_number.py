"""AMD's serial number 0: no verdict depends on how `cryptography` takes it, nor on filters of warnings."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from support.evidence import sample, verify_at
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.verifier import appraise_snp

NAME = "snp/genoa-v5-vcek"


def folder() -> Path:
    return sample(NAME)


def outcome() -> str:
    return appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, (folder() / "report.bin").read_bytes()),
        collateral=Collateral(certificates=((folder() / "vcek.der").read_bytes(),)),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(NAME),
    ).outcome


def test_cryptography_still_warns_of_it() -> None:
    """When this fails, `cryptography` refuses or accepts them: the bound on its version can be looked at again."""
    with pytest.warns(CryptographyDeprecationWarning, match="serial number"):
        x509.load_der_x509_certificate((folder() / "vcek.der").read_bytes())


def test_a_cryptography_that_refuses_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vendor_anchors()
    load = x509.load_der_x509_certificate

    def refuse(der: bytes) -> x509.Certificate:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return load(der)
            except CryptographyDeprecationWarning as error:
                raise ValueError("invalid serial number") from error

    monkeypatch.setattr(x509, "load_der_x509_certificate", refuse)
    assert outcome() == "accepted"


@pytest.mark.parametrize("action", ["error", "always"])
def test_no_warning_is_given(action: str) -> None:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("error") if action == "error" else warnings.simplefilter("always")
        assert outcome() == "accepted"
    assert given == []


def test_many_threads_leave_the_filters_alone() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: outcome(), range(64))) == {"accepted"}
    assert warnings.filters == before
