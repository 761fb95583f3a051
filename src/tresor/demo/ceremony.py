"""The release ceremony of the demo: the steps of docs/operations/release.md on one laptop, under a SIMULATED root.

A real release root is made once, offline, and its owner hands out the public half.  Here root, manifest key and the
simulated processor's root lie in one folder, which is why the bundle says `"simulated": true` and every verifier
refuses it without `--allow-simulated`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from tresor import __version__
from tresor.attestation.simulated.layout import measurement_of
from tresor.demo.certificates import write_private
from tresor.encodings import rfc3339
from tresor.identity.simulated import SimulatedRoot
from tresor.trust.bundle import (
    BUNDLE_SCHEMA,
    SIMULATED,
    BundleClaims,
    ManifestKeys,
    parse_bundle,
    sign_bundle,
    verify_bundle_signature,
)
from tresor.trust.errors import TrustError
from tresor.trust.jwk import TrustKey
from tresor.trust.manifest import MANIFEST_SCHEMA, ManifestClaims, sign_manifest, workload_identity_tag
from tresor.trust.release_root import encode_private_key, encode_public_jwk, parse_private_key

__all__ = ["perform_ceremony"]

_VALID_FOR: Final = timedelta(days=30)
_RENEW_BEFORE: Final = timedelta(days=2)


def perform_ceremony(folder: Path, workloads: Sequence[str]) -> None:
    """Make what a release makes, in `folder`: `release-root.jwk`, and a manifest and a trust bundle per workload.

    What an earlier run made is kept where it is still good; a new bundle has a higher version than the one before.
    """
    now = datetime.now(UTC)
    pem = _kept(folder / "simulated-root.pem", lambda: SimulatedRoot.create(now).private_bytes())
    ceremony = _Ceremony(
        folder=folder,
        now=now,
        root=_key(folder / "release-root.pem"),
        manifest_key=_key(folder / "manifest-key.pem"),
        processor=SimulatedRoot.load(pem),
        image_digest=_program_digest(),
    )
    (folder / "release-root.jwk").write_bytes(encode_public_jwk(TrustKey.of(ceremony.root.public_key())))
    for workload in workloads:
        ceremony.release(workload)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ceremony:
    folder: Path
    now: datetime
    root: Ed25519PrivateKey
    manifest_key: Ed25519PrivateKey
    processor: SimulatedRoot
    image_digest: bytes

    def release(self, workload: str) -> None:
        """Sign a manifest, which comes out the same for the same program, and a bundle that allows it."""
        digest = f"sha256:{self.image_digest.hex()}"
        claims = ManifestClaims(
            schema=MANIFEST_SCHEMA,
            workload=workload,
            version=__version__,
            image_digest=digest,
            binary_digest=digest,
            build_metadata={"builder": "tresor demo"},
        )
        manifest = sign_manifest(claims, self.manifest_key)
        (self.folder / f"{workload}-manifest.jws").write_text(manifest, encoding="ascii")
        tag = workload_identity_tag(manifest.encode())
        path = self.folder / f"{workload}-bundle.jws"
        version = self._next_version(path, tag)
        if version is not None:
            path.write_text(sign_bundle(self._bundle(workload, tag, version), self.root), encoding="ascii")

    def _next_version(self, path: Path, tag: bytes) -> int | None:
        """Return the version of the bundle to make; None where the one that is there will do."""
        if not path.is_file():
            return 1
        try:
            known = verify_bundle_signature(parse_bundle(path.read_bytes()), TrustKey.of(self.root.public_key()))
        except TrustError:  # another root's, after somebody took this one's file away
            return 1
        lasts = known.content.valid_until - self.now > _RENEW_BEFORE
        roots = known.content.hw_roots.get(SIMULATED)
        if lasts and known.content.tags == {tag} and roots == (self.processor.certificate,):
            return None
        return known.content.claims.version + 1

    def _bundle(self, workload: str, tag: bytes, version: int) -> BundleClaims:
        return BundleClaims(
            schema=BUNDLE_SCHEMA,
            workload=workload,
            version=version,
            issued_at=rfc3339(self.now.timestamp()),
            valid_until=rfc3339((self.now + _VALID_FOR).timestamp()),
            allowed_hw_measurements=(measurement_of(self.image_digest).hex(),),
            allowed_workload_identity_tags=(f"sha256:{tag.hex()}",),
            min_tcb={},
            hw_roots={SIMULATED: self.processor.certificate.public_bytes(Encoding.PEM).decode()},
            manifest_keys=ManifestKeys(keys=(TrustKey.of(self.manifest_key.public_key()).jwk(),)),
            simulated=True,
        )


def _key(path: Path) -> Ed25519PrivateKey:
    pem = _kept(path, lambda: encode_private_key(Ed25519PrivateKey.generate(), None))
    return parse_private_key(pem, None)


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    if not path.is_file():
        write_private(path, make())
    return path.read_bytes()


def _program_digest() -> bytes:
    """Return SHA-256 over the program's files, names and content: what stands here for the digest of an image."""
    total = hashlib.sha256()
    with resources.as_file(resources.files("tresor")) as package:
        for file in sorted(package.rglob("*")):
            if file.is_file() and file.suffix in (".py", ".sql", ".der"):
                total.update(f"{file.relative_to(package)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.digest()
