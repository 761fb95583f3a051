"""Whatever is signed, changed in one bit, is refused with the code of a signature, or cannot be read."""

import json
from datetime import UTC, datetime
from functools import cache

import msgspec
import pytest

from support.evidence import sample, verify_at
from support.flips import flips, ideal_certificate, one_bit, remembered, slices
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, EvidenceMalformedError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.nvidia import report_result, verify
from tresor.attestation.nvidia.nras import DetachedEat, parse_eat, parse_nras_jwks, verify_overall_token
from tresor.attestation.nvidia.ocsp import parse_ocsp, verify_ocsp
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.nvidia.rim import parse_rim, verify_rim
from tresor.attestation.nvidia.spdm import parse_report
from tresor.attestation.nvidia.verifier import appraise_nvidia
from tresor.attestation.nvidia.verify import verify_fwid, verify_signature
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.x509 import load_certificate, load_certificates, split_certificates

FULL = "nvidia/h100-full-local"
TOKEN = "bundles/tinfoil-tdx-gpu-20260629"
REPORT_BYTES = 4117
SIGNATURE = range(REPORT_BYTES - 96, REPORT_BYTES)
FWID = range(SIGNATURE.start - 5 - 48, SIGNATURE.start - 5)  # before the protected PCIe status with its header
NONCE, FIRST_VALUE = range(4, 36), range(52, 100)
LAYOUT = {AttestationCode.EVIDENCE_MALFORMED, AttestationCode.EVIDENCE_VERSION_UNSUPPORTED}
INVALID = {AttestationCode.SIGNATURE_INVALID}


@cache
def report() -> bytes:
    return (sample(FULL) / "report.bin").read_bytes()


@cache
def certificates() -> tuple[bytes, ...]:
    return tuple(split_certificates((sample(FULL) / "certchain.pem").read_bytes()))


def codes_at(place: int) -> set[AttestationCode]:
    """Return why a flip may be refused there; what has no layout of its own is refused by the signature alone."""
    free = place in NONCE or place in FIRST_VALUE or place in FWID or place in SIGNATURE
    return INVALID if free else {*LAYOUT, *INVALID}


def code_of(data: bytes) -> object:
    return appraise_nvidia(
        Evidence(EvidenceFormat.NVIDIA_GPU_REPORT, data),
        collateral=Collateral(certificates=certificates()),
        policy=NvidiaPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(FULL),
    ).code


def test_the_report_is_good() -> None:
    good, leaf = parse_report(report()), load_certificate(certificates()[0])
    verify_signature(good, leaf)
    assert verify_fwid(good, leaf)
    assert len(report()) == REPORT_BYTES
    assert report()[FWID.start : FWID.stop] == good.fwid
    assert code_of(report()) not in {*LAYOUT, *INVALID}  # there are no manifests and answers


@pytest.mark.parametrize("places", slices(REPORT_BYTES, size=1024), ids=str)
def test_the_signature_holds_every_bit_of_a_report(places: range) -> None:
    leaf = ideal_certificate(load_certificate(certificates()[0]))
    verify_signature(parse_report(report()), leaf)
    for place, bit, flipped in flips(report(), places):
        with pytest.raises(AttestationError) as caught:
            verify_signature(parse_report(flipped), leaf)
        assert caught.value.code in codes_at(place), (place, bit, caught.value.code)


@pytest.mark.parametrize("places", slices(REPORT_BYTES), ids=str)
def test_no_byte_of_a_whole_report_is_free(places: range, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = remembered(report_result.verify_device_chain, lambda leaf, *_, **__: leaf)
    monkeypatch.setattr(report_result, "verify_device_chain", chain)
    # Pure as well, and asked twice: whose leaf it is, and whether it signed.
    monkeypatch.setattr(verify, "verify_ecdsa_p384", remembered(verify.verify_ecdsa_p384, lambda *about: about))
    for place, bit, flipped in flips(report(), places, bits=one_bit):
        assert (code := code_of(flipped)) in codes_at(place), (place, bit, code)


@pytest.mark.parametrize("file", ["driver_rim.xml", "vbios_rim.xml"])
def test_bytes_of_a_manifest(file: str) -> None:
    """Every fifth byte; KeyInfo is not signed, and is compared with the chain it must be.

    White space inside tags is not part of the canonical document: such a flip may leave it as it was.
    """
    data = (sample(FULL) / file).read_bytes()
    good = parse_rim(data)
    key_info = data.index(b"<ds:KeyInfo>"), data.index(b"</ds:KeyInfo>")
    unchanged = 0
    for position in range(0, len(data), 5):
        if key_info[0] <= position < key_info[1]:
            continue
        changed = flipped(data, position, position % 7)
        try:
            found = verify_rim(changed, anchors=vendor_anchors(), now=verify_at(FULL)).rim
        except AttestationError as error:
            assert error.code in {  # noqa: PT017 - most flips raise, the few others are looked at below
                AttestationCode.COLLATERAL_MALFORMED,
                AttestationCode.ALGORITHM_NOT_ALLOWED,
                AttestationCode.COLLATERAL_SIGNATURE_INVALID,
            }
        else:
            assert (found.content, found.signed_info) == (good.content, good.signed_info)
            unchanged += 1
    assert unchanged < len(data) / 5 / 20


def test_every_byte_of_an_answer() -> None:
    data = (sample(FULL) / "ocsp_gpu_cert_l4.der").read_bytes()
    chain = load_certificates((sample(FULL) / "certchain.pem").read_bytes())
    good = verify_ocsp(parse_ocsp(data), chain[1], issuer=chain[2])
    assert good is not None
    refused = 0
    for position in range(len(data)):
        try:
            found = verify_ocsp(parse_ocsp(flipped(data, position, position % 8)), chain[1], issuer=chain[2])
        except AttestationError as error:
            assert error.code in {AttestationCode.COLLATERAL_MALFORMED, AttestationCode.OCSP_INVALID}  # noqa: PT017
            refused += 1
        else:
            assert found in (None, good)  # about another certificate, or the same answer in another wrapping
    assert refused > len(data) * 0.8


def test_every_character_of_a_token() -> None:
    folder = sample(TOKEN)
    eat = parse_eat((folder / "nras_eat.json").read_bytes())
    keys = parse_nras_jwks([(folder / "nras_jwks.json").read_bytes()])
    now = verify_at(TOKEN)
    verify_overall_token(eat.overall, keys, anchors=vendor_anchors(), now=now)
    for position, character in enumerate(eat.overall):
        changed = eat.overall[:position] + ("A" if character != "A" else "B") + eat.overall[position + 1 :]
        with pytest.raises(AttestationError) as caught:
            verify_overall_token(changed, keys, anchors=vendor_anchors(), now=now)
        assert caught.value.code in {
            AttestationCode.SIGNATURE_INVALID,
            AttestationCode.EVIDENCE_MALFORMED,
            AttestationCode.ALGORITHM_NOT_ALLOWED,
            AttestationCode.TOKEN_INVALID,
        }


def test_a_token_with_its_members_in_another_order_is_the_same() -> None:
    folder = sample("bundles/dstack-tdx-8gpu-tls-20260629")
    kind, devices = msgspec.json.decode((folder / "nras_eat.json").read_bytes())
    turned: DetachedEat = parse_eat(json.dumps([kind, dict(reversed(devices.items()))]).encode())
    assert list(turned.devices) == [f"GPU-{number}" for number in range(8)]


def test_a_manifest_in_front_of_another_is_none() -> None:
    data = (sample(FULL) / "driver_rim.xml").read_bytes()
    with pytest.raises(EvidenceMalformedError):
        verify_rim(data + data, anchors=vendor_anchors(), now=datetime(2025, 10, 24, tzinfo=UTC))
