"""Whatever is signed, changed in one bit, is refused with the code of a signature, or cannot be read.

All bits of a report stand before the function that verifies its signature, with an ideal key; one bit of every byte
before the whole appraisal, with the real one.  No bit of a report is free, none of what a token encodes, and of a
manifest only those that each test names.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

import msgspec
import pytest

from support import fake_nvidia as fake
from support.evidence import sample, verify_at
from support.flips import flips, ideal_certificate, one_bit, remembered, slices
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, EvidenceMalformedError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.nvidia import nras, verify
from tresor.attestation.nvidia.collateral import certificates_of
from tresor.attestation.nvidia.nras import (
    DetachedEat,
    NrasKey,
    parse_eat,
    parse_nras_jwks,
    verify_device_token,
    verify_overall_token,
)
from tresor.attestation.nvidia.ocsp import parse_ocsp, verify_ocsp
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.nvidia.rim import Rim, parse_rim, verify_rim
from tresor.attestation.nvidia.spdm import parse_report
from tresor.attestation.nvidia.verifier import appraise_nvidia
from tresor.attestation.nvidia.verify import verify_fwid, verify_signature
from tresor.attestation.roots import TrustAnchors, vendor_anchors
from tresor.attestation.x509 import load_certificate, load_certificates, split_certificates
from tresor.encodings import base64url_decode, base64url_encode

FULL = "nvidia/h100-full-local"
TOKEN = "bundles/tinfoil-tdx-gpu-20260629"
REPORT_BYTES = 4117
SIGNATURE = range(REPORT_BYTES - 96, REPORT_BYTES)
FWID = range(SIGNATURE.start - 5 - 48, SIGNATURE.start - 5)  # before the protected PCIe status with its header
NONCE, FIRST_VALUE = range(4, 36), range(52, 100)
LAYOUT = {AttestationCode.EVIDENCE_MALFORMED, AttestationCode.EVIDENCE_VERSION_UNSUPPORTED}
INVALID = {AttestationCode.SIGNATURE_INVALID}

SEGMENTS = {
    "header": {
        AttestationCode.EVIDENCE_MALFORMED,
        AttestationCode.ALGORITHM_NOT_ALLOWED,
        AttestationCode.TOKEN_INVALID,
        AttestationCode.SIGNATURE_INVALID,
    },
    "payload": INVALID,
    "signature": INVALID,
}


@cache
def eat() -> DetachedEat:
    return parse_eat((sample(TOKEN) / "nras_eat.json").read_bytes())


@cache
def nras_keys() -> Mapping[str, NrasKey]:
    return parse_nras_jwks([(sample(TOKEN) / "nras_jwks.json").read_bytes()])


def refusal_of_overall(token: str) -> AttestationCode | None:
    try:
        verify_overall_token(token, nras_keys(), anchors=vendor_anchors(), now=verify_at(TOKEN))
    except AttestationError as error:
        return error.code
    return None


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
    # Pure functions: the certificates are the same in all of these appraisals, and each signature is looked at twice,
    # for whose it is and for whether it holds.
    module = "tresor.attestation.nvidia.report_result"
    chain = remembered(verify.verify_device_chain, lambda leaf, *_, **__: leaf)
    monkeypatch.setattr(f"{module}.verify_device_chain", chain)
    monkeypatch.setattr(f"{module}.certificates_of", remembered(certificates_of, lambda item, _: item.certificates))
    monkeypatch.setattr(verify, "verify_ecdsa_p384", remembered(verify.verify_ecdsa_p384, lambda *about: about))
    for place, bit, flipped in flips(report(), places, bits=one_bit):
        assert (code := code_of(flipped)) in codes_at(place), (place, bit, code)


MANIFEST = {
    AttestationCode.COLLATERAL_MALFORMED,
    AttestationCode.ALGORITHM_NOT_ALLOWED,
    AttestationCode.COLLATERAL_SIGNATURE_INVALID,
}


def refusal_of_manifest(data: bytes, good: Rim, anchors: TrustAnchors, now: datetime) -> AttestationCode | None:
    """Return why a flipped manifest is refused; where it is not, it must be the good one to the letter."""
    try:
        found = verify_rim(data, anchors=anchors, now=now).rim
    except AttestationError as error:
        return error.code
    assert (found.content, found.signed_info, found.golden) == (good.content, good.signed_info, good.golden)
    return None


def outside_key_info(manifest: bytes) -> list[int]:
    """Return the places of a manifest but those of KeyInfo: not signed, and compared with the chain it must be."""
    start, stop = manifest.index(b"<ds:KeyInfo>"), manifest.index(b"</ds:KeyInfo>")
    return [*range(start), *range(stop, len(manifest))]


@pytest.mark.parametrize("part", range(4))
def test_every_bit_of_a_small_manifest(part: int) -> None:
    """White space inside tags is not part of the canonical document, nor are line breaks in what is base64."""
    data = fake.rim(values={7: [fake.golden(7)]})
    good, anchors = parse_rim(data), TrustAnchors(amd={}, nvidia_rim=(fake.RIM_CHAIN[-1].certificate,))
    assert refusal_of_manifest(data, good, anchors, fake.AT) is None
    for place, bit, changed in flips(data, outside_key_info(data)[part::4]):
        code = refusal_of_manifest(changed, good, anchors, fake.AT)
        assert code in MANIFEST or (code is None and data[place : place + 1].isspace()), (place, bit, code)


@pytest.mark.parametrize("file", ["driver_rim.xml", "vbios_rim.xml"])
def test_bytes_of_a_manifest(file: str) -> None:
    """Of every twentieth byte one bit: all bits would take minutes, and a smaller one has them."""
    data = (sample(FULL) / file).read_bytes()
    good, anchors, now = parse_rim(data), vendor_anchors(), verify_at(FULL)
    for place, bit, changed in flips(data, outside_key_info(data)[::20], bits=one_bit):
        code = refusal_of_manifest(changed, good, anchors, now)
        assert code in MANIFEST or (code is None and data[place : place + 1].isspace()), (place, bit, code)


def test_every_byte_of_an_answer() -> None:
    """One bit of each: answers are collateral.  Another CertID makes it one about another certificate."""
    data = (sample(FULL) / "ocsp_gpu_cert_l4.der").read_bytes()
    chain = load_certificates((sample(FULL) / "certchain.pem").read_bytes())
    good = verify_ocsp(parse_ocsp(data), chain[1], issuer=chain[2])
    assert good is not None
    refused = 0
    for _, _, changed in flips(data, bits=one_bit):
        try:
            found = verify_ocsp(parse_ocsp(changed), chain[1], issuer=chain[2])
        except AttestationError as error:
            assert error.code in {AttestationCode.COLLATERAL_MALFORMED, AttestationCode.OCSP_INVALID}  # noqa: PT017
            refused += 1
        else:
            assert found in (None, good)  # about another certificate, or the same answer in another wrapping
    assert refused > len(data) * 0.8


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("segment", SEGMENTS)
def test_every_bit_of_what_a_token_encodes(segment: str, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nras, "_verify_key", remembered(nras._verify_key, lambda key, **_: key))
    token = eat().overall
    decoded = {name: base64url_decode(text) for name, text in zip(SEGMENTS, token.split("."), strict=True)}
    for place, bit, changed in flips(decoded[segment], range(part, len(decoded[segment]), 4)):
        code = refusal_of_overall(".".join(map(base64url_encode, (decoded | {segment: changed}).values())))
        assert code in SEGMENTS[segment], (place, bit, code)


def test_every_character_of_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nras, "_verify_key", remembered(nras._verify_key, lambda key, **_: key))
    for place, bit, changed in flips(eat().overall.encode(), bits=one_bit):
        code = refusal_of_overall(changed.decode("latin-1"))
        assert code in {*SEGMENTS["header"], *INVALID}, (place, bit, code)


def test_every_bit_of_every_character_of_a_devices_token() -> None:
    good, keys, now = eat(), nras_keys(), verify_at(TOKEN)
    overall = verify_overall_token(good.overall, keys, anchors=vendor_anchors(), now=now)
    ((name, token),) = good.devices.items()
    for place, bit, changed in flips(token.encode()):
        other = replace(good, devices={name: changed.decode("latin-1")})
        with pytest.raises(AttestationError) as caught:
            verify_device_token(name, other, overall, keys, anchors=vendor_anchors(), now=now)
        assert caught.value.code == AttestationCode.TOKEN_SUBMODULE_MISMATCH, (place, bit)


def test_a_token_with_its_members_in_another_order_is_the_same() -> None:
    folder = sample("bundles/dstack-tdx-8gpu-tls-20260629")
    kind, devices = msgspec.json.decode((folder / "nras_eat.json").read_bytes())
    turned: DetachedEat = parse_eat(json.dumps([kind, dict(reversed(devices.items()))]).encode())
    assert list(turned.devices) == [f"GPU-{number}" for number in range(8)]


def test_a_manifest_in_front_of_another_is_none() -> None:
    data = (sample(FULL) / "driver_rim.xml").read_bytes()
    with pytest.raises(EvidenceMalformedError):
        verify_rim(data + data, anchors=vendor_anchors(), now=datetime(2025, 10, 24, tzinfo=UTC))
