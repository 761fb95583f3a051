"""Ed25519 as the release ceremony uses it: strict keys, strict signatures (RFC 8032, RFC 8037).

Ed25519 libraries differ in what they accept beside what signers make: points of small order, under which one signature
fits every text; points and scalars with a second spelling.  All of that is refused here before the library is asked, so
that nobody but the signer can make a second token of one that is signed, whatever OpenSSL a verifier runs with.  The
equation itself is checked without cofactor (OpenSSL compares R byte by byte).
"""

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc.jwa import EdDSAAlgorithm
from joserfc.jwk import OKPKey

from tresor.trust.errors import TrustCode, TrustMalformedError

__all__ = ["PUBLIC_KEY_BYTES", "SIGNATURE_BYTES", "check_public_key", "is_signed_by", "sign_eddsa", "thumbprint"]

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_POINT_BYTES: Final = 32
_P: Final = (1 << 255) - 19  # the field, RFC 8032 section 5.1
_L: Final = (1 << 252) + 27742317777372353535851937790883648493  # the order of the base point, likewise
_D: Final = -121665 * pow(121666, -1, _P) % _P
_Y_OF_ORDER_8: Final = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The eight points whose order divides the cofactor 8 have these y; the sign of x tells apart those that share one.
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P - 1, _Y_OF_ORDER_8, _P - _Y_OF_ORDER_8})
# The algorithm as an object: joserfc's own registry warns of the name EdDSA, which RFC 9864 replaces by Ed25519.
_EDDSA: Final = EdDSAAlgorithm()


def check_public_key(raw: bytes) -> None:
    """Check that 32 bytes are a public key that binds its signer.

    Not checked: that the point lies in the subgroup of prime order.  A key with a component of small order harms
    its owner alone, who signs whatever it likes anyway.

    Raises:
        TrustMalformedError: not 32 bytes, a second spelling of a point, no point of the curve, or of small order.
    """
    if len(raw) != PUBLIC_KEY_BYTES:
        raise TrustMalformedError(
            TrustCode.KEY_NOT_ALLOWED, f"Ed25519 key is {len(raw)} bytes, want {PUBLIC_KEY_BYTES} (RFC 8032, 5.1.5)"
        )
    y = _canonical_y(raw)
    if y is None:
        raise TrustMalformedError(TrustCode.KEY_WEAK, "Ed25519 key is a second spelling of a point (RFC 8032, 5.1.3)")
    if y in _SMALL_ORDER_Y:
        raise TrustMalformedError(TrustCode.KEY_WEAK, "Ed25519 key has small order: anybody can sign for it")
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P)
    if pow(x_squared, (_P - 1) // 2, _P) != 1:
        raise TrustMalformedError(TrustCode.KEY_NOT_ALLOWED, "Ed25519 key is no point of the curve (RFC 8032, 5.1.3)")


def thumbprint(raw: bytes) -> str:
    """Return the RFC 7638 thumbprint, in base64url, of a public key that was checked."""
    return _okp(raw).thumbprint()


def sign_eddsa(private_key: Ed25519PrivateKey, signing_input: bytes) -> bytes:
    """Sign; the same key and text always give the same 64 bytes (RFC 8032, 5.1.6)."""
    return _EDDSA.sign(signing_input, OKPKey.import_key(private_key))


def is_signed_by(raw: bytes, signing_input: bytes, signature: bytes) -> bool:
    """Whether the public key `raw`, which was checked, made this signature.

    Raises:
        TrustMalformedError: the signature is not 64 bytes, its R has small order or a second spelling, or its S is not
            below the order of the base point.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise TrustMalformedError(
            TrustCode.SIGNATURE_MALFORMED,
            f"EdDSA signature is {len(signature)} bytes, want {SIGNATURE_BYTES} (RFC 8032, 5.1.6)",
        )
    y = _canonical_y(signature[:_POINT_BYTES])
    if y is None or y in _SMALL_ORDER_Y:
        raise TrustMalformedError(
            TrustCode.SIGNATURE_MALFORMED, "EdDSA signature has an R of small order, or in a second spelling"
        )
    if int.from_bytes(signature[_POINT_BYTES:], "little") >= _L:
        raise TrustMalformedError(
            TrustCode.SIGNATURE_MALFORMED, "EdDSA signature has an S that is not below the group's order (5.1.7)"
        )
    return _EDDSA.verify(signing_input, signature, _okp(raw))


def _okp(raw: bytes) -> OKPKey:
    return OKPKey.import_key(Ed25519PublicKey.from_public_bytes(raw))


def _canonical_y(point: bytes) -> int | None:
    """Return the y of a compressed point (little-endian, the top bit is the sign of x), or None where it is >= p."""
    y = int.from_bytes(point, "little") & ((1 << 255) - 1)
    return y if y < _P else None
