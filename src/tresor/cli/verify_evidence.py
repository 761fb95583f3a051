"""`tresor-verify evidence`: gather files, fetch what is missing if asked to, appraise, report."""

import argparse
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tresor.attestation.folder import Folder, appraise_folder, needs
from tresor.attestation.policy import STRICT
from tresor.attestation.roots import vendor_anchors
from tresor.cli.evidence_report import EvidenceReport
from tresor.cli.reporting import ExitCode
from tresor.cli.verify_input import InputError, instant, read_policy
from tresor.collateral.cache import CollateralCache
from tresor.collateral.directory import UnreadableError, load_folder
from tresor.collateral.fetcher import Fetched, Fetcher

__all__ = ["DESCRIPTION", "add_arguments", "run"]

DESCRIPTION: Final = """
Appraise evidence of any supported TEE, or a provider's whole answer: is it genuine, is it acceptable, and what does it
bind?  Files are recognised by content; a folder is taken whole, endorsements included.  Nothing is asked of the network
unless --fetch is given.  The output says what was checked and what was not.
"""
_MAX_NONCE_BYTES: Final = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tresor-verify evidence`."""
    parser.add_argument("--policy", metavar="FILE", help="what is acceptable, in TOML or JSON; strict by default")
    parser.add_argument("--at", metavar="TIME", type=instant, help="verify as of this instant (RFC 3339), not of now")
    parser.add_argument("--nonce", metavar="HEX", type=_nonce, help="the challenge that was sent, to compare")
    parser.add_argument("--collateral", metavar="DIR", action="append", default=[], help="further endorsements")
    parser.add_argument("--fetch", action="store_true", help="ask AMD, Intel and NVIDIA for what is missing")
    parser.add_argument("--cache", metavar="DIR", help="keep what was fetched here; without --fetch, use what is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "evidence", metavar="DIR|FILE", nargs="+", help="evidence and endorsements that belong together"
    )


def run(arguments: argparse.Namespace) -> tuple[ExitCode, str]:
    """Return the exit code and what is to be printed.

    Raises:
        InputError: an input cannot be read.
    """
    report = _verify(arguments)
    return report.exit_code, report.json() if arguments.json else report.text()


def _verify(arguments: argparse.Namespace) -> EvidenceReport:
    policy = STRICT if arguments.policy is None else read_policy(arguments.policy)
    folder = _load(arguments.evidence)
    for path in arguments.collateral:
        more = _load([path])
        folder = replace(folder, collateral=folder.collateral + more.collateral, unread=(*folder.unread, *more.unread))
    nonce = _only_nonce(folder, arguments.nonce)
    fetched = _fetch(folder, arguments)
    folder = replace(folder, collateral=fetched.collateral)
    now = arguments.at or datetime.now(UTC)
    result = appraise_folder(folder, nonce=nonce, policy=policy, anchors=vendor_anchors(), now=now)
    if arguments.nonce is None and nonce is not None:
        why = "the challenge is the one in a file beside the evidence: that it was yours is for you to know"
        result = replace(result, not_checked={**result.not_checked, "nonce": why})
    if missing := _missing(folder, fetched):
        result = replace(result, not_checked={**result.not_checked, "collateral": missing})
    return EvidenceReport(result=result, now=now)


def _load(paths: list[str]) -> Folder:
    try:
        return load_folder(map(Path, paths))
    except UnreadableError as error:
        raise InputError(str(error)) from error


def _only_nonce(folder: Folder, given: bytes | None) -> bytes | None:
    """Return the one challenge that is expected; of two that differ, nobody can say which was sent."""
    nonces = dict.fromkeys((*folder.nonces, *(() if given is None else (given,))))
    if len(nonces) > 1:
        raise InputError(f"there are {len(nonces)} different nonces, in files and --nonce; which one was sent?")
    return next(iter(nonces), None)


def _fetch(folder: Folder, arguments: argparse.Namespace) -> Fetched:
    if not arguments.fetch and arguments.cache is None:
        return Fetched(folder.collateral)
    try:
        cache = None if arguments.cache is None else CollateralCache(Path(arguments.cache))
    except OSError as error:
        raise InputError(f"cannot use {arguments.cache!a} as cache: {error.strerror}") from error
    fetcher = Fetcher(cache=cache, online=arguments.fetch)
    return fetcher.complete(lambda held: needs(replace(folder, collateral=held)), folder.collateral)


def _missing(folder: Folder, fetched: Fetched) -> str:
    """Say what the verification could have used and had not, with the reasons where it was asked for."""
    missing = dict.fromkeys(need.url for need in needs(folder) if need not in fetched.failures)
    counts = Counter(need.url for need in needs(folder))
    urls = (url if counts[url] == 1 else f"{url} ({counts[url]} questions)" for url in missing)
    reasons = [*dict.fromkeys(fetched.failures.values()), *([f"not at hand: {', '.join(urls)}"] if missing else [])]
    return "; ".join(reasons)


def _nonce(text: str) -> bytes:
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if not 1 <= len(nonce) <= _MAX_NONCE_BYTES or 2 * len(nonce) != len(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!a} is not 1 to {_MAX_NONCE_BYTES} bytes in hexadecimal")
    return nonce
