"""Every bit of one good bundle and one good manifest, flipped: nothing verifies, and each is refused for a reason that
fits its place.

No bit of a token is without meaning: base64url has one spelling, Ed25519 here has too, and the signature covers the
rest.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tresor.encodings import base64url_decode, base64url_encode
from tresor.trust.bundle import parse_bundle, verify_bundle, verify_manifest
from tresor.trust.errors import TrustCode, TrustError
from tresor.trust.manifest import parse_manifest
from tresor.trust.release_root import parse_public_key

VECTORS = Path(__file__).parents[1] / "vectors" / "trust"
BUNDLE = (VECTORS / "010-simulated" / "bundle.jws").read_bytes()
MANIFEST = (VECTORS / "manifest.jws").read_bytes()
ROOT = parse_public_key((VECTORS / "root.jwk").read_bytes())
NOW = datetime.fromisoformat("2026-03-10T12:00:00Z")
SEGMENTS = ("header", "payload", "signature")
IN_FORCE = verify_bundle(parse_bundle(BUNDLE), ROOT, now=NOW, min_version=0, allow_simulated=True)

Refusal = Callable[[bytes], TrustCode | None]


def of_bundle(token: bytes) -> TrustCode | None:
    try:
        verify_bundle(parse_bundle(token), ROOT, now=NOW, min_version=0, allow_simulated=True)
    except TrustError as error:
        return error.code
    return None


def of_manifest(token: bytes) -> TrustCode | None:
    try:
        verify_manifest(parse_manifest(token), IN_FORCE)
    except TrustError as error:
        return error.code
    return None


HEADER = {TrustCode.JSON_MALFORMED, TrustCode.ALG_NOT_ALLOWED, TrustCode.TYP_MISMATCH, TrustCode.HEADER_NOT_ALLOWED}
NOT_BASE64URL = {TrustCode.BASE64URL_MALFORMED, TrustCode.TOKEN_MALFORMED}  # the latter where a dot came or went
# Of a flipped S, the upper bits leave the group; a flipped R may be a second spelling.
SIGNATURE = {TrustCode.SIGNATURE_MALFORMED}
KINDS = {
    "bundle": (BUNDLE, of_bundle, TrustCode.BUNDLE_SIGNATURE_INVALID, TrustCode.BUNDLE_SIGNATURE_INVALID),
    "manifest": (MANIFEST, of_manifest, TrustCode.MANIFEST_SIGNATURE_INVALID, TrustCode.MANIFEST_KEY_NOT_ALLOWED),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def expected(kind: str) -> dict[str, set[TrustCode]]:
    _, _, invalid, other_key = KINDS[kind]
    return {"header": {*HEADER, other_key}, "payload": {invalid}, "signature": {*SIGNATURE, invalid}}


def flips(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            yield bytes(flipped)


@every_kind
def test_the_token_is_good(kind: str) -> None:
    token, refusal, *_ = KINDS[kind]
    assert refusal(token) is None


@every_kind
@pytest.mark.parametrize("segment", SEGMENTS)
def test_every_bit_of_what_is_encoded(kind: str, segment: str) -> None:
    token, refusal, *_ = KINDS[kind]
    decoded = {name: base64url_decode(part) for name, part in zip(SEGMENTS, token.decode().split("."), strict=True)}
    codes = {
        refusal(".".join(map(base64url_encode, (decoded | {segment: flipped}).values())).encode())
        for flipped in flips(decoded[segment])
    }
    assert codes == expected(kind)[segment]


@every_kind
def test_every_bit_of_every_character(kind: str) -> None:
    token, refusal, *_ = KINDS[kind]
    wanted = expected(kind)
    header_end, payload_end = token.index(b"."), token.rindex(b".")
    for number, flipped in enumerate(flips(token)):
        position = number // 8
        segment = "header" if position < header_end else "payload" if position < payload_end else "signature"
        assert refusal(flipped) in wanted[segment] | NOT_BASE64URL, (position, flipped[position])
