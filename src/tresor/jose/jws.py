"""Compact JWS for receipts: one algorithm, one type, keys only from outside (RFC 7515, RFC 8725).

Well-formed and genuine are two functions: `parse_compact` reads, `verify_compact` asks a key.  The signed bytes are
kept as they came and never encoded again.  Implements docs/spec/receipt.md section 2.
"""

from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from tresor.encodings import JsonValue, base64url_decode, base64url_encode, parse_json
from tresor.errors import EncodingError, JsonError, ReceiptCode, ReceiptMalformedError
from tresor.jose.es256 import sign_es256, verify_es256
from tresor.limits import MAX_TOKEN_BYTES

__all__ = [
    "RECEIPT_TYP",
    "SignedJws",
    "UnverifiedJws",
    "encode_protected_header",
    "parse_compact",
    "sign_jws",
    "verify_compact",
]

RECEIPT_TYP = "tresor-receipt+jwt"
_SEGMENTS = 3
_KEY_MEMBERS = frozenset({"jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256"})
_KNOWN_MEMBERS = frozenset({"alg", "kid", "typ"})


@dataclass(frozen=True, slots=True, repr=False)
class UnverifiedJws:
    """A well-formed receipt token of which nothing has been verified.

    Attributes:
        kid: key id its header names.
        signing_input: the bytes that the signature covers, as received (RFC 7515, 5.1).
        payload: decoded payload bytes.
        signature: decoded signature bytes.
    """

    kid: str
    signing_input: bytes
    payload: bytes
    signature: bytes


class SignedJws(msgspec.Struct, frozen=True, gc=False):
    """The three parts of a token that was signed, as octets (RFC 7515, 3).

    Attributes:
        protected: the protected header, JSON.
        payload: JSON.
        signature: r and s, 64 bytes, big-endian.
    """

    protected: bytes
    payload: bytes
    signature: bytes

    def __repr__(self) -> str:
        return f"<SignedJws payload={len(self.payload)} bytes>"

    @property
    def compact(self) -> str:
        """The token (RFC 7515, 7.1)."""
        return ".".join(map(base64url_encode, (self.protected, self.payload, self.signature)))


def encode_protected_header(kid: str) -> bytes:
    """Return the protected header of every receipt signed with `kid`, as JSON."""
    return f'{{"alg":"ES256","kid":"{kid}","typ":"{RECEIPT_TYP}"}}'.encode()


def sign_jws(private_key: ec.EllipticCurvePrivateKey, protected: bytes, payload: bytes) -> SignedJws:
    """Sign `payload` behind a header made by `encode_protected_header`."""
    signing_input = f"{base64url_encode(protected)}.{base64url_encode(payload)}".encode()
    return SignedJws(protected, payload, sign_es256(private_key, signing_input))


def parse_compact(token: str) -> UnverifiedJws:
    """Read a compact JWS whose header is that of a receipt.

    Raises:
        ReceiptMalformedError: the token is not one compact JWS, or its header is not exactly alg ES256, typ
            `tresor-receipt+jwt` and a kid.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise ReceiptMalformedError(
            ReceiptCode.TOKEN_TOO_LARGE, f"token is {len(token)} characters, want at most {MAX_TOKEN_BYTES}"
        )
    segments = token.split(".")
    if len(segments) != _SEGMENTS:
        raise ReceiptMalformedError(
            ReceiptCode.TOKEN_MALFORMED, f"token has {len(segments)} segments, want 3 (RFC 7515, 3.1)"
        )
    try:
        header, payload, signature = (base64url_decode(segment) for segment in segments)
    except EncodingError as error:
        raise ReceiptMalformedError(ReceiptCode.BASE64URL_MALFORMED, f"token: {error}") from error
    try:
        members = parse_json(header)
    except JsonError as error:
        raise ReceiptMalformedError(ReceiptCode.JSON_MALFORMED, f"protected header: {error}") from error
    kid = _check_header(members)
    return UnverifiedJws(
        kid=kid, signing_input=token.rpartition(".")[0].encode("ascii"), payload=payload, signature=signature
    )


def verify_compact(jws: UnverifiedJws, public_key: ec.EllipticCurvePublicKey) -> bytes:
    """Verify the signature and return the payload it covers.

    Raises:
        ReceiptMalformedError: the signature is not 64 bytes of two integers in range.
        ReceiptSignatureError: `public_key` did not sign this.
    """
    verify_es256(public_key, jws.signing_input, jws.signature)
    return jws.payload


def _check_header(members: JsonValue) -> str:
    if not isinstance(members, dict):
        raise ReceiptMalformedError(ReceiptCode.TOKEN_MALFORMED, "protected header is not a JSON object")
    if members.get("alg") != "ES256":
        raise ReceiptMalformedError(ReceiptCode.ALG_NOT_ALLOWED, "alg is not ES256, the only algorithm of a receipt")
    if "crit" in members:
        raise ReceiptMalformedError(
            ReceiptCode.CRIT_NOT_UNDERSTOOD, "crit names extensions, and receipts have none (RFC 7515, 4.1.11)"
        )
    if carried := sorted(_KEY_MEMBERS & members.keys()):
        raise ReceiptMalformedError(
            ReceiptCode.KEY_IN_TOKEN, f"header carries {', '.join(carried)}: a receipt does not bring its own key"
        )
    if members.get("typ") != RECEIPT_TYP:
        raise ReceiptMalformedError(ReceiptCode.TYP_MISMATCH, f"typ is not {RECEIPT_TYP!r}")
    if unknown := sorted(members.keys() - _KNOWN_MEMBERS):
        raise ReceiptMalformedError(
            ReceiptCode.HEADER_NOT_ALLOWED, f"header has {unknown[0][:32]!r}, want only alg, kid and typ"
        )
    kid = members.get("kid")
    if not isinstance(kid, str) or not kid:
        raise ReceiptMalformedError(ReceiptCode.KID_INVALID, "kid is missing or not a string")
    return kid
