"""Every bit of one good report, flipped: nothing verifies, and each is refused for a reason that fits its place.

No bit of the 1184 bytes is free.
"""

from collections.abc import Iterator
from enum import StrEnum
from functools import cache

import pytest

from support.evidence import sample, verify_at
from support.flips import flips, one_bit, remembered
from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.snp import verify
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.verifier import appraise_snp
from tresor.attestation.x509 import split_certificates

NAME = "snp/milan-v3-vcek"
CODE = AttestationCode
RESERVED = {CODE.RESERVED_NOT_ZERO}
SIGNATURE = {CODE.SIGNATURE_INVALID}

# From this offset on, until the next: what a flipped bit may be refused for.
PLACES: dict[int, set[AttestationCode]] = {
    0x000: {CODE.EVIDENCE_VERSION_UNSUPPORTED, *RESERVED, *SIGNATURE},  # another version has other reserved bytes
    0x004: SIGNATURE,
    0x008: SIGNATURE | RESERVED,  # POLICY
    0x010: SIGNATURE,
    0x034: {CODE.ALGORITHM_NOT_ALLOWED},
    0x038: SIGNATURE | RESERVED,  # CURRENT_TCB
    0x040: SIGNATURE,
    0x048: {CODE.COLLATERAL_MISMATCH, CODE.SIGNER_NOT_ALLOWED, *SIGNATURE, *RESERVED},
    0x04C: RESERVED,
    0x050: SIGNATURE,
    0x090: SIGNATURE,
    0x0C0: SIGNATURE,
    0x110: SIGNATURE,
    0x140: SIGNATURE,
    0x180: {CODE.CERTIFICATE_TCB_MISMATCH, *RESERVED},  # REPORTED_TCB
    0x188: {CODE.ROOT_NOT_PINNED, CODE.COLLATERAL_MISMATCH, *SIGNATURE},  # CPUID
    0x18B: RESERVED,
    0x1A0: {CODE.CHIP_ID_MISMATCH},
    0x1E0: SIGNATURE | RESERVED,  # COMMITTED_TCB
    0x1E8: SIGNATURE | RESERVED,  # versions, each with a reserved byte
    0x1F0: SIGNATURE | RESERVED,  # LAUNCH_TCB
    0x1F8: RESERVED,
    0x2A0: SIGNATURE,  # r and s
    0x2E8: SIGNATURE,
    0x330: RESERVED,
}


# A byte of the certificate breaks its DER, an algorithm, an extension or what AMD signed.
VCEK = {
    CODE.ALGORITHM_NOT_ALLOWED,
    CODE.CERTIFICATE_EXTENSION_MISSING,
    CODE.CERTIFICATE_MALFORMED,
    CODE.CHAIN_INVALID,
    CODE.RESERVED_NOT_ZERO,
}


@cache
def report() -> bytes:
    return (sample(NAME) / "report.bin").read_bytes()


@cache
def collateral() -> Collateral:
    return Collateral(certificates=tuple(split_certificates((sample(NAME) / "vcek.pem").read_bytes())))


def code_of(data: bytes, bag: Collateral | None = None) -> StrEnum | None:
    return appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, data),
        collateral=bag or collateral(),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(NAME),
    ).code


def regions() -> Iterator[tuple[range, set[AttestationCode]]]:
    starts = list(PLACES)
    for start, end in zip(starts, [*starts[1:], 0x4A0], strict=True):
        yield range(start, end), PLACES[start]


def test_unchanged_it_is_accepted() -> None:
    assert len(report()) == 0x4A0
    assert code_of(report()) is None


@pytest.mark.parametrize(("places", "codes"), list(regions()))
def test_every_bit(places: range, codes: set[AttestationCode], monkeypatch: pytest.MonkeyPatch) -> None:
    # Reports of one key have one chain, and a pure function verifies it.
    chain = remembered(verify._verify_chain, lambda endorsement, *_: (endorsement.tbs, endorsement.signature))
    monkeypatch.setattr(verify, "_verify_chain", chain)
    for place, bit, flipped in flips(report(), places):
        assert (code := code_of(flipped)) in codes, (hex(place), bit, code)


def test_no_byte_of_the_vcek_is_free() -> None:
    """One bit of each, for it is an endorsement and no evidence."""
    for place, bit, flipped in flips(collateral().certificates[0], bits=one_bit):
        code = code_of(report(), Collateral(certificates=(flipped,)))
        assert code in VCEK, (place, bit, code)
