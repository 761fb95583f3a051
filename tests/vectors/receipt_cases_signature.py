"""Receipt vectors 300 to 499: signatures and key sets."""

from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384, SHA512
from receipt_case import Case
from receipt_material import (
    HEADER,
    JTI,
    KEY,
    KID,
    MALLORY,
    OLD_KEY,
    OTHER_JTI,
    P256_N,
    api_json,
    b64,
    claims,
    coordinates,
    integers,
    json_bytes,
    jwk,
    jwks,
    kid_of,
    raw_signature,
    sign,
    token,
)

__all__ = ["key_sets", "signatures"]

_P256_P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_GOOD = token()
_SIGNING_INPUT = _GOOD.rpartition(".")[0]
_R, _S = integers(_SIGNING_INPUT.encode())


def _signed_by(r: int, s: int) -> bytes:
    return _with_signature(raw_signature(r, s))


def _with_signature(signature: bytes) -> bytes:
    return f"{_SIGNING_INPUT}.{b64(signature)}".encode()


def _flipped(segment: int) -> bytes:
    """Return the good token with one bit in the middle of a segment flipped, base64url and JSON intact."""
    segments = [_HEADER_BYTES, _PAYLOAD_BYTES, raw_signature(_R, _S)]
    changed = bytearray(segments[segment])
    changed[len(changed) // 2] ^= 1
    segments[segment] = bytes(changed)
    return ".".join(map(b64, segments)).encode()


_HEADER_BYTES = json_bytes(HEADER)
_PAYLOAD_BYTES = json_bytes(claims())


def signatures() -> Iterator[Case]:
    """Yield tokens of which the signature is wrong or of something else."""
    malformed, invalid = "signature_malformed", "signature_invalid"
    header_reordered = b64(json_bytes(dict(reversed(HEADER.items()))))
    other = token(claims(jti=OTHER_JTI))
    for number, name, title, receipt, code in (
        (300, "der", "DER in place of r and s", _with_signature(encode_dss_signature(_R, _S)), malformed),
        (301, "short", "63 bytes", _with_signature(raw_signature(_R, _S)[:-1]), malformed),
        (302, "long", "65 bytes", _with_signature(raw_signature(_R, _S) + b"\0"), malformed),
        (
            303,
            "hex",
            "Hexadecimal text of the signature",
            _with_signature(raw_signature(_R, _S).hex().encode()),
            malformed,
        ),
        (304, "es384-length", "96 bytes, as ES384 has", _with_signature(_R.to_bytes(48) + _S.to_bytes(48)), malformed),
        (310, "zeros", "r and s are zero (CVE-2022-21449)", _signed_by(0, 0), malformed),
        (311, "r-zero", "r is zero", _signed_by(0, _S), malformed),
        (312, "s-zero", "s is zero", _signed_by(_R, 0), malformed),
        (313, "r-is-n", "r is the order of the group", _signed_by(P256_N, _S), malformed),
        (314, "s-is-n", "s is the order of the group", _signed_by(_R, P256_N), malformed),
        (315, "s-of-ones", "s is 2^256 - 1", _signed_by(_R, (1 << 256) - 1), malformed),
        (320, "signature-bit-flipped", "A bit of the signature is flipped", _flipped(2), invalid),
        (321, "payload-bit-flipped", "A bit of the payload is flipped", _flipped(1), invalid),
        (322, "r-and-s-swapped", "s stands before r", _signed_by(_S, _R), invalid),
        (
            323,
            "little-endian",
            "r and s are little-endian",
            _with_signature(_R.to_bytes(32, "little") + _S.to_bytes(32, "little")),
            invalid,
        ),
        (324, "r-one", "r and s are one", _signed_by(1, 1), invalid),
        (325, "sha-384", "Signed with SHA-384", _signed_by(*integers(_SIGNING_INPUT.encode(), KEY, SHA384())), invalid),
        (326, "sha-512", "Signed with SHA-512", _signed_by(*integers(_SIGNING_INPUT.encode(), KEY, SHA512())), invalid),
        (327, "of-another-receipt", "The signature of another receipt", _with_last_segment(other), invalid),
        (328, "payload-of-another-receipt", "The payload of another receipt", _with_payload(other), invalid),
        (329, "of-payload-alone", "Only the payload was signed", _signed_by(*integers(_PAYLOAD_BYTES)), invalid),
        (
            330,
            "of-decoded-segments",
            "The decoded segments were signed",
            _signed_by(*integers(_HEADER_BYTES + b"." + _PAYLOAD_BYTES)),
            invalid,
        ),
        (
            331,
            "header-written-anew",
            "The same header in another order",
            _GOOD.replace(b64(_HEADER_BYTES), header_reordered).encode(),
            invalid,
        ),
        (332, "by-another-key", "Another key signed under the router's kid", token(key=MALLORY).encode(), invalid),
        (333, "of-nothing", "The signature of an empty text", _signed_by(*integers(b"")), invalid),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="2.3", receipt=receipt, expect=code)


def _with_last_segment(other: str) -> bytes:
    return f"{_SIGNING_INPUT}.{other.rpartition('.')[2]}".encode()


def _with_payload(other: str) -> bytes:
    header, _, signature = _GOOD.split(".")
    return f"{header}.{other.split('.')[1]}.{signature}".encode()


def key_sets() -> Iterator[Case]:
    """Yield key sets that are refused whole, whatever else is in them."""
    good = jwk(KEY)
    x, y = coordinates(KEY)
    other_x, other_y = coordinates(MALLORY)
    x_number = int.from_bytes(KEY.public_key().public_numbers().x.to_bytes(32))
    malformed, refused = "jwks_malformed", "jwk_not_allowed"

    def with_(**changes: Any) -> bytes:
        return jwks({name: value for name, value in (good | changes).items() if value is not ...})

    for number, name, title, key_set, code in (
        (400, "no-json", "A web page", b"<!doctype html>", malformed),
        (401, "array", "The keys without the object around them", json_bytes([good]), malformed),
        (402, "one-key", "A key, not a set", json_bytes(good), malformed),
        (403, "keys-object", "keys is an object by kid", json_bytes({"keys": {KID: good}}), malformed),
        (404, "keys-empty", "No key in the set", jwks(), "jwks_empty"),
        (405, "member-twice", "keys stands twice", b'{"keys":[],' + jwks(good)[1:], malformed),
        (
            406,
            "member-of-key-twice",
            "x stands twice in a key",
            jwks(good).replace(b'"x":', b'"x":"AAAA","x":'),
            malformed,
        ),
        (407, "byte-order-mark", "A byte order mark", b"\xef\xbb\xbf" + jwks(good), malformed),
        (408, "null-entry", "null among the keys", jwks(good, None), malformed),
        (410, "kid-twice", "The same key twice", jwks(good, good), "jwks_duplicate_kid"),
        (
            411,
            "kid-twice-other-key",
            "Two keys under one kid",
            jwks(good, jwk(MALLORY, kid=KID)),
            "kid_thumbprint_mismatch",
        ),
        (
            412,
            "kid-of-another-key",
            "Another key under the router's kid",
            with_(x=other_x, y=other_y),
            "kid_thumbprint_mismatch",
        ),
        (413, "kid-not-thumbprint", "A kid by date", with_(kid="router-receipt-2026-03"), "kid_thumbprint_mismatch"),
        (
            414,
            "kid-whole-thumbprint",
            "A kid of the right kind and too long",
            with_(kid=KID + "A"),
            "kid_thumbprint_mismatch",
        ),
        (415, "kid-missing", "A key without kid", with_(kid=...), malformed),
        (416, "kid-number", "A kid that is a number", with_(kid=1), malformed),
        (420, "private", "The private key", with_(d=b64(b"\1" * 32)), "jwk_private"),
        (421, "private-null", "A member d, empty", with_(d=None), "jwk_private"),
        (422, "symmetric", "A symmetric key", jwks({"kty": "oct", "kid": KID, "k": b64(b"\1" * 32)}), "jwk_private"),
        (423, "one-private-among-good", "Another key's private half", jwks(good, jwk(OLD_KEY, d="AQ")), "jwk_private"),
        (430, "use-enc", "A key for encryption", with_(use="enc"), refused),
        (431, "key-ops-sign", "A key said to sign", with_(key_ops=["sign"]), refused),
        (432, "key-ops-more", "A key to verify and derive", with_(key_ops=["verify", "deriveBits"]), refused),
        (433, "alg-es384", "A P-256 key for ES384", with_(alg="ES384"), refused),
        (434, "crv-p384", "Another curve by name", with_(crv="P-384"), refused),
        (435, "crv-secp256k1", "A curve of the same size", with_(crv="secp256k1"), refused),
        (436, "kty-rsa", "Another type by name", with_(kty="RSA"), refused),
        (437, "kty-okp", "An Ed25519 key", jwks({"kty": "OKP", "crv": "Ed25519", "x": x, "y": y, "kid": KID}), refused),
        (438, "kty-missing", "A key without kty", with_(kty=...), malformed),
        (
            439,
            "rsa",
            "An RSA key among good ones",
            jwks(good, {"kty": "RSA", "kid": "r", "n": "AQAB", "e": "AQAB"}),
            malformed,
        ),
        (440, "point-off-curve", "A point that is not on the curve", with_(y=x), refused),
        (441, "point-zero", "The coordinates are zero", with_(x=b64(bytes(32)), y=b64(bytes(32))), refused),
        (442, "coordinate-short", "A coordinate of 31 bytes", with_(x=b64(bytes(31))), refused),
        (
            443,
            "coordinate-long",
            "A coordinate with a zero in front",
            with_(x=b64(bytes(1) + x_number.to_bytes(32))),
            refused,
        ),
        (444, "coordinate-not-reduced", "A coordinate that is the prime", with_(x=b64(_P256_P.to_bytes(32))), refused),
        (445, "coordinate-padded", "A coordinate with base64 padding", with_(x=x + "="), refused),
        (446, "coordinate-number", "A coordinate that is a number", with_(x=x_number), malformed),
        (
            447,
            "point-compressed",
            "A compressed point in x",
            with_(x=b64(b"\2" + x_number.to_bytes(32)), y=""),
            refused,
        ),
        (450, "iat-text", "A time as text", with_(iat="2026-03-01T12:00:00Z"), malformed),
        (451, "exp-float", "A time that is no integer", with_(exp=1.5e9), malformed),
        (452, "exp-boolean", "A time that is a boolean", with_(exp=True), malformed),
        (453, "revoked-boolean", "revoked without its time", with_(revoked=True), malformed),
        (454, "revoked-empty", "revoked is an empty object", with_(revoked={}), malformed),
        (460, "one-bad-among-good", "Another key of the set is off the curve", jwks(good, jwk(OLD_KEY, y=x)), refused),
    ):
        yield Case(
            name=f"{number}-jwks-{name}", title=title, spec="6.1", receipt=_GOOD.encode(), jwks=key_set, expect=code
        )
    yield Case(
        name="470-jwks-of-another-router",
        title="A good key set, of somebody else",
        spec="6.1",
        receipt=api_json(_GOOD, JTI),
        jwks=jwks(jwk(MALLORY)),
        expect="kid_unknown",
    )
    yield Case(
        name="471-jwks-without-the-key",
        title="The key has left the set, which public keys never do",
        spec="6.1",
        receipt=sign(f"{b64(json_bytes(HEADER | {'kid': kid_of(OLD_KEY)}))}.{b64(_PAYLOAD_BYTES)}", OLD_KEY).encode(),
        expect="kid_unknown",
    )
