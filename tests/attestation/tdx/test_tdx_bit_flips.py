"""Every bit of one good quote, flipped: what was signed never verifies, and the rest changes nothing that counts.

The certificates are text: one bit of every character stands before the whole appraisal, all bits of what the characters
encode before the building of the chain.  Not covered by any signature, and named here: line breaks, which nobody reads,
and the root, which is pinned and not taken from the quote.  A quote flipped there is refused or stays the same by its
signed digest.
"""

from functools import cache

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from support.evidence import sample, verify_at
from support.flips import flips, one_bit, remembered, slices
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.tdx.abi import parse_quote
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.attestation.tdx.verifier import appraise_tdx
from tresor.attestation.tdx.verify import pck_certificates
from tresor.attestation.x509 import build_chain, load_certificate, load_certificates

NAME = "tdx/v4-uptodate"
MALFORMED = AttestationCode.EVIDENCE_MALFORMED
HEADER = {
    MALFORMED,
    AttestationCode.EVIDENCE_KIND_MISMATCH,
    AttestationCode.EVIDENCE_VERSION_UNSUPPORTED,
    AttestationCode.ALGORITHM_NOT_ALLOWED,
    AttestationCode.QE_IDENTITY_MISMATCH,
    AttestationCode.SIGNATURE_INVALID,
}
CERTIFICATES = {
    MALFORMED,
    AttestationCode.CERTIFICATE_MALFORMED,
    AttestationCode.CHAIN_INVALID,
    AttestationCode.ENDORSEMENT_MISSING,
    AttestationCode.ROOT_NOT_PINNED,
    AttestationCode.QE_REPORT_INVALID,
    AttestationCode.ALGORITHM_NOT_ALLOWED,
    AttestationCode.VERIFIERS_DISAGREE,  # dcap-qvl reads PEM more strictly
}

QE_REPORT = {AttestationCode.QE_REPORT_INVALID}
SIGNATURE = {AttestationCode.SIGNATURE_INVALID}
BOUND = {AttestationCode.KEY_NOT_BOUND}

# First byte, byte behind the last, codes.
REGIONS = {
    "header": (0, 48, HEADER),
    "TEE_TCB_SVN to SEAMATTRIBUTES": (48, 168, SIGNATURE),
    "TDATTRIBUTES and XFAM": (168, 184, SIGNATURE),
    "MRTD to RTMR3": (184, 568, SIGNATURE),
    "REPORT_DATA": (568, 632, SIGNATURE),
    "signature data length": (632, 636, {MALFORMED}),
    "signature": (636, 700, SIGNATURE),
    "attestation key": (700, 764, BOUND),
    "certification data type and length": (764, 770, {MALFORMED}),
    "QE report and its signature": (770, 1218, QE_REPORT),
    "QE authentication data length": (1218, 1220, {MALFORMED}),
    "QE authentication data": (1220, 1252, BOUND),
    "PCK type and length": (1252, 1258, {MALFORMED, AttestationCode.ENDORSEMENT_MISSING}),
    "certificates": (1258, 4936, CERTIFICATES),
    "padding": (4936, 5006, {MALFORMED}),
}


CHAIN_BYTES = (1269, 666, 659)  # of the PCK certificate, its issuer, and the root


@cache
def quote() -> bytes:
    return (sample(NAME) / "quote.bin").read_bytes()


@cache
def collateral() -> Collateral:
    return Collateral(tdx=((sample(NAME) / "collateral.json").read_bytes(),))


def appraised(data: bytes) -> AttestationResult:
    return appraise_tdx(
        Evidence(EvidenceFormat.TDX_QUOTE, data),
        collateral=collateral(),
        policy=TdxPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(NAME),
    )


def test_regions_are_the_whole_quote() -> None:
    assert [place for first, behind, _ in REGIONS.values() for place in range(first, behind)] == list(range(5006))
    assert len(quote()) == 5006
    assert appraised(quote()).code is None


@pytest.mark.parametrize("region", [region for region in REGIONS if region != "certificates"])
def test_every_bit(region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The certificates are the same in all of these quotes, and pure functions read and verify them.
    module = "tresor.attestation.tdx.verify"
    monkeypatch.setattr(f"{module}.load_certificates", remembered(load_certificates, lambda data: data))
    monkeypatch.setattr(f"{module}.build_chain", remembered(build_chain, lambda leaf, rest, **_: (leaf, *rest)))
    first, behind, codes = REGIONS[region]
    for place, bit, flipped in flips(quote(), range(first, behind)):
        assert (code := appraised(flipped).code) in codes, (place, bit, code)


@pytest.mark.parametrize("places", slices(4936, 1258), ids=str)
def test_every_character_of_the_certificates(places: range) -> None:
    identity, root_at = parse_quote(quote()).signed_sha256, quote().rindex(b"-----BEGIN")
    for place, bit, flipped in flips(quote(), places, bits=one_bit):
        result = appraised(flipped)
        if result.outcome == "accepted":
            assert place >= root_at or quote()[place : place + 1] == b"\n", (place, bit)
            assert result.details["signed_sha256"] == identity
        else:
            assert result.code in CERTIFICATES, (place, bit, result.code)


@pytest.mark.parametrize(
    ("depth", "places"),
    [(depth, places) for depth, size in enumerate(CHAIN_BYTES[:-1]) for places in slices(size)],
    ids=str,
)
def test_every_bit_of_the_certificates_is_signed(depth: int, places: range) -> None:
    chain = [c.public_bytes(Encoding.DER) for c in pck_certificates(parse_quote(quote()))]
    assert tuple(map(len, chain)) == CHAIN_BYTES
    below, above = ([load_certificate(der) for der in ders] for ders in (chain[:depth], chain[depth + 1 :]))
    for place, bit, flipped in flips(chain[depth], places):
        code = None
        try:
            certificates = [*below, load_certificate(flipped), *above]
            build_chain(certificates[0], certificates[1:], roots=vendor_anchors().intel, now=verify_at(NAME))
        except AttestationError as error:
            code = error.code
        assert code in CERTIFICATES, (place, bit, code)
