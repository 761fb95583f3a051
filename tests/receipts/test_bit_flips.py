"""Every bit of one good token, flipped: nothing verifies, and each is refused for a reason that fits its place.

No bit of a token is without meaning: base64url has one spelling, and the signature covers the rest.
"""

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import pytest

from tresor.encodings import base64url_decode, base64url_encode
from tresor.errors import ReceiptCode, ReceiptError
from tresor.jose.jwk import parse_jwks
from tresor.receipts.verify import parse_receipt, verify_receipt

VECTORS = Path(__file__).parents[1] / "vectors" / "receipt"
TOKEN = (VECTORS / "001-bare-token" / "token.txt").read_bytes()
KEYS = parse_jwks((VECTORS / "jwks.json").read_bytes())
NOW = datetime.fromisoformat("2026-03-01T12:05:00Z")
SEGMENTS = ("header", "payload", "signature")

NOT_BASE64URL = {ReceiptCode.BASE64URL_MALFORMED, ReceiptCode.TOKEN_MALFORMED}  # the latter where a dot came or went
EXPECTED = {
    "header": {
        ReceiptCode.JSON_MALFORMED,
        ReceiptCode.ALG_NOT_ALLOWED,
        ReceiptCode.TYP_MISMATCH,
        ReceiptCode.KID_UNKNOWN,
        ReceiptCode.HEADER_NOT_ALLOWED,
    },
    "payload": {ReceiptCode.SIGNATURE_INVALID},
    "signature": {ReceiptCode.SIGNATURE_INVALID},
}


def refusal(token: bytes) -> StrEnum | None:
    try:
        verify_receipt(parse_receipt(token), KEYS, now=NOW)
    except ReceiptError as error:
        return error.code
    return None


def flips(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            yield bytes(flipped)


def test_the_token_is_good() -> None:
    assert refusal(TOKEN) is None


@pytest.mark.parametrize("segment", SEGMENTS)
def test_every_bit_of_what_is_encoded(segment: str) -> None:
    decoded = {name: base64url_decode(part) for name, part in zip(SEGMENTS, TOKEN.decode().split("."), strict=True)}
    codes = {
        refusal(".".join(map(base64url_encode, (decoded | {segment: flipped}).values())).encode())
        for flipped in flips(decoded[segment])
    }
    assert codes == EXPECTED[segment]


def test_every_bit_of_every_character() -> None:
    header_end, payload_end = TOKEN.index(b"."), TOKEN.rindex(b".")
    for number, flipped in enumerate(flips(TOKEN)):
        position = number // 8
        segment = "header" if position < header_end else "payload" if position < payload_end else "signature"
        assert refusal(flipped) in EXPECTED[segment] | NOT_BASE64URL, (position, flipped[position])
