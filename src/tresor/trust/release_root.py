"""Key files of the release ceremony, as bytes (docs/operations/release.md, section 3).

A private key is PKCS #8 in PEM, with a passphrase if its owner wants one; a public key is a JWK, or a
SubjectPublicKeyInfo in PEM.  The release root and the keys that sign manifests have one form; what a key may sign is
said by whoever trusts it.
"""

from typing import Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tresor.encodings import parse_json
from tresor.errors import JsonError
from tresor.trust.errors import TrustCode, TrustMalformedError
from tresor.trust.jwk import TrustKey, parse_jwk

__all__ = [
    "MAX_KEY_BYTES",
    "encode_private_key",
    "encode_public_jwk",
    "encode_public_pem",
    "is_encrypted",
    "parse_private_key",
    "parse_public_key",
]

MAX_KEY_BYTES: Final = 16 * 1024
_PEM_MARK: Final = b"-----BEGIN "
_PRIVATE_MARK: Final = b"PRIVATE KEY-----"


def encode_private_key(key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    """Return PKCS #8 in PEM; with a passphrase, as PBES2 with AES-256-CBC and 2048 rounds of PBKDF2.

    So few rounds make guessing cheap: a passphrase must be long by itself.
    """
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def is_encrypted(pem: bytes) -> bool:
    """Whether a private key needs a passphrase."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem


def parse_private_key(pem: bytes, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        TrustMalformedError: not PKCS #8 in PEM, not Ed25519, or the passphrase is missing, wrong or not needed.
    """
    if is_encrypted(pem) != (passphrase is not None):
        detail = "is encrypted and needs a passphrase" if passphrase is None else "is not encrypted"
        raise TrustMalformedError(TrustCode.PASSPHRASE_WRONG, f"the private key {detail}")
    try:
        key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if passphrase is not None:  # a wrong one shows as broken padding, or as DER that is none
            raise TrustMalformedError(TrustCode.PASSPHRASE_WRONG, "the passphrase does not open the key") from error
        raise TrustMalformedError(TrustCode.KEY_MALFORMED, "not a private key in PEM (PKCS #8)") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustMalformedError(TrustCode.KEY_NOT_ALLOWED, "the private key is not Ed25519")
    return key


def encode_public_jwk(key: TrustKey) -> bytes:
    """Return the public file: a JWK, and a line end."""
    return msgspec.json.encode(key.jwk()) + b"\n"


def encode_public_pem(key: TrustKey) -> bytes:
    """Return SubjectPublicKeyInfo in PEM, which OpenSSL reads."""
    return Ed25519PublicKey.from_public_bytes(key.raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def parse_public_key(data: bytes) -> TrustKey:
    """Read a public key: a JWK, or SubjectPublicKeyInfo in PEM.

    Raises:
        TrustMalformedError: neither, a private key, or a key that `parse_jwk` refuses.
    """
    if len(data) > MAX_KEY_BYTES:
        raise TrustMalformedError(
            TrustCode.KEY_MALFORMED, f"public key is {len(data)} bytes, want at most {MAX_KEY_BYTES}"
        )
    if _PRIVATE_MARK in data:
        raise TrustMalformedError(TrustCode.KEY_PRIVATE, "this is a private key, and a public one is wanted")
    if _PEM_MARK not in data:
        try:
            return parse_jwk(parse_json(data), "public key")
        except JsonError as error:
            raise TrustMalformedError(TrustCode.KEY_MALFORMED, f"public key is neither PEM nor JWK: {error}") from error
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustMalformedError(TrustCode.KEY_MALFORMED, "PEM text holds no public key (RFC 7468, 13)") from error
    if not isinstance(key, Ed25519PublicKey):
        raise TrustMalformedError(TrustCode.KEY_NOT_ALLOWED, "the public key is not Ed25519")
    return TrustKey.of(key)
