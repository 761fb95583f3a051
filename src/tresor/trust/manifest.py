"""The workload identity manifest: which build runs, signed when it is built (docs/operations/release.md, section 4).

Its tag, SHA-256 of the token, is what the hardware signs (`tresor.attestation.binding`) and what a trust bundle allows.
Unknown claims are ignored (RFC 7519, section 4); an unknown `schema` is refused.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tresor.encodings import JsonValue
from tresor.trust.compact import MANIFEST, UnverifiedJws, parse_compact, parse_payload, sign_compact, verify_compact
from tresor.trust.errors import TrustCode, TrustMalformedError, TrustSignatureError
from tresor.trust.jwk import TrustKey

__all__ = [
    "MANIFEST_SCHEMA",
    "Digest",
    "GenuineManifest",
    "ManifestClaims",
    "UnverifiedManifest",
    "Workload",
    "parse_manifest",
    "sign_manifest",
    "verify_manifest_signature",
    "workload_identity_tag",
]

MANIFEST_SCHEMA: Final = "workload-identity/v1"
_MAX_METADATA: Final = 64

Workload = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
_Version = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,128}\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,128}\Z")]
_Value = Annotated[str, msgspec.Meta(max_length=1024)]


class ManifestClaims(msgspec.Struct, frozen=True, kw_only=True):
    """Claims of a manifest.

    Attributes:
        schema: `workload-identity/v1`.
        workload: name of the service, the same in its trust bundles.
        version: of the release, in the words of whoever released it.
        image_digest: SHA-256 of the image that boots.
        binary_digest: SHA-256 of the program in it.
        build_metadata: what else the builder says: commit, builder, time.
    """

    schema: str
    workload: Workload
    version: _Version
    image_digest: Digest
    binary_digest: Digest
    build_metadata: Annotated[dict[_Name, _Value], msgspec.Meta(max_length=_MAX_METADATA)]


@dataclass(frozen=True, slots=True)
class UnverifiedManifest:
    """A well-formed token that says it is a manifest; nothing of it has been verified."""

    jws: UnverifiedJws

    @property
    def tag(self) -> bytes:
        """The workload identity tag, 32 bytes."""
        return workload_identity_tag(self.jws.token)

    def claims(self) -> ManifestClaims:
        """Return what the token says, whoever signed it: for showing only.

        Raises:
            TrustMalformedError: it says nothing that can be read.
        """
        return _parse_claims(parse_payload(self.jws))


@dataclass(frozen=True, slots=True)
class GenuineManifest:
    """A manifest that one of the given keys signed.

    Attributes:
        claims: what it says.
        kid: the key that signed.
        tag: the workload identity tag, 32 bytes.
    """

    claims: ManifestClaims
    kid: str
    tag: bytes


def workload_identity_tag(token: bytes) -> bytes:
    """Return SHA-256, 32 bytes, of a manifest's token: the bytes of the compact JWS without line end."""
    return hashlib.sha256(token).digest()


def sign_manifest(claims: ManifestClaims, private_key: Ed25519PrivateKey) -> str:
    """Sign a manifest; the same claims and key always give the same token.

    Raises:
        TrustMalformedError: the claims are not those of a manifest.
    """
    payload = msgspec.json.encode(claims, order="deterministic")
    _parse_claims(msgspec.json.decode(payload))  # what no verifier would take is not signed
    return sign_compact(MANIFEST, private_key, payload)


def parse_manifest(token: bytes) -> UnverifiedManifest:
    """Read a compact JWS that says it is a manifest.

    Raises:
        TrustMalformedError: it is none.
    """
    return UnverifiedManifest(parse_compact(MANIFEST, token))


def verify_manifest_signature(manifest: UnverifiedManifest, keys: Mapping[str, TrustKey]) -> GenuineManifest:
    """Verify that one of `keys` signed a manifest.

    Does not look at any allow-list: that is `tresor.trust.bundle.verify_manifest`.

    Raises:
        TrustSignatureError: the key it names is not one of `keys`, or did not sign it.
        TrustMalformedError: what was signed is no manifest.
    """
    key = keys.get(manifest.jws.kid)
    if key is None:
        raise TrustSignatureError(
            TrustCode.MANIFEST_KEY_NOT_ALLOWED, f"the manifest's key {manifest.jws.kid[:64]!r} may not sign manifests"
        )
    claims = _parse_claims(verify_compact(manifest.jws, key))
    return GenuineManifest(claims=claims, kid=key.kid, tag=manifest.tag)


def _parse_claims(value: JsonValue) -> ManifestClaims:
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != MANIFEST_SCHEMA:
        raise TrustMalformedError(TrustCode.SCHEMA_UNKNOWN, f"manifest: schema is not {MANIFEST_SCHEMA!r}")
    try:
        return msgspec.convert(value, ManifestClaims)
    except msgspec.ValidationError as error:
        raise TrustMalformedError(TrustCode.MANIFEST_MALFORMED, f"manifest: {error}") from error
