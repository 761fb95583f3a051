"""What `tresor-verify` reads: files, the standard input, a key set over HTTPS.  All reads are bounded."""

import argparse
import hashlib
import ipaddress
import ssl
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx2
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tresor import __version__
from tresor.attestation.errors import PolicyError
from tresor.attestation.policy import MAX_POLICY_BYTES, Policy, parse_policy
from tresor.errors import ReceiptCode, ReceiptUndecidedError, TresorError
from tresor.limits import MAX_JWKS_BYTES
from tresor.trust.errors import TrustError
from tresor.trust.jwk import TrustKey
from tresor.trust.release_root import MAX_KEY_BYTES, parse_public_key

__all__ = [
    "FetchError",
    "Fetched",
    "InputError",
    "bundle_version",
    "fetch",
    "fetch_key_set",
    "instant",
    "is_loopback_url",
    "read_file",
    "read_release_root",
    "read_stdin",
]

_TIMEOUT_S = 10.0
"""Of one connection, one write, one read."""
_DEADLINE_S = 30.0
"""Of the whole fetch; a server that drips bytes is not waited for."""
_HTTP_OK = 200
_MAX_VERSION_DIGITS = 15


class InputError(TresorError):
    """An argument cannot be used, or an input cannot be read; there is no verdict."""

    code = "input_unusable"


class FetchError(TresorError):
    """A document could not be fetched; there is nothing to judge."""

    code = "unavailable"


@dataclass(frozen=True, slots=True, repr=False)
class Fetched:
    """A document, and the SHA-256 of the SubjectPublicKeyInfo of the TLS connection it came over (None without TLS)."""

    body: bytes
    spki_sha256: bytes | None


def instant(text: str) -> datetime:
    """Read an instant with its offset from UTC, for `argparse`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!a} is not a time of RFC 3339") from error
    if parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!a} does not say its offset from UTC; write Z for none")
    return parsed


def bundle_version(text: str) -> int:
    """Read the version of a trust bundle, for `argparse`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not text.isascii() or len(text) > _MAX_VERSION_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!a} is not a version number")
    return int(text)


def read_file(path: str, *, max_bytes: int) -> bytes:
    """Read a file, up to one byte more than `max_bytes`, by which its reader knows that it is too long.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {path!a}: {error.strerror}") from error


def read_stdin(*, max_bytes: int) -> bytes:
    """Read the standard input, up to one byte more than `max_bytes`.

    Raises:
        InputError: it cannot be read.
    """
    if sys.stdin is None:  # closed by whoever started the program
        raise InputError("the standard input is closed")
    try:
        return sys.stdin.buffer.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read the standard input: {error.strerror}") from error


def read_policy(path: str) -> Policy:
    """Read a policy for evidence.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        return parse_policy(read_file(path, max_bytes=MAX_POLICY_BYTES))
    except PolicyError as error:
        raise InputError(f"{path!a}: {error}") from error


def read_release_root(path: str) -> TrustKey:
    """Read the public key of whoever releases a router's software.

    Raises:
        InputError: it cannot be read, or is no such key.
    """
    try:
        return parse_public_key(read_file(path, max_bytes=MAX_KEY_BYTES))
    except TrustError as error:
        raise InputError(f"{path!a}: {error}") from error


def fetch_key_set(url: str, *, ca_file: str | None) -> bytes:
    """Fetch a key set.

    Args:
        url: https, or http on a loopback address.
        ca_file: PEM bundle of the roots to trust for this fetch, in place of the system's.

    Raises:
        InputError: `url` or `ca_file` cannot be used.
        ReceiptUndecidedError: no key set could be had.
    """
    try:
        return fetch(url, "--jwks-url", ca_file=ca_file, max_bytes=MAX_JWKS_BYTES).body
    except FetchError as error:
        raise ReceiptUndecidedError(
            ReceiptCode.JWKS_UNAVAILABLE, f"the key set could not be fetched: {error}"
        ) from error


def fetch(url: str, what: str, *, ca_file: str | None, max_bytes: int) -> Fetched:
    """Fetch a document, up to one byte more than `max_bytes`.

    Redirects are not followed: who may name an address is whoever typed it, not whoever answers there.

    Args:
        url: https, or http on a loopback address.
        what: the option that named the address, for messages.
        ca_file: PEM bundle of the roots to trust for this fetch, in place of the system's.
        max_bytes: most that is read.

    Raises:
        InputError: `url` or `ca_file` cannot be used.
        FetchError: nothing could be had.
    """
    target, on_loopback = _parse_url(url, what)
    verify = True if ca_file is None else _trust(ca_file)
    deadline = time.monotonic() + _DEADLINE_S
    headers = {
        "Accept": "*/*",
        "Accept-Encoding": "identity",  # a compressed answer would be read past its limit before it is seen
        "User-Agent": f"tresor-verify/{__version__}",
    }
    body = bytearray()
    try:
        with (
            # A proxy of the environment is for other machines than this one.
            httpx2.Client(verify=verify, timeout=_TIMEOUT_S, trust_env=not on_loopback) as client,
            client.stream("GET", target, headers=headers, follow_redirects=False) as response,
        ):
            if response.status_code != _HTTP_OK:
                hint = ", and redirects are not followed" if response.is_redirect else ""
                raise FetchError(f"the server answered {response.status_code}{hint}")
            spki_sha256 = _peer_spki(response)
            for part in response.iter_raw():
                body += part
                if len(body) > max_bytes:  # its reader refuses it
                    break
                if time.monotonic() > deadline:
                    raise FetchError(f"not here after {_DEADLINE_S:.0f} seconds")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise FetchError(f"{type(error).__name__}: {error}") from error
    return Fetched(bytes(body), spki_sha256)


def _peer_spki(response: httpx2.Response) -> bytes | None:
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    der = None if tls is None else tls.getpeercert(True)
    if der is None:
        return None
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FetchError("the server's certificate cannot be read") from error
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _parse_url(url: str, what: str) -> tuple[httpx2.URL, bool]:
    try:
        target = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InputError(f"{what} is not a URL: {error}") from error
    on_loopback = _is_loopback(target.host)
    if not target.host or not (target.scheme == "https" or (target.scheme == "http" and on_loopback)):
        raise InputError(f"{what} is not https (http is for loopback addresses only)")
    return target, on_loopback


def is_loopback_url(url: str) -> bool:
    """Whether a URL leads to this very machine by name; False for what is no URL."""
    try:
        return _is_loopback(httpx2.URL(url).host)
    except httpx2.InvalidURL:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _trust(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"cannot use {ca_file!a} as CA file: {error.strerror}") from error
