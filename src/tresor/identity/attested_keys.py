"""`AttestedKeys`: signing keys that live in memory and sign only while the hardware's evidence binds them.

The key source of a router in a TEE (`tresor.issuer.keys.KeySource`): a key is never written anywhere, and is gone with
its process or its rotation.  The hardware is asked one question at a time, over all threads and all processes of the
machine that share the lock.  Implements docs/spec/attestation.md section 6.
"""

import base64
import fcntl
import hashlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tresor.attestation.binding import report_data
from tresor.attestation.blocks import ReceiptKeyJwk
from tresor.attestation.envelope import (
    ENVELOPE_SCHEMA,
    TRUST_BUNDLE,
    CollateralItem,
    Envelope,
    Part,
    block_of,
    evidence_of,
    parts_of,
)
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, CollateralKind, Need
from tresor.attestation.registry import needs
from tresor.encodings import rfc3339
from tresor.errors import KeyNotAttestedError
from tresor.identity.source import CollectedEvidence, EvidenceSource, EvidenceSourceError
from tresor.issuer.keys import AttestationBlock, KeyAttestation
from tresor.jose.jwk import public_jwk, thumbprint
from tresor.store.base import EvidenceItem
from tresor.trust.bundle import parse_bundle
from tresor.trust.errors import TrustError
from tresor.trust.manifest import parse_manifest

__all__ = ["AttestedKeys", "Endorse", "Workload", "load_workload", "spki_sha256"]

Endorse = Callable[[Callable[[Collateral], tuple[Need, ...]], Collateral], Collateral]
"""Given what is needed besides what is at hand, and what is at hand, returns all that is at hand then; blocking."""

_log = logging.getLogger(__name__)

_BUNDLE_MEDIA_TYPE: Final = "application/jose"


@dataclass(frozen=True, slots=True)
class Workload:
    """What runs here, as its manifest says.

    Attributes:
        name: of the service.
        manifest_jws: the compact JWS.
        tag: its SHA-256, 32 bytes.
        image_digest: SHA-256 of the image, 32 bytes.
    """

    name: str
    manifest_jws: str
    tag: bytes
    image_digest: bytes


def load_workload(manifest_file: Path) -> Workload:
    """Read the workload identity manifest; who signed it is for verifiers to ask.

    Raises:
        KeyNotAttestedError: the file cannot be read, or holds no manifest.
    """
    try:
        manifest = parse_manifest(manifest_file.read_bytes().strip())
        claims = manifest.claims()
    except (OSError, TrustError) as error:
        raise KeyNotAttestedError("manifest_unusable", f"workload manifest {manifest_file}: {error}") from error
    return Workload(
        name=claims.workload,
        manifest_jws=manifest.jws.token.decode("ascii"),
        tag=manifest.tag,
        image_digest=bytes.fromhex(claims.image_digest.removeprefix("sha256:")),
    )


def spki_sha256(certificate_file: Path) -> bytes:
    """Return the SHA-256 of the SubjectPublicKeyInfo of the first certificate in a PEM file, 32 bytes.

    Raises:
        KeyNotAttestedError: there is none.
    """
    try:
        leaf = x509.load_pem_x509_certificates(certificate_file.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise KeyNotAttestedError("certificate_unusable", f"TLS certificate {certificate_file}: {error}") from error
    spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


class AttestedKeys:
    """Makes keys and has the hardware bind them.

    Args:
        open_source: finds the way to the hardware; asked again until it does.
        workload: what runs here.
        tls_spki_sha256: of the key that the router's TLS connections use, 32 bytes.
        trust_bundle_url: where verifiers find the bundle.
        trust_bundle_file: the bundle that receipts carry along; None for none.
        max_age_s: how long evidence counts.
        endorse: gets what endorses the evidence; may fail silently, verifiers can get it too.
        lock_file: held while the hardware is asked.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        open_source: Callable[[], EvidenceSource],
        workload: Workload,
        *,
        tls_spki_sha256: bytes,
        trust_bundle_url: str,
        trust_bundle_file: Path | None,
        max_age_s: int,
        endorse: Endorse,
        lock_file: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._open_source = open_source
        self._source: EvidenceSource | None = None
        self._workload = workload
        self._tls_spki_sha256 = tls_spki_sha256
        self._trust_bundle_url = trust_bundle_url
        self._trust_bundle_file = trust_bundle_file
        self._max_age_s = max_age_s
        self._endorse = endorse
        self._lock_file = lock_file
        self._clock = clock
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<AttestedKeys {self._workload.name} from {self._source!r}>"

    @property
    def attested(self) -> bool:
        """Keys sign only while evidence binds them."""
        return True

    def load(self) -> None:
        """Return None: no key outlives its process."""

    def make(self) -> ec.EllipticCurvePrivateKey:
        """Make a key in memory."""
        return ec.generate_private_key(ec.SECP256R1())

    def attest(self, key: ec.EllipticCurvePrivateKey) -> KeyAttestation:
        """Have the hardware bind `key`, for callers who send no nonce and for receipts.

        Raises:
            KeyNotAttestedError: evidence could not be had.
        """
        issued_at = self._clock()
        envelope = self.make_envelope(key)
        try:
            parts = (*parts_of(envelope), *self._trust_bundle())
        except AttestationError as error:
            raise KeyNotAttestedError(error.code, str(error)) from error
        return KeyAttestation(
            envelope=msgspec.json.encode(envelope),
            block=AttestationBlock(
                json=msgspec.json.encode(block_of(envelope, parts)),
                evidence=tuple(EvidenceItem(hashlib.sha256(p.data).digest(), p.media_type, p.data) for p in parts),
                expires_at=issued_at + self._max_age_s,
            ),
            issued_at=issued_at,
            simulated=envelope.tee == "simulated",
        )

    def make_envelope(self, key: ec.EllipticCurvePrivateKey, *, nonce: bytes = b"") -> Envelope:
        """Have the hardware bind `key` and `nonce` (0 or 32 bytes); blocking.

        Raises:
            KeyNotAttestedError: evidence could not be had.
        """
        jwk = public_jwk(key.public_key())
        data = report_data(self._tls_spki_sha256, self._workload.tag, thumbprint(jwk.x, jwk.y), nonce)
        issued_at = self._clock()
        try:
            with self._alone():
                if self._source is None:
                    self._source = self._open_source()
                collected = self._source.collect(data)
        except EvidenceSourceError as error:
            raise KeyNotAttestedError(error.code, str(error)) from error
        except OSError as error:
            raise KeyNotAttestedError("lock_unusable", f"lock file {self._lock_file}: {error.strerror}") from error
        envelope = Envelope(
            schema=ENVELOPE_SCHEMA,
            workload=self._workload.name,
            tee=collected.tee,
            tls_spki_sha256=self._tls_spki_sha256.hex(),
            workload_identity_tag=self._workload.tag.hex(),
            workload_identity_manifest_jws=self._workload.manifest_jws,
            issued_at=rfc3339(issued_at),
            max_age_seconds=self._max_age_s,
            receipt_key=ReceiptKeyJwk(kty="EC", crv="P-256", x=jwk.x, y=jwk.y, kid=jwk.kid),
            trust_bundle_url=self._trust_bundle_url,
            nonce=nonce.hex() or None,
        )
        members = {f"{name}_b64": base64.b64encode(part).decode() for name, part in collected.parts.items()}
        try:
            return self._endorsed(msgspec.structs.replace(envelope, **members), collected)
        except AttestationError as error:
            raise KeyNotAttestedError(error.code, str(error)) from error

    def _endorsed(self, envelope: Envelope, collected: CollectedEvidence) -> Envelope:
        """Add what endorses the evidence, so that whoever keeps it can verify it offline."""
        own = Collateral(certificates=collected.certificates)
        evidence = evidence_of(envelope)
        known = self._endorse(lambda held: needs(evidence, held), own)
        chain = "".join(map(ssl.DER_cert_to_PEM_cert, known.certificates))
        items = (
            CollateralItem(media_type=kind, data=base64.b64encode(document).decode())
            for kind, document in known.documents()
            if kind != CollateralKind.CERTIFICATE
        )
        return msgspec.structs.replace(envelope, vcek_chain_pem=chain or None, collateral=tuple(items))

    def _trust_bundle(self) -> tuple[Part, ...]:
        if self._trust_bundle_file is None:
            return ()
        try:
            bundle = self._trust_bundle_file.read_bytes().strip()
            content = parse_bundle(bundle).content()
        except (OSError, TrustError) as error:
            raise KeyNotAttestedError(
                "trust_bundle_unusable", f"trust bundle {self._trust_bundle_file}: {error}"
            ) from error
        # Whose word it is, verifiers ask; that it is about something else is seen from here, too.
        reasons = [
            reason
            for fits, reason in (
                (content.claims.workload == self._workload.name, f"is about {content.claims.workload!r}"),
                (self._workload.tag in content.tags, "does not allow this manifest"),
                (self._clock() < content.valid_until.timestamp(), f"ended at {content.claims.valid_until}"),
            )
            if not fits
        ]
        if reasons:
            _log.error("trust bundle does not fit", extra={"fault": ", ".join(reasons)})
        return (Part(TRUST_BUNDLE, _BUNDLE_MEDIA_TYPE, bundle),)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep every other thread, and every process with the same lock file, from asking the hardware."""
        with self._lock:
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
