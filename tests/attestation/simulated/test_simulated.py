"""Simulated reports: whole where somebody opted in, refused everywhere else, and never to be mistaken."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from support.evidence import sample, verify_at
from support.fake_amd import AT, Chip, fake_amd, make_report
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import TrustAnchors, vendor_anchors
from tresor.attestation.simulated.layout import (
    LEAF_NAME,
    MARKER,
    ROOT_NAME,
    leaf_extensions,
    marker_extension,
    measurement_of,
    unsigned_report,
)
from tresor.attestation.simulated.verifier import appraise_simulated, needs
from tresor.attestation.snp.abi import SigningKey, parse_report
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.verifier import appraise_snp
from tresor.attestation.x509 import build_chain, load_certificate, split_certificates
from tresor.errors import KeyFileError
from tresor.identity.simulated import SimulatedRoot

NOW = datetime(2026, 6, 1, 12, 30, 15, 123456, tzinfo=UTC)
ROOT = SimulatedRoot.create(NOW)
PROCESSOR = ROOT.issue(NOW)
IMAGE_DIGEST = b"\x11" * 32
REPORT_DATA = bytes(range(64))
REPORT = PROCESSOR.report(REPORT_DATA, IMAGE_DIGEST)
WORLD = TrustAnchors(amd={}, simulated=(ROOT.certificate,))
OTHER_ROOT = SimulatedRoot.create(NOW)


def appraise(report: bytes = REPORT, *certificates: bytes, policy: SnpPolicy | None = None, **more: Any) -> Any:
    arguments: dict[str, Any] = {"expected": Expected(), "anchors": WORLD, "now": NOW}
    result = appraise_simulated(
        Evidence(EvidenceFormat.SIMULATED, report),
        collateral=Collateral(certificates=certificates or PROCESSOR.certificates),
        policy=policy or SnpPolicy(),
        **(arguments | more),
    )
    check_it_cannot_be_mistaken(result)
    return result


def check_it_cannot_be_mistaken(result: AttestationResult) -> None:
    assert result.tee == "simulated"
    assert result.simulated
    claims = result.claims
    for claim in (claims.cpu_tee, claims.gpu_tee, claims.tcb, claims.workload):
        assert (claim.status, claim.reason) == ("unknown", "simulated")
    assert all("SIMULATED" in check.detail for check in result.checks[:2])


# --- Opted in -------------------------------------------------------------------------------------------------------


def test_accepted_where_somebody_opted_in() -> None:
    result = appraise(expected=Expected(report_data=REPORT_DATA, nonce=REPORT_DATA[32:]))
    assert result.outcome == "accepted"
    assert result.report_data == REPORT_DATA
    assert result.measurements["MEASUREMENT"] == measurement_of(IMAGE_DIGEST).hex()
    assert {"cpu_tee", "gpu_tee", "tcb", "workload"} <= set(result.not_checked)
    assert result.details["product"] == "Simulated"


def test_measurement_is_held_against_the_policy() -> None:
    allowed = SnpPolicy(allowed_measurements=(measurement_of(IMAGE_DIGEST).hex(),), skip_measurement=False)
    assert appraise(policy=allowed).outcome == "accepted"
    other = PROCESSOR.report(REPORT_DATA, b"\x12" * 32)
    assert appraise(other, policy=allowed).code == "measurement_not_allowed"
    assert appraise(policy=SnpPolicy(skip_measurement=False)).code == "measurement_not_allowed"


@pytest.mark.parametrize(
    ("expected", "code"),
    [
        (Expected(report_data=bytes(64)), "report_data_mismatch"),
        (Expected(nonce=bytes(32)), "nonce_mismatch"),
        (Expected(nonce=REPORT_DATA[:32]), "nonce_mismatch"),
    ],
)
def test_binding_is_checked_as_for_hardware(expected: Expected, code: str) -> None:
    result = appraise(expected=expected)
    assert (result.outcome, result.code) == ("rejected", code)


@pytest.mark.parametrize(
    ("later", "code"),
    [
        (timedelta(days=-1), "certificate_not_yet_valid"),
        (timedelta(days=1, seconds=1), "certificate_expired"),
        (timedelta(hours=23), None),
    ],
)
def test_certificates_have_their_time(later: timedelta, code: str | None) -> None:
    assert appraise(now=NOW + later).code == code


def test_its_certificate_is_found_among_others() -> None:
    others = (b"", OTHER_ROOT.issue(NOW).certificates[0], *fake_amd().issuers)
    assert appraise(REPORT, *others, *PROCESSOR.certificates).outcome == "accepted"
    result = appraise(REPORT, *fake_amd().issuers)
    assert (result.outcome, result.code) == ("undecided", "endorsement_missing")
    assert appraise(REPORT, *([b"x"] * 1025)).code == "evidence_too_large"


@given(st.binary(max_size=1200) | st.binary(min_size=1184, max_size=1184))
def test_any_bytes(data: bytes) -> None:
    assert appraise(data).outcome == "rejected"
    assert needs(Evidence(EvidenceFormat.SIMULATED, data), Collateral()) == ()


# --- Nobody opted in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", [vendor_anchors(), TrustAnchors(amd={})])
def test_refused_without_a_simulated_world(anchors: TrustAnchors) -> None:
    result = appraise(anchors=anchors)
    assert (result.outcome, result.code) == ("rejected", "simulated")


def test_another_machines_root_does_not_count() -> None:
    result = appraise(anchors=TrustAnchors(amd={}, simulated=(OTHER_ROOT.certificate,)))
    assert (result.outcome, result.code) == ("rejected", "root_not_pinned")


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_the_vendors_verifier_refuses_it_even_if_its_root_is_pinned(product: str) -> None:
    for anchors in (vendor_anchors(), TrustAnchors(amd={product: (ROOT.certificate,)}), WORLD):
        result = appraise_snp(
            Evidence(EvidenceFormat.SNP_REPORT, REPORT),
            collateral=Collateral(certificates=PROCESSOR.certificates),
            policy=SnpPolicy(),
            expected=Expected(),
            anchors=anchors,
            now=NOW,
        )
        assert (result.outcome, result.code) == ("rejected", "signer_not_allowed")
        assert not result.measurements


def test_a_simulated_root_that_is_pinned_as_amds_endorses_nothing() -> None:
    """Not even a report that hides what it is: no VCEK can be issued under it."""
    chip = fake_amd().vcek()
    result = appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, chip.sign(make_report())),
        collateral=Collateral(certificates=(chip.der, *fake_amd().issuers, *PROCESSOR.certificates)),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=TrustAnchors(amd={"Milan": (ROOT.certificate,)}),
        now=AT,
    )
    assert (result.outcome, result.code) == ("rejected", "root_not_pinned")


def test_no_other_chain_understands_its_certificates() -> None:
    leaf, root = map(load_certificate, PROCESSOR.certificates)
    for certificate in (leaf, root):
        with pytest.raises(Exception, match="critical extension"):
            build_chain(certificate, (), roots=(root,), now=NOW)


def test_a_vendors_report_is_not_simulated() -> None:
    for report in (
        (sample("snp/milan-v3-vcek") / "report.bin").read_bytes(),
        fake_amd().vcek().sign(make_report()),
    ):
        assert appraise(report).code == "evidence_kind_mismatch"


# --- It says what it is in each place -------------------------------------------------------------------------------


def test_the_report_says_so_in_every_field_that_could() -> None:
    report = parse_report(REPORT)
    assert report.cpuid == (0, 0, 0)
    assert report.chip_id == MARKER.ljust(64, b"\0")
    assert report.family_id == report.image_id == MARKER[:16]
    assert report.measurement.startswith(b"SIMULATE")
    assert report.signing_key == SigningKey.NONE
    assert report.platform_info == 0
    assert report.policy == 1 << 17  # without SMT no real guest starts on a host that has it
    assert report.version == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"cpuid": bytes((0x19, 1, 1))},
        {"chip_id": bytes(64)},
        {"family_id": bytes(16)},
        {"platform_info": 1},
        {"policy": 0x30000},
        {"vmpl": 1},
        {"key_information": 0},
        {"measurement": b"\xab" * 48},
        {"reported_tcb": {"bl": 1}},
        {"host_data": b"\x01" * 32},
        {"version": 5},
    ],
)
def test_a_report_that_hides_one_of_them_is_refused(fields: dict[str, Any]) -> None:
    honest = {
        **dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), b""),
        **dict.fromkeys(("current_version", "committed_version", "id_key_digest", "author_key_digest"), b""),
        "guest_svn": 0,
        "policy": 1 << 17,
        "platform_info": 0,
        "host_data": b"",
        "report_id": b"",
        "cpuid": bytes(3),
        "family_id": MARKER[:16],
        "image_id": MARKER[:16],
        "chip_id": MARKER,
        "key_information": 7 << 2,
        "measurement": measurement_of(IMAGE_DIGEST),
        "report_data": REPORT_DATA,
    }
    assert make_report("Milan", **honest)[:0x2A0] == unsigned_report(REPORT_DATA, measurement_of(IMAGE_DIGEST))
    chip = Chip(PROCESSOR.certificates[0], PROCESSOR._key, b"")
    assert appraise(chip.sign(make_report("Milan", **honest))).outcome == "accepted"
    assert appraise(chip.sign(make_report("Milan", **{**honest, **fields}))).code == "evidence_kind_mismatch"


def issue(subject: x509.Name, *, extensions: dict[x509.ExtensionType, bool], curve: ec.EllipticCurve) -> Chip:
    key = ec.generate_private_key(curve)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ROOT_NAME)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
    )
    for extension, critical in extensions.items():
        builder = builder.add_extension(extension, critical=critical)
    return Chip(builder.sign(ROOT._key, hashes.SHA384()).public_bytes(Encoding.DER), key, b"")


ALL_EXTENSIONS: dict[x509.ExtensionType, bool] = {marker_extension(): True, **dict.fromkeys(leaf_extensions(), False)}
UNMARKED: dict[x509.ExtensionType, bool] = dict.fromkeys(leaf_extensions(), False)


@pytest.mark.parametrize(
    ("extensions", "subject", "curve", "code"),
    [
        (ALL_EXTENSIONS, LEAF_NAME, ec.SECP384R1(), None),
        (ALL_EXTENSIONS, LEAF_NAME, ec.SECP256R1(), "algorithm_not_allowed"),
        ({**ALL_EXTENSIONS, marker_extension(): False}, LEAF_NAME, ec.SECP384R1(), "chain_invalid"),
        (UNMARKED, LEAF_NAME, ec.SECP384R1(), "chain_invalid"),
        ({marker_extension(): True}, LEAF_NAME, ec.SECP384R1(), "chain_invalid"),
        (ALL_EXTENSIONS, ROOT_NAME, ec.SECP384R1(), "endorsement_missing"),
    ],
)
def test_a_leaf_that_hides_what_it_is(
    extensions: dict[x509.ExtensionType, bool], subject: x509.Name, curve: ec.EllipticCurve, code: str | None
) -> None:
    chip = issue(subject, extensions=extensions, curve=curve)
    signed = REPORT if curve.name == "secp256r1" else chip.sign(REPORT)
    assert appraise(signed, chip.der, PROCESSOR.certificates[1]).code == code


def test_a_root_that_hides_what_it_is() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    root = SimulatedRoot(
        x509.CertificateBuilder()
        .subject_name(ROOT_NAME)
        .issuer_name(ROOT_NAME)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA384()),
        key,
    )
    processor = root.issue(NOW)
    world = TrustAnchors(amd={}, simulated=(root.certificate,))
    result = appraise(processor.report(REPORT_DATA, IMAGE_DIGEST), *processor.certificates, anchors=world)
    assert result.code == "chain_invalid"


def test_vendors_roots_make_no_simulated_world() -> None:
    world = TrustAnchors(amd={}, simulated=(fake_amd().ark,))
    assert appraise(anchors=world).code == "root_not_pinned"
    (vcek,) = split_certificates((sample("snp/milan-v3-vcek") / "vcek.pem").read_bytes())
    report = (sample("snp/milan-v3-vcek") / "report.bin").read_bytes()
    real = TrustAnchors(amd={}, simulated=vendor_anchors().amd["Milan"])
    result = appraise(report, vcek, anchors=real, now=verify_at("snp/milan-v3-vcek"))
    assert result.code == "evidence_kind_mismatch"


# --- The maker ------------------------------------------------------------------------------------------------------


def test_the_root_is_kept_and_read_back() -> None:
    again = SimulatedRoot.load(ROOT.private_bytes())
    assert again.certificate == ROOT.certificate
    processor = again.issue(NOW)
    assert appraise(processor.report(REPORT_DATA, IMAGE_DIGEST), *processor.certificates).outcome == "accepted"


def test_keys_do_not_show() -> None:
    assert "PrivateKey" not in repr(ROOT) + repr(PROCESSOR)


def test_another_root_each_time() -> None:
    assert OTHER_ROOT.certificate != ROOT.certificate
    assert OTHER_ROOT.certificate.public_key() != ROOT.certificate.public_key()


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no key",
        ROOT.private_bytes()[:-40],
        ROOT.private_bytes() + ROOT.certificate.public_bytes(Encoding.PEM),
        ROOT.certificate.public_bytes(Encoding.PEM),
        replace(ROOT, certificate=OTHER_ROOT.certificate).private_bytes(),
        ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
)
def test_a_file_that_is_none(pem: bytes) -> None:
    with pytest.raises(KeyFileError):
        SimulatedRoot.load(pem)


def test_an_ordinary_authority_is_no_simulated_root() -> None:
    leaf = load_certificate(PROCESSOR.certificates[0])
    with pytest.raises(KeyFileError, match="not of a simulated root"):
        SimulatedRoot.load(SimulatedRoot(leaf, PROCESSOR._key).private_bytes())


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_has_64_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="want 64"):
        PROCESSOR.report(bytes(size), IMAGE_DIGEST)


def test_measurement_follows_the_image() -> None:
    assert measurement_of(b"a") != measurement_of(b"b")
    assert len(measurement_of(IMAGE_DIGEST)) == 48
