"""Any bytes give a value or our error, in bounded time; what is read is read strictly."""

import contextlib
import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.evidence import sample, verify_at
from support.fake_amd import fake_amd, make_report
from tresor.attestation.errors import AttestationError, EvidenceMalformedError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.snp.abi import parse_certificate_table, parse_report, product_of_cpuid
from tresor.attestation.snp.certificates import parse_endorsement
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.tcb import LAYOUTS, Product, Tcb
from tresor.attestation.snp.verifier import appraise_snp, needs
from tresor.attestation.x509 import split_certificates

VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
ARK = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
GOOD_VCEK = (sample("snp/genoa-v5-vcek") / "vcek.der").read_bytes()
GOOD_REPORT = (sample("snp/genoa-v5-vcek") / "report.bin").read_bytes()


def edited(good: bytes) -> st.SearchStrategy[bytes]:
    """Return bytes that were good until somebody wrote into them, cut them or went on behind them."""
    edits = st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=6)

    def apply(writes: list[tuple[int, int]], size: int) -> bytes:
        data = bytearray(good)
        for offset, value in writes:
            data[offset] = value
        return bytes(data[:size]) + bytes(max(0, size - len(good)))

    return st.builds(apply, edits, st.just(len(good)) | st.integers(0, len(good) + 4))


@given(st.binary(max_size=1200) | st.binary(min_size=1184, max_size=1184) | edited(GOOD_REPORT))
def test_any_report(data: bytes) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        report = parse_report(data)
        assert report.signed == data[:0x2A0]
        assert report.r.to_bytes(72, "little") + report.s.to_bytes(72, "little") == data[0x2A0:0x330]
    result = appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, data),
        collateral=Collateral(certificates=(GOOD_VCEK,)),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at("snp/genoa-v5-vcek"),
    )
    assert (result.outcome == "accepted") == (data == GOOD_REPORT)
    assert isinstance(needs(Evidence(EvidenceFormat.SNP_REPORT, data), Collateral()), tuple)


@given(st.binary(max_size=2048) | edited(GOOD_VCEK))
def test_any_certificate(data: bytes) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        parse_endorsement(data)
    result = appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, GOOD_REPORT),
        collateral=Collateral(certificates=(data,)),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at("snp/genoa-v5-vcek"),
    )
    assert (result.outcome == "accepted") == (data == GOOD_VCEK)


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=64), max_size=4))
def test_any_revocation_list(lists: list[bytes]) -> None:
    result = appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, GOOD_REPORT),
        collateral=Collateral(certificates=(GOOD_VCEK,), crls=tuple(lists)),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at("snp/genoa-v5-vcek"),
    )
    assert (result.outcome == "accepted") == (not lists)


@given(st.binary(max_size=512))
def test_any_certificate_table(data: bytes) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        assert sum(map(len, parse_certificate_table(data))) <= 24 * len(data)


@pytest.mark.parametrize("size", [0, 1183, 1185, 1 << 20])
def test_a_report_of_another_length_says_so(size: int) -> None:
    with pytest.raises(EvidenceMalformedError, match=f"SNP report is {size} bytes, want 1184"):
        parse_report(bytes(size))


# --- Products and TCB versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, "Milan"),
        (0x19, 0x0F, "Milan"),
        (0x19, 0x10, "Genoa"),
        (0x19, 0x1F, "Genoa"),
        (0x19, 0xA0, "Genoa"),
        (0x19, 0xAF, "Genoa"),
        (0x1A, 0x00, "Turin"),
        (0x1A, 0x1F, "Turin"),
        (0x19, 0x20, None),
        (0x19, 0x9F, None),
        (0x19, 0xB0, None),
        (0x1A, 0x20, None),
        (0x17, 0x31, None),
        (0x00, 0x00, None),
    ],
)
def test_product_of_cpuid(family: int, model: int, product: str | None) -> None:
    assert product_of_cpuid(family, model) == product


@given(st.sampled_from(sorted(LAYOUTS)), st.binary(min_size=8, max_size=8))
def test_tcb_reads_back_as_it_came(product: Product, raw: bytes) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        assert Tcb.parse(raw, product).encode(product) == raw


@given(st.sampled_from(sorted(LAYOUTS)), st.data())
def test_a_tcb_is_below_a_floor_in_any_part_that_is(product: Product, data: st.DataObject) -> None:
    number = st.integers(0, 255)
    parts = {part: data.draw(number) for part in LAYOUTS[product]}
    floor = {part: data.draw(number) for part in LAYOUTS[product]}
    assert Tcb(parts).below(floor) == [part for part in floor if parts[part] < floor[part]]


def test_layouts_differ_where_the_product_does() -> None:
    raw = bytes((1, 2, 3, 4, 0, 0, 0, 8))
    assert Tcb.parse(raw, "Turin").parts == {"fmc": 1, "bl": 2, "tee": 3, "snp": 4, "ucode": 8}
    with pytest.raises(EvidenceMalformedError):
        Tcb.parse(raw, "Milan")
    with pytest.raises(EvidenceMalformedError):
        Tcb.parse(bytes((1, 2, 0, 0, 0, 0, 7, 8)), "Turin")


# --- Certificates ---------------------------------------------------------------------------------------------------


def test_certificates_of_others_are_no_endorsements() -> None:
    for der in fake_amd().issuers:
        assert parse_endorsement(der) is None


def test_certificate_too_long() -> None:
    with pytest.raises(EvidenceMalformedError, match="want at most"):
        parse_endorsement(bytes(1 << 20))


def test_a_huge_bag_is_refused() -> None:
    report, bag = fake_amd().vcek().sign(make_report()), (b"x",) * 1025
    result = appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, report),
        collateral=Collateral(certificates=bag),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=fake_amd().anchors,
        now=verify_at("snp/genoa-v5-vcek"),
    )
    assert result.code == "evidence_too_large"


def test_reading_is_bounded_where_everybody_looks_like_the_one() -> None:
    amd = fake_amd()
    chip = amd.vcek()
    alike = tuple(amd.vcek().der for _ in range(20))  # same chip and TCB, other keys
    result = appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, chip.sign(make_report())),
        collateral=Collateral(certificates=(*alike, chip.der, *amd.issuers)),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=amd.anchors,
        now=verify_at("snp/genoa-v5-vcek"),
    )
    assert result.code == "signature_invalid"


# --- Certificate table ----------------------------------------------------------------------------------------------


def table(*entries: tuple[uuid.UUID, int, int], tail: bytes = b"") -> bytes:
    rows = b"".join(guid.bytes + struct.pack("<II", offset, length) for guid, offset, length in entries)
    return rows + bytes(24) + tail


def test_certificate_table_gives_its_certificates() -> None:
    data = table((VCEK, 96, 4), (uuid.UUID(int=7), 5, 9999), (ARK, 100, 3), tail=b"vcekark" + bytes(100))
    assert parse_certificate_table(data) == (b"vcek", b"ark")
    assert parse_certificate_table(b"") == ()
    assert parse_certificate_table(table()) == ()


@pytest.mark.parametrize(
    "data",
    [
        table((VCEK, 48, 5), tail=b"vcek"),
        table((VCEK, 47, 4), tail=b"vcek"),
        table((VCEK, 0, 0xFFFFFFFF), tail=b"vcek"),
        table((VCEK, 0xFFFFFFFF, 1), tail=b"vcek"),
        table((VCEK, 48, 4), tail=b"vcek")[:24],
        VCEK.bytes,
        b"\x01",
        bytes((1 << 20) + 1),
    ],
)
def test_certificate_table_that_points_outside(data: bytes) -> None:
    with pytest.raises(AttestationError):
        parse_certificate_table(data)


def test_samples_are_the_certificates_they_are_said_to_be() -> None:
    (der,) = split_certificates((sample("snp/milan-v3-vcek") / "vcek.pem").read_bytes())
    endorsement = parse_endorsement(der)
    assert endorsement is not None
    assert str(endorsement) == "VCEK of Milan-B0, chip 4ffb5cb4fd594f3f"
