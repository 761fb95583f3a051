"""`tresor-verify attest`: ask a router what it is, and hold the answer against its trust bundle.

The challenge is made here, the key of the live connection is seen here; nothing that the router says counts unless the
hardware signed it and the release root allows it.  Implements docs/spec/attestation.md section 6.4.
"""

import argparse
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from tresor.attestation.binding import NONCE_BYTES
from tresor.attestation.codes import AttestationCode
from tresor.attestation.envelope import MAX_ENVELOPE_BYTES, Envelope, collateral_of, evidence_of, parse_envelope
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral
from tresor.attestation.node import Demands, appraise_node
from tresor.attestation.registry import needs
from tresor.attestation.results import AttestationResult, Check, failed, undecided
from tresor.cli.attest_report import AttestReport
from tresor.cli.bundle_memory import BundleMemory
from tresor.cli.reporting import ExitCode
from tresor.cli.verify_input import (
    FetchError,
    InputError,
    bundle_version,
    fetch,
    is_loopback_url,
    read_file,
    read_release_root,
)
from tresor.collateral.endorse import endorser
from tresor.limits import MAX_TOKEN_BYTES
from tresor.trust.bundle import TrustBundle, parse_bundle, verify_bundle
from tresor.trust.errors import TrustError
from tresor.trust.jwk import TrustKey

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION: Final = """
Verify a running router: that genuine hardware vouches for the software the release root allows, for the key of this
very connection and for the key that signs receipts now.  The output says what was checked and what was not.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tresor-verify attest`."""
    parser.add_argument("--url", metavar="URL", required=True, help="the router's origin, such as https://api.example")
    parser.add_argument("--release-root", metavar="FILE", required=True, help="public key of whoever releases it")
    parser.add_argument("--workload", metavar="NAME", default="router", help="what it must be (default: router)")
    parser.add_argument("--trust-bundle", metavar="FILE", help="trust bundle to use in place of the one it names")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM roots to trust for TLS in place of the system's")
    parser.add_argument(
        "--min-bundle-version", metavar="N", type=bundle_version, default=0, help="refuse older trust bundles"
    )
    parser.add_argument("--state", metavar="FILE", help="remember the newest trust bundle here, and refuse older ones")
    parser.add_argument("--offline", action="store_true", help="fetch no endorsements from AMD, Intel or Microsoft")
    parser.add_argument("--allow-simulated", action="store_true", help="accept evidence that no hardware made")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> tuple[ExitCode, str]:
    """Return the exit code and what is to be printed.

    Raises:
        InputError: an input cannot be read.
    """
    report = _verify(arguments)
    return report.exit_code, report.json() if arguments.json else report.text()


def _verify(arguments: argparse.Namespace) -> AttestReport:
    root = read_release_root(arguments.release_root)
    memory = BundleMemory.load(arguments.state, arguments.min_bundle_version)
    nonce = secrets.token_bytes(NONCE_BYTES)
    url = f"{arguments.url.rstrip('/')}/attestation?nonce={nonce.hex()}"
    try:
        answer = fetch(url, "--url", ca_file=arguments.ca_file, max_bytes=MAX_ENVELOPE_BYTES)
    except FetchError as error:
        return AttestReport(result=_nothing(undecided("envelope", AttestationCode.EVIDENCE_MISSING, str(error))))
    now = datetime.now(UTC)
    try:
        envelope = parse_envelope(answer.body)
    except AttestationError as error:
        return AttestReport(result=_nothing(failed("envelope", error.code, str(error))))
    try:
        bundle = _bundle(arguments, envelope, root, memory, now)
    except FetchError as error:
        check = undecided("trust_bundle", AttestationCode.COLLATERAL_MISSING, str(error))
        return AttestReport(result=_nothing(check), envelope=envelope)
    except TrustError as error:
        return AttestReport(result=_nothing(failed("trust_bundle", error.code, str(error))), envelope=envelope)
    memory.remember(root, bundle)  # the root's word, also where the router is not what it says
    if answer.spki_sha256 is None:
        detail = "the connection has no TLS, so nothing can be bound to it"
        check = failed("tls_spki", AttestationCode.SPKI_MISMATCH, detail)
        return AttestReport(result=_nothing(check), envelope=envelope, bundle=bundle)
    demands = Demands(nonce=nonce, tls_spki_sha256=answer.spki_sha256)
    collateral = Collateral() if arguments.offline else _endorsements(envelope)
    result = appraise_node(envelope, bundle=bundle, collateral=collateral, demands=demands, now=now)
    if not memory.checks_rollback:
        why = "no --state and no --min-bundle-version: an older bundle that is still valid looks the same"
        result = replace(result, not_checked={**result.not_checked, "rollback": why})
    return AttestReport(result=result, envelope=envelope, bundle=bundle)


def _nothing(check: Check) -> AttestationResult:
    return AttestationResult(tee="unknown", checks=(check,))


def _bundle(
    arguments: argparse.Namespace, envelope: Envelope, root: TrustKey, memory: BundleMemory, now: datetime
) -> TrustBundle:
    if arguments.trust_bundle is not None:
        token = read_file(arguments.trust_bundle, max_bytes=MAX_TOKEN_BYTES)
    elif envelope.trust_bundle_url is None:
        raise FetchError("the router names no trust bundle, and --trust-bundle gives none")
    else:
        try:
            url = envelope.trust_bundle_url
            # The word of somebody far away sends no request to services of this machine.
            if arguments.url.lower().startswith("https:") and not url.lower().startswith("https:"):
                raise FetchError("the router names a trust bundle that is not at an https address")
            if is_loopback_url(url) and not is_loopback_url(arguments.url):
                raise FetchError("the router names a trust bundle on this very machine, and is on another")
            token = fetch(url, "trust_bundle_url", ca_file=arguments.ca_file, max_bytes=MAX_TOKEN_BYTES).body
        except InputError as error:  # not an argument of ours: the router's word
            raise FetchError(str(error)) from error
    known = memory.known(root, arguments.workload)
    return verify_bundle(
        parse_bundle(token.strip()),
        root,
        now=now,
        min_version=known.version,
        known_digest=known.digest,
        workload=arguments.workload,
        allow_simulated=arguments.allow_simulated,
    )


def _endorsements(envelope: Envelope) -> Collateral:
    try:
        evidence = evidence_of(envelope)
        return endorser(None, online=True)(lambda held: needs(evidence, held), collateral_of(envelope))
    except AttestationError:  # which the appraisal meets again, and reports
        return Collateral()
