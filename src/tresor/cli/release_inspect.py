"""`tresor release inspect`: what a bundle, a manifest or a public key says, and whether it may be believed.

Without a release root nothing can be: the content is shown as what nobody vouches for, and the exit code is 3.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from tresor.cli.release_bundle import facts_of, instant, pinned_fingerprints
from tresor.cli.release_io import InputError, printable, read_public_key, read_token
from tresor.trust.bundle import (
    BundleClaims,
    BundleContent,
    TrustBundle,
    UnverifiedBundle,
    check_hw_roots,
    parse_bundle,
    verify_bundle,
    verify_bundle_signature,
    verify_manifest,
)
from tresor.trust.compact import UnverifiedJws
from tresor.trust.errors import TrustCode, TrustError
from tresor.trust.jwk import TrustKey
from tresor.trust.manifest import ManifestClaims, UnverifiedManifest, parse_manifest, verify_manifest_signature
from tresor.trust.release_root import parse_public_key

__all__ = ["add_arguments", "run"]

Kind = Literal["trust bundle", "workload identity manifest", "public key"]
Outcome = Literal["accepted", "rejected", "undecided"]
_EXIT: Final[dict[Outcome, int]] = {"accepted": 0, "rejected": 1, "undecided": 3}
_NO_ROOT: Final = "release_root_missing"
_NO_BUNDLE: Final = "bundle_missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """A verdict, and what is shown beside it.

    Attributes:
        outcome: the verdict; of a public key, which nothing can refute, `accepted`.
        code: why it is not `accepted`.
        message: the same for people.
        facts: what the file says, for people, as names and values; empty where it cannot be read, or is forged.
        document: the same for programs.
        genuine: whether a key that was given signed it.
        simulated: whether it is about a simulated world.
        not_checked: what a reader might take for checked and was not: item and reason.
    """

    kind: Kind | None
    outcome: Outcome
    code: str | None
    message: str
    facts: tuple[tuple[str, str], ...] = ()
    document: Mapping[str, object] = field(default_factory=dict)
    genuine: bool = False
    simulated: bool = False
    not_checked: tuple[tuple[str, str], ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tresor release inspect`."""
    parser.add_argument("--release-root", type=Path, metavar="FILE", help="public key of the release root, JWK or PEM")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="bundle to verify a manifest with")
    parser.add_argument("--at", type=instant, metavar="TIME", help="verify as of this instant (RFC 3339), not of now")
    parser.add_argument("--min-version", type=int, metavar="N", help="refuse a bundle of a lower version")
    parser.add_argument("--allow-simulated", action="store_true", help="accept a bundle behind which no hardware is")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("file", type=Path, metavar="FILE", help="bundle, manifest or public key")


def run(arguments: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code of a verdict, and what is to be printed.

    Raises:
        InputError: a file cannot be read, or an option does not go with what the file is.
    """
    report = _inspect(read_token(arguments.file), arguments)
    text = _json(report) if arguments.json else "".join(f"{printable(line)}\n" for line in _lines(report))
    return _EXIT[report.outcome], text


def _inspect(data: bytes, arguments: argparse.Namespace) -> _Report:
    kind: Kind | None = None
    try:
        if data.startswith((b"-----BEGIN", b"{")):
            _refuse(arguments, "release_root", "bundle", "min_version", "at", of="a public key")
            kind = "public key"
            return _of_key(parse_public_key(data))
        try:
            bundle = parse_bundle(data)
        except TrustError as error:
            if error.code != TrustCode.TYP_MISMATCH:
                raise
            manifest = parse_manifest(data)
            kind = "workload identity manifest"
            return _of_manifest(manifest, arguments)
        _refuse(arguments, "bundle", of="a bundle")
        kind = "trust bundle"
        return _of_bundle(bundle, arguments)
    except TrustError as error:
        return _Report(kind=kind, outcome="rejected", code=error.code, message=str(error))


def _refuse(arguments: argparse.Namespace, *names: str, of: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} says nothing about {of}")


def _of_key(key: TrustKey) -> _Report:
    return _Report(
        kind="public key",
        outcome="accepted",
        code=None,
        message="an Ed25519 key",
        facts=(("thumbprint", key.kid), ("jwk", msgspec.json.encode(key.jwk()).decode())),
        document={"thumbprint": key.kid, "jwk": msgspec.to_builtins(key.jwk())},
        not_checked=(("owner", "no file shows whose key it is: compare the thumbprint over another way"),),
    )


def _of_bundle(bundle: UnverifiedBundle, arguments: argparse.Namespace) -> _Report:
    if arguments.release_root is None:
        content = bundle.content()
        return _Report(
            kind="trust bundle",
            outcome="undecided",
            code=_NO_ROOT,
            message="without --release-root nobody vouches for it",
            facts=_facts_of_bundle(content, bundle),
            document=_document(content.claims, bundle.jws),
            simulated=content.claims.simulated,
            not_checked=(("signature", "not given: --release-root"),),
        )
    root = read_public_key(arguments.release_root)
    genuine = verify_bundle_signature(bundle, root)
    outcome, code, message = _judge(bundle, root, arguments)
    return _Report(
        kind="trust bundle",
        outcome=outcome,
        code=code,
        message=message,
        facts=_facts_of_bundle(genuine.content, bundle),
        document=_document(genuine.content.claims, bundle.jws),
        genuine=True,
        simulated=genuine.content.claims.simulated,
        not_checked=_omissions(arguments),
    )


def _judge(
    bundle: UnverifiedBundle, root: TrustKey, arguments: argparse.Namespace
) -> tuple[Outcome, TrustCode | None, str]:
    try:
        _in_force(bundle, root, arguments)
    except TrustError as error:
        return "rejected", error.code, str(error)
    return "accepted", None, "the release root signed it, and it is in force"


def _in_force(bundle: UnverifiedBundle, root: TrustKey, arguments: argparse.Namespace) -> TrustBundle:
    verified = verify_bundle(
        bundle,
        root,
        now=arguments.at or datetime.now(UTC),
        min_version=arguments.min_version or 0,
        allow_simulated=arguments.allow_simulated,
    )
    check_hw_roots(verified, pinned_fingerprints())
    return verified


def _of_manifest(manifest: UnverifiedManifest, arguments: argparse.Namespace) -> _Report:
    if arguments.release_root is None or arguments.bundle is None:
        missing = "--release-root" if arguments.release_root is None else "--bundle"
        return _Report(
            kind="workload identity manifest",
            outcome="undecided",
            code=_NO_ROOT if arguments.release_root is None else _NO_BUNDLE,
            message=f"without {missing} nobody vouches for it",
            facts=_facts_of_manifest(manifest.claims(), manifest),
            document=_document(manifest.claims(), manifest.jws),
            not_checked=(("signature", f"not given: {missing}"),),
        )
    bundle = _in_force(parse_bundle(read_token(arguments.bundle)), read_public_key(arguments.release_root), arguments)
    genuine = verify_manifest_signature(manifest, bundle.content.manifest_keys)
    outcome: Outcome = "accepted"
    code, message = None, "a key of the bundle signed it, and the bundle allows it"
    try:
        verify_manifest(manifest, bundle)
    except TrustError as error:
        outcome, code, message = "rejected", error.code, str(error)
    return _Report(
        kind="workload identity manifest",
        outcome=outcome,
        code=code,
        message=message,
        facts=_facts_of_manifest(genuine.claims, manifest),
        document=_document(genuine.claims, manifest.jws),
        genuine=True,
        simulated=bundle.content.claims.simulated,
        not_checked=(("digests", "image and binary were not hashed"), *_omissions(arguments)),
    )


def _omissions(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    evidence = ("evidence", "no machine was looked at")
    if arguments.min_version is not None:
        return (evidence,)
    return evidence, ("rollback", "not given: --min-version, the highest version that was accepted before")


def _document(claims: BundleClaims | ManifestClaims, jws: UnverifiedJws) -> Mapping[str, object]:
    return {"kid": jws.kid, "digest": jws.digest, "claims": msgspec.to_builtins(claims)}


def _facts_of_bundle(content: BundleContent, bundle: UnverifiedBundle) -> tuple[tuple[str, str], ...]:
    claims = content.claims
    return (
        ("workload", claims.workload),
        ("version", str(claims.version)),
        ("issued at", claims.issued_at),
        ("valid until", claims.valid_until),
        ("signed by", bundle.jws.kid),
        ("digest", bundle.jws.digest),
        *sorted(facts_of(content)),
    )


def _facts_of_manifest(claims: ManifestClaims, manifest: UnverifiedManifest) -> tuple[tuple[str, str], ...]:
    return (
        ("workload", claims.workload),
        ("version", claims.version),
        ("image digest", claims.image_digest),
        ("binary digest", claims.binary_digest),
        *((f"build {name}", value) for name, value in sorted(claims.build_metadata.items())),
        ("signed by", manifest.jws.kid),
        ("workload identity tag", f"sha256:{manifest.tag.hex()}"),
    )


def _json(report: _Report) -> str:
    document = {
        "outcome": report.outcome,
        "code": report.code,
        "message": report.message,
        "kind": report.kind,
        "genuine": report.genuine,
        "simulated": report.simulated,
        "content": report.document or None,
        "not_checked": dict(report.not_checked),
    }
    return json.dumps(document).replace("\x7f", "\\u007f") + "\n"  # the one control character that JSON leaves as it is


def _lines(report: _Report) -> Iterator[str]:
    match report.outcome:
        case "accepted":
            yield "PASS"
        case "rejected":
            yield f"FAIL  {report.code}"
        case "undecided":
            yield f"FAIL  could not be decided: {report.code}"
    if report.simulated:
        yield "SIMULATED: no hardware protects anything of this"
    yield f"Kind:    {report.kind or 'unknown'}"
    yield f"Reason:  {report.message}"
    if report.facts:
        yield ""
        yield "Content:" if report.genuine or report.outcome == "accepted" else "Content, for which nobody vouches:"
    for name, value in report.facts:
        yield f"  {name + ':':<24}{value}"
    if report.not_checked:
        yield ""
        yield "Not checked:"
        yield from (f"  -  {item:<12}{detail}" for item, detail in report.not_checked)
