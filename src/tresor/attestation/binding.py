"""What the hardware of a Tresor node signs: REPORT_DATA (contract section 6; docs/spec/attestation.md, 6.2).

channel = SHA-256( tls_spki_sha256 (32 bytes) || workload_identity_tag (32 bytes) )
keys    = SHA-256( "tresor.receipt-key/v1" || 0x00 || RFC 7638 thumbprint (32 bytes) || nonce (0 or 32 bytes) )
REPORT_DATA (64 bytes) = channel || keys; a vTPM quote carries SHA-384(REPORT_DATA) as qualifying data.
"""

import hashlib

__all__ = ["NONCE_BYTES", "channel_half", "keys_half", "report_data"]

NONCE_BYTES = 32
_DIGEST_BYTES = 32
_KEYS_DOMAIN = b"tresor.receipt-key/v1\x00"


def channel_half(tls_spki_sha256: bytes, workload_identity_tag: bytes) -> bytes:
    """Return the first 32 bytes of REPORT_DATA: which TLS key and which workload speak."""
    if len(tls_spki_sha256) != _DIGEST_BYTES or len(workload_identity_tag) != _DIGEST_BYTES:
        raise ValueError("want two SHA-256 digests of 32 bytes")
    return hashlib.sha256(tls_spki_sha256 + workload_identity_tag).digest()


def keys_half(thumbprint: bytes, nonce: bytes) -> bytes:
    """Return the last 32 bytes of REPORT_DATA: which key signs receipts, and whose challenge this answers."""
    if len(thumbprint) != _DIGEST_BYTES or len(nonce) not in (0, NONCE_BYTES):
        raise ValueError("want a thumbprint of 32 bytes and a nonce of 0 or 32")
    return hashlib.sha256(_KEYS_DOMAIN + thumbprint + nonce).digest()


def report_data(tls_spki_sha256: bytes, workload_identity_tag: bytes, thumbprint: bytes, nonce: bytes) -> bytes:
    """Return REPORT_DATA, 64 bytes."""
    return channel_half(tls_spki_sha256, workload_identity_tag) + keys_half(thumbprint, nonce)
