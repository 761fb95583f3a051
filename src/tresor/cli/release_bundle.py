"""`tresor release bundle`: from a description that people review to a bundle that verifiers obey.

Version and times are not in the description: the version follows the previous bundle, so that it only grows, and the
times are those of the ceremony.
"""

import argparse
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.utils import CryptographyDeprecationWarning

from tresor.attestation.roots import vendor_anchors
from tresor.cli.release_io import (
    InputError,
    printable,
    read_file,
    read_private_key,
    read_public_key,
    read_token,
    write_file,
)
from tresor.encodings import parse_json
from tresor.errors import JsonError
from tresor.trust.bundle import (
    BUNDLE_SCHEMA,
    MAX_VALIDITY,
    SIMULATED,
    BundleClaims,
    BundleContent,
    GenuineBundle,
    ManifestKeys,
    TrustBundle,
    check_hw_roots,
    parse_bundle,
    sign_bundle,
    verify_bundle,
    verify_bundle_signature,
)
from tresor.trust.errors import TrustCode, TrustMalformedError, TrustRefusedError
from tresor.trust.jwk import TrustKey
from tresor.trust.manifest import parse_manifest, verify_manifest_signature

__all__ = ["BundleDescription", "add_arguments", "facts_of", "instant", "pinned_fingerprints", "run"]

_MAX_DESCRIPTION_BYTES: Final = 1 << 20
_MAX_PEM_BYTES: Final = 64 * 1024
_PINNED: Final = "pinned"
_DEFAULT_DAYS: Final = 30


class BundleDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be accepted, as an operator writes it down: TOML, or JSON where the first character is `{`."""

    workload: str
    """Name of the service."""
    allowed_hw_measurements: tuple[str | dict[str, str], ...]
    """Launch measurements: SEV-SNP MEASUREMENT, or tables of registers that must all be so."""
    min_tcb: dict[str, dict[str, int]]
    """Least TCB per product, every component."""
    hw_roots: dict[str, str]
    """Vendor to `pinned`, for the roots that this program knows, or to a PEM file with some of them."""
    manifest_keys: tuple[str, ...]
    """Files of public keys that may sign manifests."""
    manifests: tuple[str, ...] = ()
    """Files of manifests that may run."""
    allowed_workload_identity_tags: tuple[str, ...] = ()
    """Tags of further manifests that may run."""
    simulated: bool = False
    """Whether the roots are simulated ones."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tresor release bundle`."""
    parser.add_argument("--description", type=Path, required=True, metavar="FILE", help="what to accept, TOML or JSON")
    before = parser.add_mutually_exclusive_group(required=True)
    before.add_argument("--previous", type=Path, metavar="FILE", help="the bundle that this one replaces")
    before.add_argument("--first", action="store_true", help="there has never been a bundle of this root")
    parser.add_argument("--bundle-version", type=int, metavar="N", help="version (default: one above the previous)")
    parser.add_argument("--issued-at", type=instant, metavar="TIME", help="beginning of validity, RFC 3339 (now)")
    parser.add_argument(
        "--valid-days",
        type=int,
        default=_DEFAULT_DAYS,
        metavar="N",
        help=f"length of validity (default {_DEFAULT_DAYS}, at most {MAX_VALIDITY.days})",
    )
    parser.add_argument("--allow-nothing", action="store_true", help="sign empty allow-lists, which refuse everything")


def run(arguments: argparse.Namespace) -> tuple[int, str]:
    """Make the bundle and write it; return the exit code, and what to print: what changes.

    Raises:
        InputError: a file or an argument cannot be used.
        TrustError: a key, a manifest, the previous bundle or the description is refused.
    """
    private_key = read_private_key(arguments.key, arguments.passphrase_file)
    root = TrustKey.of(private_key.public_key())
    previous = None if arguments.previous is None else _read_previous(arguments.previous, root)
    issued_at: datetime = arguments.issued_at or datetime.now(UTC).replace(microsecond=0)
    if previous is not None and issued_at < previous.content.issued_at:
        raise InputError(f"--issued-at lies before the previous bundle's {previous.content.claims.issued_at}")
    version = _next_version(arguments.bundle_version, previous)
    claims = _claims(arguments, version=version, issued_at=issued_at)
    if previous is not None and claims.workload != previous.content.claims.workload:
        raise TrustRefusedError(
            TrustCode.BUNDLE_WORKLOAD_MISMATCH,
            f"the description is about {claims.workload!r}, the previous bundle {previous.content.claims.workload!r}",
        )
    token = sign_bundle(claims, private_key).encode()
    # What is published has gone through the very check that verifiers make.
    bundle = verify_bundle(
        parse_bundle(token), root, now=issued_at, min_version=version, allow_simulated=claims.simulated
    )
    check_hw_roots(bundle, pinned_fingerprints())
    if not arguments.allow_nothing and not (bundle.content.measurements and bundle.content.tags):
        raise InputError("an allow-list is empty and the bundle would refuse everything: give --allow-nothing")
    write_file(arguments.out, token, force=arguments.force)
    return 0, "".join(f"{printable(line)}\n" for line in _lines(bundle, previous, root, arguments.out))


def _lines(bundle: TrustBundle, previous: GenuineBundle | None, root: TrustKey, out: Path) -> Iterator[str]:
    claims = bundle.content.claims
    if claims.simulated:
        yield "SIMULATED: nothing that this bundle allows is protected by hardware"
    yield f"Bundle:     {out}"
    yield f"Version:    {claims.version} (valid until {claims.valid_until})"
    yield f"Signed by:  {root.kid}"
    yield f"Digest:     {bundle.digest}"
    yield "Content:" if previous is None else f"Changes since version {previous.content.claims.version}:"
    changes = list(_changes(None if previous is None else previous.content, bundle.content))
    yield from (f"  {change}" for change in changes or ["none"])


def pinned_fingerprints() -> Mapping[str, frozenset[str]]:
    """Return the SHA-256 fingerprints of the roots that are pinned in code, by the vendors' names in bundles."""
    return {
        vendor: frozenset(root.fingerprint(hashes.SHA256()).hex() for root in roots)
        for vendor, roots in _pinned_roots().items()
    }


def _pinned_roots() -> Mapping[str, tuple[x509.Certificate, ...]]:
    anchors = vendor_anchors()
    return {
        "amd": tuple(root for roots in anchors.amd.values() for root in roots),
        "intel": anchors.intel,
        "azure": anchors.azure_tpm,
    }


def instant(text: str) -> datetime:
    """Read a time of RFC 3339 for argparse."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!a} is not a time of RFC 3339") from error
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!a} does not say its offset from UTC; write Z for none")
    return time.astimezone(UTC).replace(microsecond=0)


def _read_previous(path: Path, root: TrustKey) -> GenuineBundle:
    # Genuine is enough: a bundle that has expired is replaced all the same.
    return verify_bundle_signature(parse_bundle(read_token(path)), root)


def _next_version(wanted: int | None, previous: GenuineBundle | None) -> int:
    least = 1 if previous is None else previous.content.claims.version + 1
    if wanted is not None and wanted < least:
        raise TrustRefusedError(
            TrustCode.BUNDLE_ROLLED_BACK, f"--bundle-version is {wanted}, want at least {least}: versions only grow"
        )
    return least if wanted is None else wanted


def _claims(arguments: argparse.Namespace, *, version: int, issued_at: datetime) -> BundleClaims:
    path: Path = arguments.description
    if not 1 <= arguments.valid_days <= MAX_VALIDITY.days:
        raise InputError(f"--valid-days is {arguments.valid_days}, want 1 to {MAX_VALIDITY.days}")
    description = _parse_description(read_file(path, max_bytes=_MAX_DESCRIPTION_BYTES), path)
    keys = {key.kid: key for key in (read_public_key(path.parent / name) for name in description.manifest_keys)}
    tags = {*description.allowed_workload_identity_tags}
    for name in description.manifests:
        manifest = verify_manifest_signature(parse_manifest(read_token(path.parent / name)), keys)
        if manifest.claims.workload != description.workload:
            raise TrustRefusedError(
                TrustCode.MANIFEST_WORKLOAD_MISMATCH,
                f"{name}: is about {manifest.claims.workload!r}, want {description.workload!r}",
            )
        tags.add(f"sha256:{manifest.tag.hex()}")
    return BundleClaims(
        schema=BUNDLE_SCHEMA,
        workload=description.workload,
        version=version,
        issued_at=_rfc3339(issued_at),
        valid_until=_rfc3339(issued_at + timedelta(days=arguments.valid_days)),
        # Sorted: the order of a description says nothing, and the same content should be the same bytes.
        allowed_hw_measurements=tuple(
            sorted(description.allowed_hw_measurements, key=lambda entry: msgspec.json.encode(entry, order="sorted"))
        ),
        allowed_workload_identity_tags=tuple(sorted(tags)),
        min_tcb=description.min_tcb,
        hw_roots={vendor: _roots(vendor, source, path.parent) for vendor, source in description.hw_roots.items()},
        manifest_keys=ManifestKeys(keys=tuple(keys[kid].jwk() for kid in sorted(keys))),
        simulated=description.simulated,
    )


def _parse_description(data: bytes, path: Path) -> BundleDescription:
    try:
        document = parse_json(data) if data.lstrip().startswith(b"{") else tomllib.loads(data.decode("utf-8"))
        return msgspec.convert(document, BundleDescription)
    except (JsonError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is neither JSON nor TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise TrustMalformedError(TrustCode.BUNDLE_MALFORMED, f"{path}: {error}") from error


def _roots(vendor: str, source: str, folder: Path) -> str:
    named = source != _PINNED or vendor == SIMULATED
    roots = _read_roots(folder / source) if named else _pinned_roots().get(vendor, ())
    return b"".join(root.public_bytes(serialization.Encoding.PEM) for root in roots).decode("ascii")


def _read_roots(path: Path) -> Sequence[x509.Certificate]:
    """Read the certificates of a file, and nothing else: a simulated root's holds its private key too."""
    pem = read_file(path, max_bytes=_MAX_PEM_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return x509.load_pem_x509_certificates(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustMalformedError(TrustCode.BUNDLE_MALFORMED, f"{path} is not PEM text of certificates") from error


def _changes(before: BundleContent | None, after: BundleContent) -> Iterator[str]:
    """Yield what comes (+) and what goes (-); a floor that is lowered shows as a line of each."""
    old, new = set(facts_of(before)) if before else set(), set(facts_of(after))
    for fact in sorted(old | new, key=lambda fact: (fact[0], fact)):
        if fact not in new:
            yield f"- {fact[0]}: {fact[1]}"
        elif fact not in old:
            yield f"+ {fact[0]}: {fact[1]}"


def facts_of(content: BundleContent) -> Iterator[tuple[str, str]]:
    """Yield what a bundle says beside its version and times, line by line, as a name and a value."""
    for measurement in content.measurements:
        yield "measurement", ", ".join(f"{name} {value}" for name, value in sorted(measurement.items()))
    for tag in content.tags:
        yield "workload identity tag", f"sha256:{tag.hex()}"
    for product, floor in content.claims.min_tcb.items():
        yield f"min_tcb {product}", ", ".join(f"{name} {value}" for name, value in sorted(floor.items()))
    for vendor, roots in content.hw_roots.items():
        for root in roots:
            yield (
                f"hw_root {vendor}",
                f"{root.subject.rfc4514_string()} sha256:{root.fingerprint(hashes.SHA256()).hex()}",
            )
    for kid in content.manifest_keys:
        yield "manifest key", kid
    if content.claims.simulated:
        yield "simulated", "true"


def _rfc3339(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
