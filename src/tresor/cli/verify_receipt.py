"""`tresor-verify receipt`: gather the inputs, verify, report."""

import argparse
from datetime import UTC, datetime

from tresor.cli.receipt_report import ExitCode, ReceiptReport
from tresor.cli.verify_input import InputError, fetch_key_set, read_file, read_stdin
from tresor.errors import ReceiptError, ReceiptMismatchError
from tresor.jose.jwk import parse_jwks
from tresor.limits import MAX_EXCHANGE_BYTES, MAX_JWKS_BYTES, MAX_RECEIPT_BYTES
from tresor.receipts.verify import appraise_receipt, parse_receipt, verify_signature

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION = """
Verify a receipt: that a key of the given set signed it, that it is well-formed and consistent, and that it fits
whatever is given of the exchange.  The output says what was checked and what was not.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tresor-verify receipt`."""
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("--jwks-url", metavar="URL", help="fetch the router's key set (https; redirects are refused)")
    keys.add_argument("--jwks", metavar="FILE", help="read the router's key set from a file")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM roots to trust for --jwks-url in place of the system's")
    parser.add_argument("--request", metavar="FILE", help="exact bytes of the request body, to compare")
    parser.add_argument("--response", metavar="FILE", help="exact bytes of the response body, to compare")
    parser.add_argument("--nonce", metavar="N", help="the X-Tresor-Nonce that was sent, to compare")
    parser.add_argument("--at", metavar="TIME", type=_instant, help="verify as of this instant (RFC 3339), not of now")
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
    report = _verify(arguments)
    return report.exit_code, report.json() if arguments.json else report.text()


def _verify(arguments: argparse.Namespace) -> ReceiptReport:
    # Files before the network: what cannot be read here is known without asking anybody.
    receipt = _read_receipt(arguments.receipt)
    key_set = None if arguments.jwks is None else read_file(arguments.jwks, max_bytes=MAX_JWKS_BYTES)
    request = None if arguments.request is None else _read_body(arguments.request)
    response = None if arguments.response is None else _read_body(arguments.response)
    try:
        unverified = parse_receipt(receipt)
        if key_set is None:
            key_set = fetch_key_set(arguments.jwks_url, ca_file=arguments.ca_file)
        genuine = verify_signature(unverified, parse_jwks(key_set))
    except ReceiptError as error:
        return ReceiptReport.of_error(error)
    try:
        verified = appraise_receipt(
            genuine,
            now=arguments.at or datetime.now(UTC),
            request=request,
            response=response,
            nonce=arguments.nonce,
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


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!a} is not a time of RFC 3339") from error
    if instant.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!a} does not say its offset from UTC; write Z for none")
    return instant
