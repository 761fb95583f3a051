"""What a report needs is named by AMD's addresses, and only as long as it is not at hand."""

import pytest

from support.evidence import sample
from support.fake_amd import fake_amd, make_report
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat, Need
from tresor.attestation.snp.verifier import needs
from tresor.attestation.x509 import split_certificates


def needs_of(report: bytes, *certificates: bytes, crls: tuple[bytes, ...] = ()) -> tuple[Need, ...]:
    collateral = Collateral(certificates=certificates, crls=crls)
    return needs(Evidence(EvidenceFormat.SNP_REPORT, report), collateral)


def report_of(name: str) -> bytes:
    return (sample(f"snp/{name}") / "report.bin").read_bytes()


def test_turin_has_a_short_identity_and_one_part_more() -> None:
    vcek, crl = needs_of(report_of("turin-v5-vcek"))
    assert vcek == Need(
        CollateralKind.CERTIFICATE,
        "https://kdsintf.amd.com/vcek/v1/Turin/59790fb1c39f35c1?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81",
    )
    assert crl == Need(CollateralKind.CRL, "https://kdsintf.amd.com/vcek/v1/Turin/crl", required=False)


def test_genoa() -> None:
    vcek, _ = needs_of(report_of("genoa-v5-vcek"))
    chip_id = report_of("genoa-v5-vcek")[0x1A0:0x1E0].hex()
    versions = "blSPL=10&teeSPL=00&snpSPL=27&ucodeSPL=27"
    assert vcek.url == f"https://kdsintf.amd.com/vcek/v1/Genoa/{chip_id}?{versions}"


def test_version_2_may_be_of_two_lines() -> None:
    urls = [need.url for need in needs_of(report_of("milan-v2-vcek"))]
    assert [url.split("/")[5] for url in urls] == ["Milan", "Genoa", "Milan", "Genoa"]


def test_what_is_at_hand_is_not_needed() -> None:
    (own,) = split_certificates((sample("snp/milan-v3-vcek") / "vcek.pem").read_bytes())
    other = (sample("snp/milan-v2-vcek") / "vcek.der").read_bytes()
    report = report_of("milan-v3-vcek")
    assert [need.kind for need in needs_of(report, own)] == [CollateralKind.CRL]
    assert [need.kind for need in needs_of(report, other)] == [CollateralKind.CERTIFICATE, CollateralKind.CRL]
    assert needs_of(report, own, crls=(b"whatever",)) == ()


def test_certificate_of_another_tcb_is_not_the_one() -> None:
    amd = fake_amd()
    old = amd.vcek(tcb={"bl": 1})
    assert needs_of(make_report(), old.der)[0].required


def test_vleks_and_masked_chips_are_not_served() -> None:
    (crl,) = needs_of(report_of("milan-v3-vlek-aws"))
    assert crl.url == "https://kdsintf.amd.com/vlek/v1/Milan/crl"
    assert [need.kind for need in needs_of(make_report(chip_id=bytes(64)))] == [CollateralKind.CRL]


@pytest.mark.parametrize(
    "report", [b"", bytes(1184), make_report(cpuid=bytes(3)), make_report(reported_tcb=b"\xff" * 8)]
)
def test_nothing_is_needed_of_what_cannot_be_verified(report: bytes) -> None:
    assert needs_of(report) == ()
