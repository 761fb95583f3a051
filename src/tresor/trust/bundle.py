"""The trust bundle: what a verifier of a Tresor service accepts, until when, over the signature of the release root.

    parse_bundle             bytes to one compact JWS with our header              UnverifiedBundle
    verify_bundle_signature  signed by the release root, and well-formed           GenuineBundle
    verify_bundle            of this service, in time, no older than the last      TrustBundle
    verify_manifest          signed by a key of the bundle, its tag allowed        WorkloadManifest

Implements docs/operations/release.md, section 5, whose step numbers stand in the code.  A member that is not understood
is refused, because it may be a restriction; an empty allow-list allows nothing.  Pure: the time, the root and what is
remembered of the last bundle are given.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.utils import CryptographyDeprecationWarning

from tresor.encodings import JsonValue
from tresor.trust.compact import BUNDLE, UnverifiedJws, parse_compact, parse_payload, sign_compact, verify_compact
from tresor.trust.errors import TrustCode, TrustMalformedError, TrustRefusedError, TrustSignatureError
from tresor.trust.jwk import OkpJwk, TrustKey, parse_jwks
from tresor.trust.manifest import (
    Digest,
    GenuineManifest,
    UnverifiedManifest,
    Workload,
    verify_manifest_signature,
)

__all__ = [
    "BUNDLE_SCHEMA",
    "CLOCK_SKEW",
    "MAX_VALIDITY",
    "REGISTER_BYTES",
    "SIMULATED",
    "TCB_COMPONENTS",
    "VENDORS",
    "BundleClaims",
    "BundleContent",
    "GenuineBundle",
    "ManifestKeys",
    "TrustBundle",
    "UnverifiedBundle",
    "WorkloadManifest",
    "check_hw_roots",
    "check_measurements",
    "parse_bundle",
    "sign_bundle",
    "verify_bundle",
    "verify_bundle_signature",
    "verify_manifest",
]

BUNDLE_SCHEMA: Final = "tresor.trust-bundle/v1"
MAX_VALIDITY: Final = timedelta(days=366)
CLOCK_SKEW: Final = timedelta(seconds=60)
"""A bundle may be this much ahead of a verifier's clock; its end is not stretched."""
SIMULATED: Final = "simulated"
VENDORS: Final = frozenset({"amd", "intel", "azure", SIMULATED})
"""Names in `hw_roots`."""
TCB_COMPONENTS: Final[Mapping[str, Mapping[str, int]]] = {
    "Milan": {"bl": 255, "tee": 255, "snp": 255, "ucode": 255},
    "Genoa": {"bl": 255, "tee": 255, "snp": 255, "ucode": 255},
    "Turin": {"fmc": 255, "bl": 255, "tee": 255, "snp": 255, "ucode": 255},
    "TDX": {"tcb_evaluation_data_number": (1 << 31) - 1},
}
"""Products in `min_tcb`, each with its components and their highest values: TCB_VERSION of AMD 56860, and
tcbEvaluationDataNumber of Intel's PCS."""
REGISTER_BYTES: Final[Mapping[str, int]] = {
    "MEASUREMENT": 48,
    "HOST_DATA": 32,
    "MRTD": 48,
    "MRCONFIGID": 48,
    **{f"RTMR{number}": 48 for number in range(4)},
    **{f"PCR{number}": 32 for number in range(24)},
}
"""Registers in `allowed_hw_measurements`, by the names of the vendors' manuals, and their sizes in bytes."""
_LAUNCH_REGISTERS: Final = frozenset({"MEASUREMENT", "MRTD"})
_MAX_PEM_CHARS: Final = 64 * 1024
_MAX_ROOTS: Final = 16
_MAX_ALLOWED: Final = 4096
_HEX: Final = re.compile(r"[0-9a-f]*\Z")

_Time = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z\Z")
]
_Svn = Annotated[int, msgspec.Meta(ge=0)]
_Register = Annotated[str, msgspec.Meta(max_length=128)]


class ManifestKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JWK set (RFC 7517, section 5)."""

    keys: tuple[OkpJwk, ...]


class BundleClaims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Content of a trust bundle as it is signed.

    Attributes:
        schema: `tresor.trust-bundle/v1`.
        workload: name of the service that it is about.
        version: grows from bundle to bundle, whatever else changes.
        issued_at: RFC 3339 in UTC.
        valid_until: likewise; from then on the bundle says nothing.
        allowed_hw_measurements: what may have been launched: each entry a SEV-SNP MEASUREMENT in lower-case
            hexadecimal, or registers by name that must all be as stated, MEASUREMENT or MRTD among them.
        allowed_workload_identity_tags: SHA-256 of the manifests that may run.
        min_tcb: product to the least value of every component of its TCB.
        hw_roots: vendor to PEM of the roots that may stand behind evidence.
        manifest_keys: keys that may sign manifests.
        simulated: the roots are of no vendor; nothing that this bundle allows is protected by hardware.
    """

    schema: str
    workload: Workload
    version: Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]
    issued_at: _Time
    valid_until: _Time
    allowed_hw_measurements: Annotated[
        tuple[_Register | dict[str, _Register], ...], msgspec.Meta(max_length=_MAX_ALLOWED)
    ]
    allowed_workload_identity_tags: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=_MAX_ALLOWED)]
    min_tcb: dict[str, dict[str, _Svn]]
    hw_roots: Annotated[dict[str, Annotated[str, msgspec.Meta(max_length=_MAX_PEM_CHARS)]], msgspec.Meta(min_length=1)]
    manifest_keys: ManifestKeys
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContent:
    """The claims of a bundle, and what they mean.

    Attributes:
        claims: the content as signed.
        issued_at: instant from which it is valid.
        valid_until: instant from which it is not.
        measurements: each a set of registers by name, in lower-case hexadecimal, that must all be so.
        tags: the allowed workload identity tags, 32 bytes each.
        hw_roots: vendor to its roots; nothing says that they are the vendor's (`check_hw_roots`).
        manifest_keys: keys that may sign manifests, by kid.
    """

    claims: BundleClaims
    issued_at: datetime
    valid_until: datetime
    measurements: tuple[Mapping[str, str], ...]
    tags: frozenset[bytes]
    hw_roots: Mapping[str, tuple[x509.Certificate, ...]]
    manifest_keys: Mapping[str, TrustKey]


@dataclass(frozen=True, slots=True)
class UnverifiedBundle:
    """A well-formed token that says it is a trust bundle; nothing of it has been verified."""

    jws: UnverifiedJws

    def content(self) -> BundleContent:
        """Return what the token says, whoever signed it: for showing only.

        Raises:
            TrustMalformedError: it says nothing that can be read.
        """
        return _parse_content(parse_payload(self.jws))


@dataclass(frozen=True, slots=True)
class GenuineBundle:
    """A bundle that the release root signed.  Nothing says yet that it is in force.

    Attributes:
        content: what it says.
        digest: `sha256:` and the SHA-256 of the token.
    """

    content: BundleContent
    digest: str


@dataclass(frozen=True, slots=True)
class TrustBundle(GenuineBundle):
    """A bundle in force: made by `verify_bundle` alone."""


@dataclass(frozen=True, slots=True)
class WorkloadManifest(GenuineManifest):
    """A manifest that a trust bundle allows: made by `verify_manifest` alone."""


def sign_bundle(claims: BundleClaims, root: Ed25519PrivateKey) -> str:
    """Sign a bundle with the release root; the same claims and key always give the same token.

    Raises:
        TrustMalformedError: the claims are not those of a bundle.
    """
    payload = msgspec.json.encode(claims, order="deterministic")
    _parse_content(msgspec.json.decode(payload))  # what no verifier would take is not signed
    return sign_compact(BUNDLE, root, payload)


def parse_bundle(token: bytes) -> UnverifiedBundle:
    """Read a compact JWS that says it is a trust bundle (step 1).

    Raises:
        TrustMalformedError: it is none.
    """
    return UnverifiedBundle(parse_compact(BUNDLE, token))


def verify_bundle_signature(bundle: UnverifiedBundle, root: TrustKey) -> GenuineBundle:
    """Verify that the release root signed a bundle (steps 2 and 3).

    Does not look at time, version, workload or `simulated`: that is `verify_bundle`.

    Raises:
        TrustSignatureError: another key signed it, or none.
        TrustMalformedError: what was signed is no trust bundle.
    """
    if bundle.jws.kid != root.kid:  # (2)
        raise TrustSignatureError(
            TrustCode.BUNDLE_SIGNATURE_INVALID,
            f"the bundle names the key {bundle.jws.kid[:64]!r}, and the release root is {root.kid!r}",
        )
    return GenuineBundle(_parse_content(verify_compact(bundle.jws, root)), bundle.jws.digest)  # (2) (3)


def verify_bundle(
    bundle: UnverifiedBundle,
    root: TrustKey,
    *,
    now: datetime,
    min_version: int,
    known_digest: str | None = None,
    workload: str | None = None,
    allow_simulated: bool = False,
) -> TrustBundle:
    """Verify that a bundle is the release root's word for this service, here and now (steps 2 to 7).

    Does not compare `hw_roots` with the roots that are pinned in code: `check_hw_roots` does, with the pins given.

    Args:
        bundle: as parsed.
        root: the release root, from its owner and never from the service.
        now: instant at which the bundle must be in force (aware, UTC).
        min_version: the highest version that the caller has accepted before; 0 where it remembers none.
        known_digest: digest of that one, where it is remembered.
        workload: name of the service, where the caller knows it.
        allow_simulated: whether the caller has opted in to bundles behind which there is no hardware.

    Raises:
        TrustSignatureError: the root did not sign it.
        TrustMalformedError: what it signed is no trust bundle.
        TrustRefusedError: genuine, and not in force here; the message names everything that is wrong.
    """
    genuine = verify_bundle_signature(bundle, root)
    content, failed = genuine.content, list[tuple[TrustCode, str]]()
    claims = content.claims
    if claims.simulated and not allow_simulated:  # (4)
        detail = "the bundle is SIMULATED, which is allowed by name alone (--allow-simulated, allow_simulated = true)"
        failed.append((TrustCode.SIMULATED_NOT_ALLOWED, detail))
    if workload is not None and claims.workload != workload:  # (5)
        detail = f"the bundle is about {claims.workload!r}, want {workload[:64]!r}"
        failed.append((TrustCode.BUNDLE_WORKLOAD_MISMATCH, detail))
    if now < content.issued_at - CLOCK_SKEW:  # (6)
        detail = f"the bundle is valid from {claims.issued_at}, asked for {_rfc3339(now)}"
        failed.append((TrustCode.BUNDLE_NOT_YET_VALID, detail))
    if now >= content.valid_until:  # (6)
        detail = f"the bundle was valid until {claims.valid_until}, asked for {_rfc3339(now)}"
        failed.append((TrustCode.BUNDLE_EXPIRED, detail))
    if claims.version < min_version:  # (7)
        detail = f"the bundle has version {claims.version}, and {min_version} was accepted before"
        failed.append((TrustCode.BUNDLE_ROLLED_BACK, detail))
    if claims.version == min_version and known_digest not in (None, genuine.digest):  # (7)
        detail = f"the bundle has version {claims.version} as the one accepted before, and other content"
        failed.append((TrustCode.BUNDLE_REPLACED, detail))
    if failed:
        raise TrustRefusedError(failed[0][0], "; ".join(detail for _, detail in failed))
    return TrustBundle(content, genuine.digest)


def check_hw_roots(bundle: GenuineBundle, pinned: Mapping[str, frozenset[str]]) -> None:
    """Check that a bundle narrows the pinned roots and never adds to them.

    Args:
        bundle: whose `hw_roots` are looked at.
        pinned: vendor to SHA-256 fingerprints, in lower-case hexadecimal, of its roots that are pinned in code.

    Raises:
        TrustRefusedError: a vendor's root is not among that vendor's pins, or a simulated one is among anybody's.
    """
    everybody = frozenset().union(*pinned.values())
    for vendor, roots in bundle.content.hw_roots.items():
        for root in roots:
            digest = root.fingerprint(hashes.SHA256()).hex()
            if digest in everybody if vendor == SIMULATED else digest not in pinned.get(vendor, frozenset()):
                raise TrustRefusedError(
                    TrustCode.ROOT_NOT_ALLOWED, f"the root {digest} is not one that is pinned for {vendor!r}"
                )


def check_measurements(bundle: TrustBundle, measured: Mapping[str, str]) -> Mapping[str, str]:
    """Check that a launch is one that the bundle allows, and return the entry that says so.

    Args:
        bundle: in force.
        measured: registers by the name of the vendor's manual, lower-case hexadecimal, from genuine evidence.

    Raises:
        TrustRefusedError: no entry of the bundle has all its registers so.
    """
    if not bundle.content.measurements:  # any() over nothing would refuse too; the reason is another
        raise TrustRefusedError(TrustCode.MEASUREMENTS_EMPTY, "the bundle allows no measurement at all")
    for allowed in bundle.content.measurements:
        if allowed.items() <= measured.items():
            return allowed
    raise TrustRefusedError(
        TrustCode.MEASUREMENT_NOT_ALLOWED,
        f"the measured registers fit none of the {len(bundle.content.measurements)} that the bundle allows",
    )


def verify_manifest(manifest: UnverifiedManifest, bundle: TrustBundle) -> WorkloadManifest:
    """Verify that a bundle's key signed a manifest, and that the bundle allows it.

    Raises:
        TrustSignatureError: no manifest key of the bundle signed it.
        TrustMalformedError: what was signed is no manifest.
        TrustRefusedError: it is about another workload, or its tag is not allowed.
    """
    content = bundle.content
    genuine = verify_manifest_signature(manifest, content.manifest_keys)
    if genuine.claims.workload != content.claims.workload:
        raise TrustRefusedError(
            TrustCode.MANIFEST_WORKLOAD_MISMATCH,
            f"the manifest is about {genuine.claims.workload!r}, the bundle about {content.claims.workload!r}",
        )
    if not content.tags:
        raise TrustRefusedError(TrustCode.TAGS_EMPTY, "the bundle allows no workload identity tag at all")
    if genuine.tag not in content.tags:
        raise TrustRefusedError(
            TrustCode.TAG_NOT_ALLOWED, f"the bundle does not allow the workload identity tag sha256:{genuine.tag.hex()}"
        )
    return WorkloadManifest(genuine.claims, genuine.kid, genuine.tag)


def _parse_content(value: JsonValue) -> BundleContent:
    if not isinstance(value, dict) or value.get("schema") != BUNDLE_SCHEMA:
        raise TrustMalformedError(TrustCode.SCHEMA_UNKNOWN, f"bundle: schema is not {BUNDLE_SCHEMA!r}")
    manifest_keys = parse_jwks(value.get("manifest_keys"), "manifest_keys")
    try:
        claims = msgspec.convert(value, BundleClaims)
        issued_at, valid_until = map(datetime.fromisoformat, (claims.issued_at, claims.valid_until))
    except ValueError as error:  # msgspec.ValidationError is one
        raise _malformed(str(error)) from error
    if not timedelta() < valid_until - issued_at <= MAX_VALIDITY:
        raise _malformed(
            f"valid from {claims.issued_at} until {claims.valid_until}, want at most {MAX_VALIDITY.days} days"
        )
    for product, floor in claims.min_tcb.items():
        highest = TCB_COMPONENTS.get(product, {})
        if not highest or floor.keys() != highest.keys():  # a component that is left out would have no floor
            raise _malformed(f"min_tcb.{product[:32]}: want {', '.join(sorted(highest)) or 'a known product'}")
        if above := [name for name, value in floor.items() if value > highest[name]]:
            raise _malformed(f"min_tcb.{product}: {above[0]} is above {highest[above[0]]}, the highest there is")
    return BundleContent(
        claims=claims,
        issued_at=issued_at,
        valid_until=valid_until,
        measurements=tuple(_parse_measurement(entry) for entry in claims.allowed_hw_measurements),
        tags=frozenset(bytes.fromhex(tag.removeprefix("sha256:")) for tag in claims.allowed_workload_identity_tags),
        hw_roots=_parse_roots(claims),
        manifest_keys=manifest_keys,
    )


def _parse_measurement(entry: str | Mapping[str, str]) -> Mapping[str, str]:
    registers = {"MEASUREMENT": entry} if isinstance(entry, str) else dict(entry)
    if len(_LAUNCH_REGISTERS & registers.keys()) != 1:  # without it, no hardware speaks
        raise _malformed("allowed_hw_measurements: an entry has not one of MEASUREMENT and MRTD")
    for name, value in registers.items():
        size = REGISTER_BYTES.get(name)
        if size is None or len(value) != 2 * size or not _HEX.match(value):
            want = "a known register" if size is None else f"{2 * size} lower-case hexadecimal digits"
            raise _malformed(f"allowed_hw_measurements: {name[:32]}: want {want}")
    return registers


def _parse_roots(claims: BundleClaims) -> Mapping[str, tuple[x509.Certificate, ...]]:
    if unknown := sorted(claims.hw_roots.keys() - VENDORS):
        raise _malformed(f"hw_roots: {unknown[0][:32]!r} is no vendor, want {', '.join(sorted(VENDORS))}")
    if claims.hw_roots.keys() != {SIMULATED} if claims.simulated else SIMULATED in claims.hw_roots:
        raise TrustMalformedError(
            TrustCode.ROOTS_MIXED, "bundle: a simulated root goes with `simulated` and with no vendor's root"
        )
    roots: dict[str, tuple[x509.Certificate, ...]] = {}
    for vendor, pem in claims.hw_roots.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CryptographyDeprecationWarning)
                roots[vendor] = tuple(x509.load_pem_x509_certificates(pem.encode()))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _malformed(f"hw_roots.{vendor} is not PEM text of certificates") from error
        if len(roots[vendor]) > _MAX_ROOTS:
            raise _malformed(f"hw_roots.{vendor} holds {len(roots[vendor])} roots, want at most {_MAX_ROOTS}")
    return roots


def _malformed(detail: str) -> TrustMalformedError:
    return TrustMalformedError(TrustCode.BUNDLE_MALFORMED, f"bundle: {detail}")


def _rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
