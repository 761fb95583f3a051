"""ES256: ECDSA on P-256 with SHA-256 and the raw signature form of RFC 7518 section 3.4.

A signature is 64 bytes, r and s as 32 bytes each, big-endian.  We always emit the lower of the two values of s that
verify; we accept both, as other signers do not choose.  Nothing identifies a receipt by its signature bytes.
"""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from tresor.errors import ReceiptCode, ReceiptMalformedError, ReceiptSignatureError

__all__ = ["SIGNATURE_BYTES", "sign_es256", "verify_es256"]

SIGNATURE_BYTES = 64
_ECDSA_SHA256 = ec.ECDSA(SHA256())
_ECDSA_PREHASHED = ec.ECDSA(Prehashed(SHA256()))  # hashlib spares the library some set-up per signature
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # order of P-256, SP 800-186 section 3.2.1.3
_HALF_N = _N >> 1


def sign_es256(private_key: ec.EllipticCurvePrivateKey, signing_input: bytes) -> bytes:
    """Sign `signing_input` and return r and s as 64 bytes, big-endian, s in the lower half."""
    der = private_key.sign(hashlib.sha256(signing_input).digest(), _ECDSA_PREHASHED)
    # DER of two P-256 integers is 30 len 02 len r 02 len s, every length in one byte (X.690 8.1.3.4).
    r_end = 4 + der[3]
    s = int.from_bytes(der[r_end + 2 :], "big")
    if s > _HALF_N:
        s = _N - s
    return int.from_bytes(der[4:r_end], "big").to_bytes(32, "big") + s.to_bytes(32, "big")


def verify_es256(public_key: ec.EllipticCurvePublicKey, signing_input: bytes, signature: bytes) -> None:
    """Verify a raw 64-byte signature.

    Raises:
        ReceiptMalformedError: not 64 bytes, or r or s is zero or not below the order (CVE-2022-21449).
        ReceiptSignatureError: the key did not sign this.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise ReceiptMalformedError(
            ReceiptCode.SIGNATURE_MALFORMED,
            f"ES256 signature is {len(signature)} bytes, want {SIGNATURE_BYTES} (RFC 7518, 3.4)",
        )
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < _N and 0 < s < _N):
        raise ReceiptMalformedError(
            ReceiptCode.SIGNATURE_MALFORMED, "ES256 signature has an integer outside 1 to n-1 (RFC 7518, 3.4)"
        )
    try:
        public_key.verify(encode_dss_signature(r, s), signing_input, _ECDSA_SHA256)
    except InvalidSignature as error:
        raise ReceiptSignatureError(
            ReceiptCode.SIGNATURE_INVALID, "the key named by kid did not sign this token"
        ) from error
