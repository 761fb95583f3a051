"""Every bit of one good document, flipped: nothing verifies, and each is refused for a reason that fits its place.

No bit of the 7539 bytes is free: the envelope has one spelling, the payload is signed, and with it the certificates,
each of which its issuer signed too.

All bits stand before the signature over the payload, with an ideal key and the chain of the good document; one bit of
every byte, and all of what is short, before the whole appraisal with its real keys.
"""

from collections.abc import Callable, Iterable
from functools import cache

import cbor2
import pytest

from support.evidence import sample, verify_at
from support.flips import every_bit, flips, ideal_certificate, one_bit, remembered, slices
from tresor.attestation import x509
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.nitro import verify
from tresor.attestation.nitro.abi import SIGNATURE_BYTES, parse_document
from tresor.attestation.nitro.policy import NitroPolicy
from tresor.attestation.nitro.verifier import appraise_nitro
from tresor.attestation.roots import vendor_anchors

NAME = "nitro/enclave-good"
BYTES = 7539
MALFORMED = AttestationCode.EVIDENCE_MALFORMED
SIGNATURE = {AttestationCode.SIGNATURE_INVALID}
SHORT = 96  # bytes of a region whose every bit the whole appraisal gets

# A byte of a certificate breaks its DER, a signature of the chain, a name, a key, a date or a flag.
CHAIN = {
    MALFORMED,
    AttestationCode.CERTIFICATE_MALFORMED,
    AttestationCode.CHAIN_INVALID,
    AttestationCode.ROOT_NOT_PINNED,
}

Region = tuple[range, set[AttestationCode]]


@cache
def document() -> bytes:
    return (sample(NAME) / "attestation.cbor").read_bytes()


@cache
def regions() -> tuple[Region, ...]:
    """Return the regions of the document from its first to its last byte, and what a flip may be refused for there."""
    protected, _, payload, signature = cbor2.loads(document())
    members = cbor2.loads(payload)
    assert protected == bytes.fromhex("a1013822")
    start, end = document().index(payload), len(document()) - len(signature)
    certificates = [document().index(der) for der in (members["certificate"], *members["cabundle"])]
    last = certificates[-1] + len(members["cabundle"][-1])
    return (
        # One bit of the first byte may be that of tag 18; one of the header's length makes another array.
        (range(start), {MALFORMED, AttestationCode.ALGORITHM_NOT_ALLOWED}),
        (range(start, certificates[0]), {MALFORMED, *SIGNATURE}),
        (range(certificates[0], last), CHAIN),
        (range(last, start + len(payload)), {MALFORMED, *SIGNATURE}),
        (range(start + len(payload), end), {MALFORMED}),
        (range(end, end + SIGNATURE_BYTES), SIGNATURE),
    )


def region_of(place: int) -> Region:
    return next(region for region in regions() if place in region[0])


def bits_for_the_whole(place: int) -> Iterable[int]:
    return every_bit(place) if len(region_of(place)[0]) <= SHORT else one_bit(place)


def code_of(data: bytes) -> object:
    return appraise_nitro(
        Evidence(EvidenceFormat.NITRO, data),
        collateral=Collateral(),
        policy=NitroPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(NAME),
    ).code


@pytest.fixture
def signature_code_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], object]:
    """Return what says why the signature over a document is refused, where its chain is the good one."""
    roots, now = vendor_anchors().nitro, verify_at(NAME)
    leaf, *issuers = verify.verify_document(parse_document(document()), roots=roots, now=now).chain
    chain = (ideal_certificate(leaf), *issuers)
    monkeypatch.setattr(verify, "_chain", lambda *_: chain)

    def code(data: bytes) -> object:
        try:
            verify.verify_document(parse_document(data), roots=roots, now=now)
        except AttestationError as error:
            return error.code
        return None

    return code


def test_regions_are_the_whole_document() -> None:
    assert [place for places, _ in regions() for place in places] == list(range(BYTES))
    assert len(document()) == BYTES
    assert code_of(document()) is None


@pytest.mark.parametrize("places", slices(BYTES, size=1024), ids=str)
def test_the_signature_holds_every_bit(places: range, signature_code_of: Callable[[bytes], object]) -> None:
    assert signature_code_of(document()) is None
    for place, bit, flipped in flips(document(), places):
        _, wanted = region_of(place)
        # Without its chain, what stands where a certificate was is as good as any other signed byte.
        expected = {MALFORMED, *SIGNATURE} if wanted is CHAIN else wanted
        assert (code := signature_code_of(flipped)) in expected, (place, bit, code)


@pytest.mark.parametrize("places", slices(BYTES), ids=str)
def test_no_byte_of_the_whole_is_free(places: range, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pure functions, which most of these documents ask the same.
    signer = remembered(x509._signer, lambda certificate, candidates: (certificate, *candidates))
    chain = remembered(x509.build_chain, lambda leaf, pool, **_: (leaf, *pool))
    monkeypatch.setattr(x509, "_signer", signer)
    monkeypatch.setattr("tresor.attestation.nitro.verify.build_chain", chain)
    monkeypatch.setattr(
        "tresor.attestation.nitro.verify.load_certificate", remembered(x509.load_certificate, lambda der: der)
    )
    for place, bit, flipped in flips(document(), places, bits=bits_for_the_whole):
        assert (code := code_of(flipped)) in region_of(place)[1], (place, bit, code)
