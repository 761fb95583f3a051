"""Public keys of the release ceremony: Ed25519 JWKs, named by their thumbprints (RFC 7517, RFC 7638, RFC 8037).

The key id is always the thumbprint, so that no two keys share one and a key cannot go by the name of another.
Implements docs/operations/release.md, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tresor.encodings import JsonValue, base64url_decode, base64url_encode
from tresor.errors import EncodingError
from tresor.trust.eddsa import check_public_key, thumbprint
from tresor.trust.errors import TrustCode, TrustMalformedError

__all__ = ["MAX_KEYS", "OkpJwk", "TrustKey", "parse_jwk", "parse_jwks"]

MAX_KEYS: Final = 64
_PRIVATE_MEMBERS: Final = frozenset({"d", "k", "p", "q", "dp", "dq", "qi", "oth"})


class OkpJwk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An Ed25519 public key as it stands in a file or a bundle."""

    kty: str
    crv: str
    x: str
    kid: str | None = None
    alg: str | None = None
    use: str | None = None
    key_ops: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class TrustKey:
    """A public key that passed `check_public_key`.

    Attributes:
        kid: its RFC 7638 thumbprint in base64url, 43 characters.
        raw: the compressed point, 32 bytes.
    """

    kid: str
    raw: bytes

    @classmethod
    def of(cls, key: Ed25519PublicKey) -> Self:
        """Check a key of the library and name it."""
        raw = key.public_bytes_raw()
        check_public_key(raw)
        return cls(kid=thumbprint(raw), raw=raw)

    def jwk(self) -> OkpJwk:
        """Return the key as it stands in files and bundles."""
        return OkpJwk(kty="OKP", crv="Ed25519", x=base64url_encode(self.raw), kid=self.kid, alg="EdDSA", use="sig")


def parse_jwks(value: JsonValue, where: str) -> Mapping[str, TrustKey]:
    """Read a JWK set, whole or not at all, into keys by kid.

    Raises:
        TrustMalformedError: not a JWK set, no key in it, a key twice, or a key that `parse_jwk` refuses.
    """
    entries = value.get("keys") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise TrustMalformedError(
            TrustCode.KEY_MALFORMED, f"{where} is not an object with one array `keys` of at most {MAX_KEYS}"
        )
    if not entries:
        raise TrustMalformedError(TrustCode.KEYS_EMPTY, f"{where} holds no key, so nothing can verify")
    keys: dict[str, TrustKey] = {}
    for position, entry in enumerate(entries):
        key = parse_jwk(entry, f"{where}.keys[{position}]")
        if key.kid in keys:
            raise TrustMalformedError(TrustCode.KEY_DUPLICATE, f"{where}: {key.kid} stands there twice")
        keys[key.kid] = key
    return keys


def parse_jwk(value: JsonValue, where: str) -> TrustKey:
    """Read one public Ed25519 signature key.

    Raises:
        TrustMalformedError: not a JWK, private, of another type, use or algorithm, no point that binds its signer, or
            under a kid that is not its thumbprint.
    """
    if isinstance(value, dict) and _PRIVATE_MEMBERS & value.keys():
        raise TrustMalformedError(TrustCode.KEY_PRIVATE, f"{where} holds private key material")
    try:
        jwk = msgspec.convert(value, OkpJwk)
    except msgspec.ValidationError as error:
        raise TrustMalformedError(TrustCode.KEY_MALFORMED, f"{where}: {error}") from error
    for member, got, wanted in (
        ("kty", jwk.kty, ("OKP",)),
        ("crv", jwk.crv, ("Ed25519",)),
        ("alg", jwk.alg, ("EdDSA", "Ed25519", None)),  # RFC 8037 and RFC 9864 name one algorithm
        ("use", jwk.use, ("sig", None)),
        ("key_ops", jwk.key_ops, (("verify",), None)),
    ):
        if got not in wanted:
            raise TrustMalformedError(
                TrustCode.KEY_NOT_ALLOWED, f"{where}: {member} is {str(got)[:32]!r}, want {wanted[0]!r}"
            )
    try:
        raw = base64url_decode(jwk.x)
    except EncodingError as error:
        raise TrustMalformedError(TrustCode.KEY_MALFORMED, f"{where}: x: {error}") from error
    check_public_key(raw)
    key = TrustKey(kid=thumbprint(raw), raw=raw)
    if jwk.kid not in (key.kid, None):
        raise TrustMalformedError(
            TrustCode.KID_INVALID, f"{where}: kid is {str(jwk.kid)[:64]!r}, want the thumbprint {key.kid!r} (RFC 7638)"
        )
    return key
