"""AWS Nitro attestation documents: signed by AWS, or not (docs/spec/attestation.md, 5.5.2).

Implements the "cryptographic" part of AWS's attestation process: ES384 over the Sig_structure of RFC 9052, section 4.4,
by the key of a certificate whose whole chain is carried by the document, up to the pinned root.

Not looked at: what the document says (`appraise.py`), and revocation, which AWS tells verifiers to disable: a leaf
lives three hours.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError, EvidenceUndecidedError
from tresor.attestation.nitro.abi import SIGNATURE_BYTES, NitroDocument, UnverifiedDocument
from tresor.attestation.x509 import build_chain, load_certificate

__all__ = ["GenuineDocument", "verify_document"]

_PROTECTED: Final = cbor2.dumps({1: -35})  # alg: ES384 (RFC 9053, section 2.1), and nothing else


@dataclass(frozen=True, slots=True)
class GenuineDocument:
    """A document that AWS signed; nothing says yet that it is wanted.

    Attributes:
        document: its fields.
        chain: leaf first, pinned root last.
    """

    document: NitroDocument
    chain: tuple[x509.Certificate, ...]


def verify_document(
    unverified: UnverifiedDocument, *, roots: tuple[x509.Certificate, ...], now: datetime
) -> GenuineDocument:
    """Verify that AWS signed a document.

    Args:
        unverified: what `parse_document` read.
        roots: pinned roots of AWS Nitro.
        now: instant at which every certificate must be valid (aware, UTC).

    Raises:
        EvidenceMalformedError: a certificate is not one.
        EvidenceForgedError: another algorithm, a chain that is not the one carried or not to a pinned root, or a bad
            signature.
    """
    if unverified.protected != _PROTECTED:  # (3)
        raise EvidenceForgedError(
            AttestationCode.ALGORITHM_NOT_ALLOWED, "protected header is not {alg: ES384}, the only one allowed"
        )
    document = unverified.document
    chain = _chain(document, roots, now)  # (4)
    _check_may_sign(chain[0])
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EvidenceForgedError(AttestationCode.ALGORITHM_NOT_ALLOWED, "the leaf's key is not on P-384")
    half = SIGNATURE_BYTES // 2
    r, s = (int.from_bytes(part) for part in (unverified.signature[:half], unverified.signature[half:]))
    signed = cbor2.dumps(["Signature1", unverified.protected, b"", unverified.payload])
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))  # (5)
    except InvalidSignature as error:
        raise EvidenceForgedError(
            AttestationCode.SIGNATURE_INVALID, f"signature is not by the key of {chain[0].subject.rfc4514_string()}"
        ) from error
    return GenuineDocument(document, chain)


def _chain(document: NitroDocument, roots: tuple[x509.Certificate, ...], now: datetime) -> tuple[x509.Certificate, ...]:
    """Build the chain and compare it with the one carried: complete, in AWS's order, without strangers."""
    carried = tuple(load_certificate(der) for der in (document.certificate, *reversed(document.cabundle)))
    try:
        chain = build_chain(carried[0], carried[1:], roots=roots, now=now)
    except EvidenceUndecidedError as error:
        # Not a gap that collateral could fill: the bundle is part of what was signed.
        raise EvidenceForgedError(AttestationCode.CHAIN_INVALID, f"cabundle is incomplete: {error}") from error
    if chain != carried:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID, "cabundle is not the chain of the certificate, root first"
        )
    return chain


def _check_may_sign(leaf: x509.Certificate) -> None:
    """Check the role of the leaf: to sign documents, and not to issue certificates."""
    try:
        issues = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        signs = leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound as error:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID, "the leaf does not state its key usage and basic constraints"
        ) from error
    if issues or not signs:
        raise EvidenceForgedError(AttestationCode.CHAIN_INVALID, "the leaf is a CA, or may not sign documents")
