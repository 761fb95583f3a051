"""Bits of one good document, flipped: nothing verifies, and each is refused for a reason that fits its place.

All bits of the envelope and of the signature; of each byte that was signed, one bit, which one depending on its place.
Of the three members that the sample fills with 1024 bytes each, every sixteenth byte.
"""

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum

import cbor2
import pytest

from support.evidence import sample, verify_at
from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.nitro.policy import NitroPolicy
from tresor.attestation.nitro.verifier import appraise_nitro
from tresor.attestation.roots import vendor_anchors

NAME = "nitro/enclave-good"
MALFORMED = AttestationCode.EVIDENCE_MALFORMED
FILLER = b"\x01" * 1024

# A byte of a certificate breaks its DER, a signature of the chain, a name, a key, a date or a flag.
CHAIN_CODES = {
    MALFORMED,
    AttestationCode.CERTIFICATE_MALFORMED,
    AttestationCode.CHAIN_INVALID,
    AttestationCode.ROOT_NOT_PINNED,
}


def regions(document: bytes) -> Iterator[tuple[range, set[AttestationCode]]]:
    protected, _, payload, signature = cbor2.loads(document)
    members = cbor2.loads(payload)
    start = document.index(payload)
    # One bit of the first byte may be that of tag 18; one of the header's length makes another array.
    yield range(start), {MALFORMED, AttestationCode.ALGORITHM_NOT_ALLOWED}
    certificates = sorted(document.index(der) for der in (members["certificate"], *members["cabundle"]))
    last = document.index(members["cabundle"][-1]) + len(members["cabundle"][-1])
    yield range(start, certificates[0]), {MALFORMED, AttestationCode.SIGNATURE_INVALID}
    yield range(certificates[0], last), CHAIN_CODES
    yield range(last, start + len(payload)), {MALFORMED, AttestationCode.SIGNATURE_INVALID}
    end = len(document) - len(signature)
    yield range(start + len(payload), end), {MALFORMED}
    yield range(end, len(document)), {AttestationCode.SIGNATURE_INVALID}
    assert protected == bytes.fromhex("a1013822")


def code_of(document: bytes, at: datetime) -> StrEnum | None:
    return appraise_nitro(
        Evidence(EvidenceFormat.NITRO, document),
        collateral=Collateral(),
        policy=NitroPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=at,
    ).code


@pytest.mark.parametrize("region", range(6))
def test_no_flipped_bit_verifies(region: int) -> None:
    document, at = (sample(NAME) / "attestation.cbor").read_bytes(), verify_at(NAME)
    places, expected = list(regions(document))[region]
    fillers = [document.index(FILLER) + step for step in (0, 1024 + 10, 2048 + 10 + 6)]
    for place in places:
        if place % 16 and any(filler <= place < filler + 1024 for filler in fillers):
            continue
        bits = range(8) if len(places) <= 96 else ((place * 5) % 8,)
        for bit in bits:
            flipped = bytearray(document)
            flipped[place] ^= 1 << bit
            assert code_of(bytes(flipped), at) in expected, (place, bit, code_of(bytes(flipped), at))
