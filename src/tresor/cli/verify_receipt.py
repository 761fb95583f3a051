"""`tresor-verify receipt`: gather the inputs, verify, report."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from tresor.attestation.folder import File, gather
from tresor.attestation.hop import HOP_KINDS, HopKind, HopPolicy
from tresor.attestation.policy import STRICT
from tresor.cli.receipt_report import ReceiptReport
from tresor.cli.reporting import ExitCode
from tresor.cli.verify_input import (
    InputError,
    bundle_version,
    fetch_key_set,
    instant,
    read_file,
    read_policy,
    read_release_root,
    read_stdin,
)
from tresor.collateral.directory import UnreadableError, read_files
from tresor.encodings import digest_string
from tresor.errors import ReceiptError, ReceiptMismatchError
from tresor.jose.jwk import parse_jwks
from tresor.limits import MAX_EXCHANGE_BYTES, MAX_JWKS_BYTES, MAX_RECEIPT_BYTES, MAX_TOKEN_BYTES
from tresor.receipts.attested import Trust
from tresor.receipts.verify import appraise_receipt, attested_key, parse_receipt, verify_signature

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """
Verify a receipt: that a key of the given set signed it, that it is well-formed and consistent, and that it fits
whatever is given of the exchange.  The output says what was checked and what was not.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tresor-verify receipt`."""
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--jwks-url", metavar="URL", help="fetch the router's key set (https; redirects are refused)")
    keys.add_argument("--jwks", metavar="FILE", help="read the router's key set from a file")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM roots to trust for --jwks-url in place of the system's")
    parser.add_argument("--request", metavar="FILE", help="exact bytes of the request body, to compare")
    parser.add_argument("--response", metavar="FILE", help="exact bytes of the response body, to compare")
    parser.add_argument("--nonce", metavar="N", help="the X-Tresor-Nonce that was sent, to compare")
    parser.add_argument("--release-root", metavar="FILE", help="public key of whoever releases the router's software")
    parser.add_argument(
        "--workload", metavar="NAME", default="router", help="what the router must be (default: router)"
    )
    parser.add_argument("--trust-bundle", metavar="FILE", help="trust bundle to use in place of the receipt's own")
    parser.add_argument(
        "--min-bundle-version", metavar="N", type=bundle_version, help="refuse older trust bundles of the router's"
    )
    parser.add_argument("--require", metavar="HOPS", type=_hops, help="router, inference: hops that must be attested")
    parser.add_argument("--inference-release-root", metavar="FILE", help="of a Tresor upstream, if not the router's")
    parser.add_argument("--inference-workload", metavar="NAME", default="inference", help="of a Tresor upstream")
    parser.add_argument("--inference-policy", metavar="FILE", help="policy for the evidence of any other upstream")
    parser.add_argument("--evidence", metavar="DIR", help="folder of evidence, besides what came with the receipt")
    parser.add_argument("--allow-simulated", action="store_true", help="accept evidence that no hardware made")
    parser.add_argument("--at", metavar="TIME", type=instant, help="verify as of this instant (RFC 3339), not of now")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("receipt", metavar="FILE|-", help="the API's JSON answer or a bare token; - for standard input")
    parser.set_defaults(refuse=parser.error)


def run(arguments: argparse.Namespace) -> tuple[ExitCode, str]:
    """Return the exit code and what is to be printed.

    Raises:
        InputError: an input cannot be read.
        SystemExit: by argparse, for options that do not go together.
    """
    if arguments.ca_file is not None and arguments.jwks_url is None:
        arguments.refuse("argument --ca-file: goes with --jwks-url")
    if arguments.release_root is None:
        of_trust = ("trust_bundle", "min_bundle_version", "require", "evidence", "inference_release_root")
        for option in (*of_trust, "inference_policy"):
            if getattr(arguments, option) is not None:
                arguments.refuse(f"argument --{option.replace('_', '-')}: goes with --release-root")
        if arguments.jwks is None and arguments.jwks_url is None:
            arguments.refuse("one of the arguments --jwks-url --jwks --release-root is required")
    report = _verify(arguments)
    return report.exit_code, report.json() if arguments.json else report.text()


def _verify(arguments: argparse.Namespace) -> ReceiptReport:
    # Files before the network: what cannot be read here is known without asking anybody.
    receipt = _read_receipt(arguments.receipt)
    key_set = None if arguments.jwks is None else read_file(arguments.jwks, max_bytes=MAX_JWKS_BYTES)
    request = None if arguments.request is None else _read_body(arguments.request)
    response = None if arguments.response is None else _read_body(arguments.response)
    trust = None if arguments.release_root is None else _read_trust(arguments)
    try:
        unverified = parse_receipt(receipt)
        if key_set is None and arguments.jwks_url is not None:
            key_set = fetch_key_set(arguments.jwks_url, ca_file=arguments.ca_file)
        keys = attested_key(unverified) if key_set is None else parse_jwks(key_set)
        genuine = verify_signature(unverified, keys)
    except ReceiptError as error:
        return ReceiptReport.of_error(error)
    try:
        verified = appraise_receipt(
            genuine,
            now=arguments.at or datetime.now(UTC),
            request=request,
            response=response,
            nonce=arguments.nonce,
            trust=trust,
        )
    except ReceiptMismatchError as error:
        return ReceiptReport.of_mismatch(error, genuine)
    return ReceiptReport.of_success(verified)


def _read_receipt(path: str) -> bytes:
    data = read_stdin(max_bytes=MAX_RECEIPT_BYTES) if path == "-" else read_file(path, max_bytes=MAX_RECEIPT_BYTES)
    if not data.strip():  # as when the command in front of the pipe failed
        raise InputError("there is no receipt: the input is empty")
    return data


def _read_body(path: str) -> bytes:
    data = read_file(path, max_bytes=MAX_EXCHANGE_BYTES)
    if len(data) > MAX_EXCHANGE_BYTES:
        raise InputError(f"{path!a} is longer than {MAX_EXCHANGE_BYTES} bytes")
    return data


def _read_trust(arguments: argparse.Namespace) -> Trust:
    require = arguments.require or frozenset()
    if arguments.jwks is None and arguments.jwks_url is None:  # then only the evidence can say whose the key is
        require |= {"router"}
    bundle = None
    if arguments.trust_bundle is not None:
        bundle = read_file(arguments.trust_bundle, max_bytes=MAX_TOKEN_BYTES).strip()
    held = [] if arguments.evidence is None else _read_folder(arguments.evidence)
    root = read_release_root(arguments.release_root)
    upstream = arguments.inference_release_root
    return Trust(
        release_root=root,
        workload=arguments.workload,
        inference=HopPolicy(
            policy=STRICT if arguments.inference_policy is None else read_policy(arguments.inference_policy),
            release_root=root if upstream is None else read_release_root(upstream),
            workload=arguments.inference_workload,
            allow_simulated=arguments.allow_simulated,
            kinds=_kinds(arguments),
        ),
        require=require,
        allow_simulated=arguments.allow_simulated,
        bundle=bundle,
        min_bundle_version=arguments.min_bundle_version or 0,
        evidence={digest_string(file.data): file.data for file in held},
        collateral=gather(held).collateral,
    )


def _kinds(arguments: argparse.Namespace) -> tuple[HopKind, ...]:
    """Return what the upstream may be: rules that were given must not go unused, because it says it is another kind."""
    given = (arguments.inference_release_root is not None, arguments.inference_policy is not None)
    if given[0] == given[1]:
        return HOP_KINDS
    return tuple(kind for kind in HOP_KINDS if (kind == "tresor") == given[0])


def _read_folder(path: str) -> list[File]:
    try:
        return read_files([Path(path)])
    except UnreadableError as error:
        raise InputError(str(error)) from error


def _hops(text: str) -> frozenset[str]:
    hops = frozenset(hop.strip() for hop in text.split(","))
    if unknown := hops - {"router", "inference"}:
        raise argparse.ArgumentTypeError(f"{min(unknown)!a} is not router or inference")
    return hops
