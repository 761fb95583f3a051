"""Bits of one good quote, flipped: what was signed never verifies, and the rest changes nothing that counts.

Of header, body, lengths and types all bits; of signatures, keys and the QE report one bit of each byte, which one
depending on its place.  Of the certificates, which are text, every seventh byte: a flip there is refused, or it is in
what nobody reads (line breaks, the root) and the quote stays the same by its signed digest.
"""

import pytest

from support.evidence import sample, verify_at
from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.tdx.abi import parse_quote
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.attestation.tdx.verifier import appraise_tdx

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

# First byte, byte behind the last, step, all bits, codes.
REGIONS = {
    "header": (0, 48, 1, True, HEADER),
    "TEE_TCB_SVN to SEAMATTRIBUTES": (48, 168, 1, True, {AttestationCode.SIGNATURE_INVALID}),
    "TDATTRIBUTES and XFAM": (168, 184, 1, True, {AttestationCode.SIGNATURE_INVALID}),
    "MRTD to RTMR3": (184, 568, 1, True, {AttestationCode.SIGNATURE_INVALID}),
    "REPORT_DATA": (568, 632, 1, True, {AttestationCode.SIGNATURE_INVALID}),
    "signature data length": (632, 636, 1, True, {MALFORMED}),
    "signature": (636, 700, 1, False, {AttestationCode.SIGNATURE_INVALID}),
    "attestation key": (700, 764, 1, False, {AttestationCode.KEY_NOT_BOUND}),
    "certification data type and length": (764, 770, 1, True, {MALFORMED}),
    "QE report and its signature": (770, 1218, 1, False, {AttestationCode.QE_REPORT_INVALID}),
    "QE authentication data length": (1218, 1220, 1, True, {MALFORMED}),
    "QE authentication data": (1220, 1252, 1, False, {AttestationCode.KEY_NOT_BOUND}),
    "PCK type and length": (1252, 1258, 1, True, {MALFORMED, AttestationCode.ENDORSEMENT_MISSING}),
    "certificates": (1258, 4936, 7, False, CERTIFICATES),
    "padding": (4936, 5006, 1, False, {MALFORMED}),
}


def appraised(quote: bytes) -> AttestationResult:
    return appraise_tdx(
        Evidence(EvidenceFormat.TDX_QUOTE, quote),
        collateral=Collateral(tdx=((sample(NAME) / "collateral.json").read_bytes(),)),
        policy=TdxPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(NAME),
    )


@pytest.mark.parametrize("region", REGIONS)
def test_no_flipped_bit_counts(region: str) -> None:
    quote = (sample(NAME) / "quote.bin").read_bytes()
    first, behind, step, every, codes = REGIONS[region]
    identity, unread = parse_quote(quote).signed_sha256, 0
    for place in range(first, behind, step):
        for bit in range(8) if every else ((place * 5) % 8,):
            flipped = bytearray(quote)
            flipped[place] ^= 1 << bit
            result = appraised(bytes(flipped))
            if result.outcome == "accepted":
                assert (region, result.details["signed_sha256"]) == ("certificates", identity)
                unread += 1
            else:
                assert result.code in codes, (place, bit, result.code)
    assert unread < (behind - first) / step / 2


def test_regions_are_the_whole_quote() -> None:
    edges = [edge for first, behind, *_ in REGIONS.values() for edge in (first, behind)]
    assert edges[0] == 0
    assert edges[-1] == len((sample(NAME) / "quote.bin").read_bytes())
    assert edges[1:-1:2] == edges[2::2]
