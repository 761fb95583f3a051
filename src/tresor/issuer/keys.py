"""Where signing keys come from, and what binds them to hardware.

Outside a TEE a key lives in a file (`tresor.issuer.key_files`); inside one it is made in memory and signs only while
evidence binds it (`tresor.identity.attested_keys`).  Implements docs/spec/receipt.md section 6.
"""

from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from tresor.store.base import EvidenceItem

__all__ = ["AttestationBlock", "KeyAttestation", "KeySource"]


@dataclass(slots=True, repr=False, eq=False)
class AttestationBlock:
    """An attestation block that many receipts carry, encoded once, and what it refers to.

    Attributes:
        json: the claim's value.
        evidence: what it refers to by digest.
        expires_at: Unix seconds until which receipts are expected to carry it.
        stored_until: Unix seconds up to which the store keeps the evidence for receipts; 0 where it has none of it.
    """

    json: bytes
    evidence: tuple[EvidenceItem, ...]
    expires_at: float
    stored_until: float = 0.0

    def __repr__(self) -> str:
        return f"<AttestationBlock {len(self.json)} bytes, evidence={len(self.evidence)} until={self.expires_at:.0f}>"


@dataclass(frozen=True, slots=True, repr=False)
class KeyAttestation:
    """Evidence that binds a signing key, for a while.

    Attributes:
        envelope: what `GET /attestation` answers, JSON.
        block: the claim `router_attestation` of receipts: the same with its bulky parts by digest; no receipt may be
            signed under it once it has expired.
        issued_at: Unix seconds.
        simulated: no hardware stands behind it.
    """

    envelope: bytes
    block: AttestationBlock
    issued_at: float
    simulated: bool

    @property
    def expires_at(self) -> float:
        """Unix seconds from which it counts no more."""
        return self.block.expires_at

    def __repr__(self) -> str:
        return f"<KeyAttestation {self.block!r}>"


class KeySource(Protocol):
    """Gives a router process its signing keys; every method blocks."""

    @property
    def attested(self) -> bool:
        """Whether keys of this source may only sign while evidence binds them."""

    def load(self) -> tuple[ec.EllipticCurvePrivateKey, int] | None:
        """Return the key that an earlier process left for this one and since when it exists, or None.

        Raises:
            KeyFileError: there is one, and it cannot be used.
        """

    def make(self) -> ec.EllipticCurvePrivateKey:
        """Make a new key; where keys are kept, it is durable when this returns.

        Raises:
            KeyFileError: it cannot be kept.
        """

    def attest(self, key: ec.EllipticCurvePrivateKey) -> KeyAttestation | None:
        """Have the hardware bind `key`; None where nothing is attested.

        Raises:
            KeyNotAttestedError: evidence could not be had.
        """
