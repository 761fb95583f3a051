"""What `tresor-verify` reads: files, the standard input, a key set over HTTPS.  All reads are bounded."""

import ipaddress
import ssl
import sys
import time
from pathlib import Path

import httpx2

from tresor import __version__
from tresor.errors import ReceiptCode, ReceiptUndecidedError, TresorError
from tresor.limits import MAX_JWKS_BYTES

__all__ = ["InputError", "fetch_key_set", "read_file", "read_stdin"]

_TIMEOUT_S = 10.0
"""Of one connection, one write, one read."""
_DEADLINE_S = 30.0
"""Of the whole fetch; a server that drips bytes is not waited for."""
_HTTP_OK = 200


class InputError(TresorError):
    """An argument cannot be used, or an input cannot be read; there is no verdict."""

    code = "input_unusable"


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


def fetch_key_set(url: str, *, ca_file: str | None) -> bytes:
    """Fetch a key set.

    Redirects are not followed: who may name the key set's address is whoever typed it, not whoever answers there.

    Args:
        url: https, or http on a loopback address.
        ca_file: PEM bundle of the roots to trust for this fetch, in place of the system's.

    Raises:
        InputError: `url` or `ca_file` cannot be used.
        ReceiptUndecidedError: no key set could be had.
    """
    target, on_loopback = _parse_url(url)
    verify = True if ca_file is None else _trust(ca_file)
    deadline = time.monotonic() + _DEADLINE_S
    headers = {
        "Accept": "application/json",
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
                raise _unavailable(f"the server answered {response.status_code}{hint}")
            for part in response.iter_raw():
                body += part
                if len(body) > MAX_JWKS_BYTES:  # `parse_jwks` refuses it
                    break
                if time.monotonic() > deadline:
                    raise _unavailable(f"not here after {_DEADLINE_S:.0f} seconds")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise _unavailable(f"{type(error).__name__}: {error}") from error
    return bytes(body)


def _unavailable(detail: str) -> ReceiptUndecidedError:
    return ReceiptUndecidedError(ReceiptCode.JWKS_UNAVAILABLE, f"the key set could not be fetched: {detail}")


def _parse_url(url: str) -> tuple[httpx2.URL, bool]:
    try:
        target = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InputError(f"--jwks-url is not a URL: {error}") from error
    on_loopback = _is_loopback(target.host)
    if not target.host or not (target.scheme == "https" or (target.scheme == "http" and on_loopback)):
        raise InputError("--jwks-url is not https (http is for loopback addresses only)")
    return target, on_loopback


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
