"""Any bytes into any parser: a value or our error, in bounded time and memory."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fake_nvidia import AT, GPU, NRAS, device_claims, eat, evidence_list, jwks, ocsp, report, rim, token
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, PolicyError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.nvidia.evidence_list import MAX_LIST_BYTES, parse_evidence_list
from tresor.attestation.nvidia.nras import MAX_EAT_BYTES, parse_eat, parse_nras_jwks, verify_overall_token
from tresor.attestation.nvidia.ocsp import parse_ocsp, verify_ocsp
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.nvidia.rim import MAX_RIM_BYTES, parse_rim, verify_rim
from tresor.attestation.nvidia.spdm import MAX_REPORT_BYTES, parse_report
from tresor.attestation.nvidia.verifier import appraise_nvidia, needs
from tresor.attestation.policy import parse_policy
from tresor.attestation.roots import vendor_anchors

ROM, PROVISIONER = GPU.chain[1], GPU.chain[2]
GOOD: dict[str, bytes] = {
    "report": report(),
    "list": evidence_list((GPU, report())),
    "rim": rim(),
    "ocsp": ocsp(ROM),
    "eat": eat(),
    "jwks": jwks(),
    "token": token(device_claims()).encode(),
}
KEYS = parse_nras_jwks([GOOD["jwks"]])


def read_token(data: bytes) -> object:
    return verify_overall_token(data.decode("latin-1"), KEYS, anchors=vendor_anchors(), now=AT)


def read_ocsp(data: bytes) -> object:
    return verify_ocsp(parse_ocsp(data), ROM.certificate, issuer=PROVISIONER.certificate)


PARSERS: dict[str, Callable[[bytes], object]] = {
    "report": parse_report,
    "list": parse_evidence_list,
    "rim": lambda data: verify_rim(data, anchors=vendor_anchors(), now=AT),
    "ocsp": read_ocsp,
    "eat": parse_eat,
    "jwks": lambda data: parse_nras_jwks([data]),
    "token": read_token,
}


def changed(good: bytes) -> st.SearchStrategy[bytes]:
    """Good bytes with a piece replaced: deeper into the parser than noise gets."""
    at = st.integers(0, len(good))
    return st.builds(lambda a, b, new: good[: min(a, b)] + new + good[max(a, b) :], at, at, st.binary(max_size=16))


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_any_bytes(name: str, data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=512) | changed(GOOD[name]))
    with contextlib.suppress(AttestationError):
        PARSERS[name](raw)


@given(
    kind=st.sampled_from(
        [EvidenceFormat.NVIDIA_GPU_REPORT, EvidenceFormat.NVIDIA_GPU_LIST, EvidenceFormat.NVIDIA_NRAS]
    ),
    data=st.binary(max_size=256) | changed(GOOD["report"]) | changed(GOOD["list"]) | changed(GOOD["eat"]),
    bags=st.tuples(*(st.lists(st.binary(max_size=64) | changed(GOOD[n]), max_size=2) for n in ("rim", "ocsp", "jwks"))),
)
def test_any_evidence_gives_a_result(kind: EvidenceFormat, data: bytes, bags: tuple[list[bytes], ...]) -> None:
    rims, answers, keys = (tuple(bag) for bag in bags)
    chain = tuple(issued.der for issued in GPU.chain)
    bag = Collateral(certificates=(*chain, data), rims=rims, ocsp_responses=answers, jwks=keys)
    result = appraise_nvidia(
        Evidence(kind, data),
        collateral=bag,
        policy=NvidiaPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=AT,
    )
    assert result.outcome in {"rejected", "undecided"}
    assert result.claims.gpu_tee.status != "proven"
    assert all(need.url.startswith("https://") for need in needs(Evidence(kind, data), bag))


@pytest.mark.parametrize(
    ("name", "size", "code"),
    [
        ("report", MAX_REPORT_BYTES, AttestationCode.EVIDENCE_TOO_LARGE),
        ("list", MAX_LIST_BYTES, AttestationCode.EVIDENCE_TOO_LARGE),
        ("eat", MAX_EAT_BYTES, AttestationCode.EVIDENCE_TOO_LARGE),
        ("rim", MAX_RIM_BYTES, AttestationCode.COLLATERAL_MALFORMED),
        ("ocsp", 64 * 1024, AttestationCode.COLLATERAL_MALFORMED),
        ("jwks", 4 << 20, AttestationCode.COLLATERAL_MALFORMED),
        ("token", 64 * 1024, AttestationCode.EVIDENCE_MALFORMED),
    ],
)
def test_too_large(name: str, size: int, code: AttestationCode) -> None:
    with pytest.raises(AttestationError) as caught:
        PARSERS[name](b" " * (size + 1))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "xml",
    [
        b"<a>" * 100_000,
        b"<a " + b" ".join(b'x%d=""' % n for n in range(50_000)) + b"/>",
        b'<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd">'
        + b"<ds:Signature xmlns:ds='http://www.w3.org/2000/09/xmldsig#'/>" * 10_000
        + b"</SoftwareIdentity>",
        b'<?xml version="1.0" encoding="UTF-7"?>+ADw-!DOCTYPE x+AD4-<x/>',
        b"\xff\xfe<\x00a\x00/\x00>\x00",
        b"",
    ],
)
def test_hostile_xml(xml: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(AttestationError) as caught:
        parse_rim(xml)
    assert caught.value.code == AttestationCode.COLLATERAL_MALFORMED
    assert time.monotonic() - began < 10


def test_repr_shows_no_content() -> None:
    assert repr(parse_report(GOOD["report"])) == f"SpdmReport({len(GOOD['report']) - 96} bytes, 6 measurements)"
    assert NRAS.der.hex() not in repr(KEYS)


@pytest.mark.parametrize(
    ("table", "members"),
    [
        (
            'require_rims = true\nmin_driver_version = "570.86.15"',
            {"require_rims": True, "min_driver_version": "570.86.15"},
        ),
        ('architectures = ["BLACKWELL"]\ngpu_count = 8', {"architectures": ("BLACKWELL",), "gpu_count": 8}),
    ],
)
def test_policy_of_toml(table: str, members: dict[str, Any]) -> None:
    assert parse_policy(f"[nvidia]\n{table}".encode()).nvidia == NvidiaPolicy(**members)


@pytest.mark.parametrize(
    "table",
    [
        "require_rim = true",
        'architectures = ["AMPERE"]',
        "gpu_count = 0",
        'min_driver_version = "latest"',
        'min_vbios_version = "96.00.9f.00.01"',
        'require_rims = "yes"',
    ],
)
def test_policy_that_is_not_understood(table: str) -> None:
    with pytest.raises(PolicyError):
        parse_policy(f"[nvidia]\n{table}".encode())
