"""Public receipt keys: JWK, thumbprint, JWK set (RFC 7517, RFC 7638).

A key set is parsed whole or refused whole: one bad member means somebody edited the set.  `iat`, `exp` and `revoked`
follow OpenID Federation 1.0 section 8.7 (historical keys).  Implements docs/spec/receipt.md section 6.
"""

import hashlib

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from tresor.encodings import base64url_decode, base64url_encode, parse_json
from tresor.errors import EncodingError, JsonError, ReceiptCode, ReceiptMalformedError
from tresor.limits import MAX_JWKS_BYTES

__all__ = ["KID_PREFIX", "Jwk", "ReceiptKey", "Revocation", "kid_of", "parse_jwks", "public_jwk", "thumbprint"]

KID_PREFIX = "router-receipt-"
_COORDINATE_BYTES = 32
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class Revocation(msgspec.Struct, frozen=True):
    """When and why a key was revoked (OpenID Federation 1.0, 8.7)."""

    revoked_at: int
    reason: str | None = None


class Jwk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One ES256 public key as it stands in the key set.  Times are Unix seconds."""

    kty: str
    crv: str
    x: str
    y: str
    kid: str
    alg: str | None = None
    use: str | None = None
    key_ops: tuple[str, ...] | None = None
    iat: int | None = None
    exp: int | None = None
    revoked: Revocation | None = None


class ReceiptKey(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed public key of a key set, on the curve and with the kid that its thumbprint demands."""

    kid: str
    public_key: ec.EllipticCurvePublicKey
    not_before: int | None
    not_after: int | None
    revoked: Revocation | None


def thumbprint(x: str, y: str) -> bytes:
    """Return the RFC 7638 thumbprint (32 bytes) of the P-256 key with the base64url coordinates `x`, `y`."""
    return hashlib.sha256(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'.encode()).digest()


def kid_of(x: str, y: str) -> str:
    """Return the key id: `router-receipt-` and the first 16 characters of the base64url thumbprint."""
    return KID_PREFIX + base64url_encode(thumbprint(x, y))[:16]


def public_jwk(key: ec.EllipticCurvePublicKey, *, iat: int | None = None) -> Jwk:
    """Return the JWK of a P-256 public key."""
    numbers = key.public_numbers()
    x, y = (base64url_encode(n.to_bytes(_COORDINATE_BYTES, "big")) for n in (numbers.x, numbers.y))
    return Jwk(kty="EC", crv="P-256", x=x, y=y, kid=kid_of(x, y), alg="ES256", use="sig", iat=iat)


def parse_jwks(data: bytes) -> dict[str, ReceiptKey]:
    """Parse a JWK set into receipt keys by kid.

    Raises:
        ReceiptMalformedError: not a JWK set, no key in it, a kid twice, a private member, a key that is not an ES256
            signature key on P-256, or a kid that is not the one its thumbprint gives.
    """
    if len(data) > MAX_JWKS_BYTES:
        raise ReceiptMalformedError(
            ReceiptCode.JWKS_MALFORMED, f"key set is {len(data)} bytes, want at most {MAX_JWKS_BYTES}"
        )
    try:
        document = parse_json(data)
    except JsonError as error:
        raise ReceiptMalformedError(ReceiptCode.JWKS_MALFORMED, f"key set: {error}") from error
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ReceiptMalformedError(
            ReceiptCode.JWKS_MALFORMED, "key set is not an object with an array `keys` (RFC 7517, 5)"
        )
    if not entries:
        raise ReceiptMalformedError(ReceiptCode.JWKS_EMPTY, "key set holds no key, so nothing can verify")
    keys: dict[str, ReceiptKey] = {}
    for position, entry in enumerate(entries):
        key = _parse_key(entry, f"keys[{position}]")
        if key.kid in keys:
            raise ReceiptMalformedError(ReceiptCode.JWKS_DUPLICATE_KID, f"{key.kid} stands twice in the key set")
        keys[key.kid] = key
    return keys


def _parse_key(entry: object, where: str) -> ReceiptKey:
    if isinstance(entry, dict) and _PRIVATE_MEMBERS & entry.keys():
        raise ReceiptMalformedError(ReceiptCode.JWK_PRIVATE, f"{where} holds private key material")
    try:
        jwk = msgspec.convert(entry, Jwk)
    except msgspec.ValidationError as error:
        raise ReceiptMalformedError(ReceiptCode.JWKS_MALFORMED, f"{where}: {error}") from error
    for member, got, wanted in (
        ("kty", jwk.kty, ("EC",)),
        ("crv", jwk.crv, ("P-256",)),
        ("alg", jwk.alg, ("ES256", None)),
        ("use", jwk.use, ("sig", None)),
        ("key_ops", jwk.key_ops, (("verify",), None)),
    ):
        if got not in wanted:
            raise ReceiptMalformedError(
                ReceiptCode.JWK_NOT_ALLOWED, f"{where}: {member} is {str(got)[:32]!r}, want {wanted[0]!r}"
            )
    try:
        x, y = base64url_decode(jwk.x), base64url_decode(jwk.y)
        if len(x) != _COORDINATE_BYTES or len(y) != _COORDINATE_BYTES:
            raise EncodingError(f"coordinates are {len(x)} and {len(y)} bytes, want 32 each")
        public_key = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        ).public_key()
    except (EncodingError, ValueError) as error:
        raise ReceiptMalformedError(ReceiptCode.JWK_NOT_ALLOWED, f"{where}: not a point of P-256: {error}") from error
    if jwk.kid != (wanted_kid := kid_of(jwk.x, jwk.y)):
        raise ReceiptMalformedError(
            ReceiptCode.KID_THUMBPRINT_MISMATCH,
            f"{where}: kid is {jwk.kid[:64]!r}, want {wanted_kid!r} from the key's thumbprint (RFC 7638)",
        )
    return ReceiptKey(kid=jwk.kid, public_key=public_key, not_before=jwk.iat, not_after=jwk.exp, revoked=jwk.revoked)
