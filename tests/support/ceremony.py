"""A release ceremony of the tests' own, and the envelopes of nodes that it releases.

    ceremony = simulated_ceremony(tmp_path)                    # root, manifest and bundle as files, all good
    start_router([...], tls=tls, settings={"identity": ceremony.identity()})
    ceremony.publish(version=2)                                # another bundle in the place of the first
    envelope = ceremony.envelope(spki_sha256, receipt_key, nonce=nonce)

Behind it stands a simulated root, or an AMD of the tests' own (`amd_ceremony`), whose root verifiers take only where a
test pins it.  REPORT_DATA is made here from the contract's words, not by the code under test.
"""

import base64
import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.fake_amd import TCB, Chip, FakeAmd, fake_amd, make_report
from tresor.attestation.simulated.layout import measurement_of
from tresor.encodings import digest_string, rfc3339
from tresor.identity.simulated import SimulatedRoot
from tresor.jose.jwk import public_jwk
from tresor.trust.bundle import BundleClaims, TrustBundle, parse_bundle, sign_bundle, verify_bundle
from tresor.trust.jwk import TrustKey
from tresor.trust.manifest import ManifestClaims, sign_manifest
from tresor.trust.release_root import encode_public_jwk

__all__ = [
    "AmdHost",
    "Ceremony",
    "amd_ceremony",
    "certificate_table",
    "fingerprint",
    "report_data_of",
    "simulated_ceremony",
    "simulated_inference_block",
    "spki_of",
]

IMAGE_DIGEST = hashlib.sha256(b"the image of the tests").digest()
_VCEK_GUID = "63da758d-e664-4564-adc5-f4b93be8accd"
_ASK_GUID = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
Report = Callable[[bytes], tuple[bytes, tuple[bytes, ...]]]
"""REPORT_DATA to a report and the certificates that come with it, DER."""


def spki_of(certificate_file: Path) -> bytes:
    """Return the SHA-256 of the SubjectPublicKeyInfo of a certificate."""
    key = x509.load_pem_x509_certificate(certificate_file.read_bytes()).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def report_data_of(spki_sha256: bytes, tag: bytes, receipt_key: ec.EllipticCurvePublicKey, nonce: bytes = b"") -> bytes:
    """Return REPORT_DATA as contract section 6 has it."""
    jwk = public_jwk(receipt_key)
    members = f'{{"crv":"P-256","kty":"EC","x":"{jwk.x}","y":"{jwk.y}"}}'
    thumbprint = hashlib.sha256(members.encode()).digest()
    channel = hashlib.sha256(spki_sha256 + tag).digest()
    return channel + hashlib.sha256(b"tresor.receipt-key/v1\0" + thumbprint + nonce).digest()


def simulated_inference_block(
    parts: Iterable[tuple[str, str, bytes]], *, spki: bytes, nonce: bytes, at: datetime
) -> dict[str, Any]:
    """Return a receipt's `inference_attestation` for a simulated node.

    Args:
        parts: its evidence; of each the type, the media type and the bytes.
        spki: SHA-256 of the node's SubjectPublicKeyInfo.
        nonce: that it was asked with.
        at: when it was verified.
    """
    unknown = {"status": "unknown", "source": "operator", "reason": "simulated"}
    return {
        "provider": "itself",
        "tee": "simulated",
        "status": "unverified",
        "required": True,
        "origin": "tresor",
        "verified_at": rfc3339(at.timestamp()),
        "expires_at": rfc3339((at + timedelta(minutes=10)).timestamp()),
        "verifier": "tests",
        "channel_binding": {"type": "tls_spki_sha256", "spki_sha256": spki.hex()},
        "measurements": {},
        "claims": dict.fromkeys(("cpu_tee", "gpu_tee", "tcb", "workload"), unknown),
        "nonce": nonce.hex(),
        "evidence": [
            {"type": kind, "digest": digest_string(data), "media_type": media_type, "size": len(data)}
            for kind, media_type, data in parts
        ],
    }


def fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(SHA256()).hex()


@dataclass(frozen=True)
class Ceremony:
    """Keys of a release, and its files in `folder`.

    Attributes:
        workload: name of the service.
        report: the machine that it runs on.
        bundle_members: what its bundles say of that machine.
        tee: as envelopes name it.
    """

    folder: Path
    workload: str
    report: Report
    bundle_members: Mapping[str, Any]
    tee: str = "simulated"
    root: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    manifest_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def root_file(self) -> Path:
        return self.folder / "release-root.jwk"

    @property
    def manifest_file(self) -> Path:
        return self.folder / "manifest.jws"

    @property
    def bundle_file(self) -> Path:
        return self.folder / "bundle.jws"

    @property
    def trust_key(self) -> TrustKey:
        return TrustKey.of(self.root.public_key())

    @property
    def manifest_jws(self) -> str:
        return self.manifest_file.read_text()

    @property
    def tag(self) -> bytes:
        return hashlib.sha256(self.manifest_jws.encode()).digest()

    def release(self) -> None:
        """Write root, manifest and the first bundle."""
        self.root_file.write_bytes(encode_public_jwk(self.trust_key))
        self.manifest_file.write_text(self.manifest())
        self.publish()

    def manifest(self, key: Ed25519PrivateKey | None = None, **changes: Any) -> str:
        """Return a manifest."""
        digest = f"sha256:{IMAGE_DIGEST.hex()}"
        members = {
            "schema": "workload-identity/v1",
            "workload": self.workload,
            "version": "1.0",
            "image_digest": digest,
            "binary_digest": digest,
            "build_metadata": {},
        }
        return sign_manifest(msgspec.convert(members | changes, ManifestClaims), key or self.manifest_key)

    def bundle(self, root: Ed25519PrivateKey | None = None, **changes: Any) -> str:
        """Return a bundle that allows the manifest and the machine, but for `changes`."""
        now = datetime.now(UTC)
        members: dict[str, Any] = {
            "schema": "tresor.trust-bundle/v1",
            "workload": self.workload,
            "version": 1,
            "issued_at": rfc3339((now - timedelta(days=1)).timestamp()),
            "valid_until": rfc3339((now + timedelta(days=30)).timestamp()),
            "allowed_workload_identity_tags": [f"sha256:{self.tag.hex()}"],
            "min_tcb": {},
            "manifest_keys": {"keys": [msgspec.to_builtins(TrustKey.of(self.manifest_key.public_key()).jwk())]},
            **self.bundle_members,
        }
        return sign_bundle(msgspec.convert(members | changes, BundleClaims), root or self.root)

    def publish(self, **changes: Any) -> str:
        """Put another bundle in the place of the one that is there."""
        token = self.bundle(**changes)
        fresh = self.bundle_file.with_suffix(".new")
        fresh.write_text(token)
        fresh.replace(self.bundle_file)
        return token

    def in_force(self, **changes: Any) -> TrustBundle:
        """Return a bundle as a verifier holds it that took everything about it."""
        token = self.bundle(**changes)
        return verify_bundle(
            parse_bundle(token.encode()), self.trust_key, now=datetime.now(UTC), min_version=0, allow_simulated=True
        )

    def identity(self, **settings: Any) -> dict[str, Any]:
        """Return the table `[identity]` of a router on this machine."""
        return {
            "tee": self.tee,
            "manifest_file": str(self.manifest_file),
            "trust_bundle_file": str(self.bundle_file),
            "simulated_root_file": str(self.folder / "simulated-root.pem"),
            "fetch_collateral": False,
        } | settings

    def members(
        self,
        spki_sha256: bytes,
        receipt_key: ec.EllipticCurvePublicKey,
        /,
        *,
        nonce: bytes = b"",
        age: timedelta = timedelta(),
        issued_at: datetime | None = None,
        signed: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """Return the members of an envelope.

        Args:
            spki_sha256: of the TLS key.
            receipt_key: the key that is bound.
            nonce: the challenge.
            age: how long ago it was issued.
            issued_at: when it was, exactly; None for `age`.
            signed: what the hardware is made to sign in the place of what the envelope says: `spki_sha256`, `tag`,
                `receipt_key`, `nonce`.
            changes: to the members.
        """
        bound: dict[str, Any] = {
            "spki_sha256": spki_sha256,
            "tag": self.tag,
            "receipt_key": receipt_key,
            "nonce": nonce,
        }
        report, certificates = self.report(report_data_of(**bound | dict(signed or {})))
        jwk = public_jwk(receipt_key)
        envelope = {
            "schema": "tresor.attestation/v1",
            "workload": self.workload,
            "tee": self.tee,
            "tls_spki_sha256": spki_sha256.hex(),
            "workload_identity_tag": self.tag.hex(),
            "workload_identity_manifest_jws": self.manifest_jws,
            "trust_bundle_url": "https://localhost/.well-known/tresor-trust-bundle",
            "issued_at": rfc3339((issued_at or datetime.now(UTC) - age).timestamp()),
            "max_age_seconds": 600,
            "receipt_key": {"kty": "EC", "crv": "P-256", "x": jwk.x, "y": jwk.y, "kid": jwk.kid},
            "nonce": nonce.hex() or ...,
            "snp_report_b64": base64.b64encode(report).decode(),
            "vcek_chain_pem": "".join(_pem(der) for der in certificates),
        }
        return {name: value for name, value in (envelope | changes).items() if value is not ...}

    def envelope(self, spki_sha256: bytes, receipt_key: ec.EllipticCurvePublicKey, /, **arguments: Any) -> bytes:
        """Return an envelope as a router sends it; see `members`."""
        return msgspec.json.encode(self.members(spki_sha256, receipt_key, **arguments))


def simulated_ceremony(folder: Path, workload: str = "router") -> Ceremony:
    """Make a ceremony on a machine that is none."""
    root = SimulatedRoot.create(datetime.now(UTC))
    root_file = folder / "simulated-root.pem"
    root_file.touch(mode=0o600)
    root_file.write_bytes(root.private_bytes())

    def report(report_data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        processor = root.issue(datetime.now(UTC))
        return processor.report(report_data, IMAGE_DIGEST), processor.certificates

    members = {
        "allowed_hw_measurements": [measurement_of(IMAGE_DIGEST).hex()],
        "hw_roots": {"simulated": root.certificate.public_bytes(Encoding.PEM).decode()},
        "simulated": True,
    }
    ceremony = Ceremony(folder, workload, report, members)
    ceremony.release()
    return ceremony


@dataclass(frozen=True)
class AmdHost:
    """A machine of the tests' own AMD; `fields` of its reports may be changed at any time."""

    amd: FakeAmd
    chip: Chip
    fields: dict[str, Any] = field(default_factory=dict)

    def report(self, report_data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        report = make_report(self.amd.product, chip_id=self.chip.chip_id, report_data=report_data, **self.fields)
        return self.chip.sign(report), (self.chip.der, *self.amd.issuers)


def amd_ceremony(folder: Path, workload: str = "router") -> tuple[Ceremony, AmdHost]:
    """Make a ceremony on a machine of the tests' own AMD."""
    amd, year = fake_amd("Milan"), timedelta(days=365)
    host = AmdHost(amd, amd.vcek(not_before=datetime.now(UTC) - year, not_after=datetime.now(UTC) + year))
    members = {
        "allowed_hw_measurements": [(b"\xab" * 48).hex()],
        "min_tcb": {"Milan": {part: TCB[part] for part in ("bl", "tee", "snp", "ucode")}},
        "hw_roots": {"amd": amd.ark.public_bytes(Encoding.PEM).decode()},
    }
    ceremony = Ceremony(folder, workload, host.report, members, "sev-snp")
    ceremony.release()
    return ceremony, host


def certificate_table(vcek: bytes, ask: bytes) -> bytes:
    """Return the table that a host hands out beside reports (GHCB 2.03, MSG_REPORT_REQ; AMD 56421)."""
    entries = ((UUID(_VCEK_GUID).bytes, vcek), (UUID(_ASK_GUID).bytes, ask))
    offset = 24 * (len(entries) + 1)
    head, body = b"", b""
    for guid, der in entries:
        head += guid + struct.pack("<II", offset + len(body), len(der))
        body += der
    return head + bytes(24) + body


def _pem(der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = "".join(f"{text[start : start + 64]}\n" for start in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n"
