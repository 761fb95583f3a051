"""Files, passphrases and the terminal of `tresor release`.  All reads are bounded; nothing is overwritten by accident.

A written file is whole or not there: it is flushed under another name before it gets its own.
"""

import getpass
import hashlib
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tresor.errors import TresorError
from tresor.trust.compact import BUNDLE
from tresor.trust.jwk import TrustKey
from tresor.trust.release_root import MAX_KEY_BYTES, is_encrypted, parse_private_key, parse_public_key

__all__ = [
    "InputError",
    "digest_file",
    "new_passphrase",
    "printable",
    "read_file",
    "read_private_key",
    "read_public_key",
    "read_token",
    "write_file",
]

_MAX_PASSPHRASE_BYTES: Final = 1024
_MIN_PASSPHRASE_BYTES: Final = 20
"""Twenty characters of anything; the key derivation of PKCS #8 files makes guesses cheap."""


class InputError(TresorError):
    """An argument cannot be used, or a file cannot be read or written."""

    code = "input_unusable"


def printable(text: str) -> str:
    """Escape everything but printable ASCII, so that no value begins a line or talks to the terminal."""
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in text)


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`.

    Raises:
        InputError: it cannot be read, or is longer.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # a name with a NUL in it
        raise InputError(f"cannot read {path}: {error}") from error
    if len(data) > max_bytes:
        raise InputError(f"{path} is longer than {max_bytes} bytes")
    return data


def read_token(path: Path) -> bytes:
    """Read a manifest or a bundle, without the white space that an editor may have left around it."""
    return read_file(path, max_bytes=BUNDLE.max_chars + 16).strip(b" \t\r\n")


def read_public_key(path: Path) -> TrustKey:
    """Read a public key file."""
    return parse_public_key(read_file(path, max_bytes=MAX_KEY_BYTES))


def digest_file(path: Path) -> str:
    """Return `sha256:` and the digest of a file of any size.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_private_key(path: Path, passphrase_file: Path | None) -> Ed25519PrivateKey:
    """Read a private key, asking for its passphrase where no file gives it.

    Raises:
        InputError: the file cannot be read, is open to others, or there is nobody to ask.
        TrustMalformedError: it holds no key, or the passphrase is wrong.
    """
    pem = read_file(path, max_bytes=MAX_KEY_BYTES)
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
        raise InputError(f"{path} has mode {mode & 0o777:o}, want 600: others may have read the key")
    if passphrase_file is not None:
        return parse_private_key(pem, _read_passphrase(passphrase_file))
    return parse_private_key(pem, _ask(f"Passphrase of {path}: ") if is_encrypted(pem) else None)


def new_passphrase(passphrase_file: Path | None) -> bytes:
    """Return the passphrase for a new key, from a file or asked for twice.

    Raises:
        InputError: it is too short, the two differ, the file cannot be read, or there is nobody to ask.
    """
    if passphrase_file is not None:
        passphrase = _read_passphrase(passphrase_file)
    else:
        passphrase = _ask("Passphrase for the new key: ")
        if _ask("The same again: ") != passphrase:
            raise InputError("the two passphrases differ")
    if len(passphrase) < _MIN_PASSPHRASE_BYTES:
        raise InputError(f"a passphrase wants at least {_MIN_PASSPHRASE_BYTES} bytes; take several random words")
    return passphrase


def _read_passphrase(path: Path) -> bytes:
    passphrase = read_file(path, max_bytes=_MAX_PASSPHRASE_BYTES).removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise InputError(f"{path} holds no passphrase")
    return passphrase


def _ask(prompt: str) -> bytes:
    if sys.stdin is None or not sys.stdin.isatty():
        raise InputError("a passphrase is needed and there is no terminal to ask at: give --passphrase-file")
    try:
        return getpass.getpass(prompt).encode()
    except EOFError as error:
        raise InputError("no passphrase was given") from error


def write_file(path: Path, data: bytes, *, mode: int = 0o644, force: bool = False) -> None:
    """Write a file and flush it to disk.

    Args:
        path: where; its folder exists.
        data: all of it.
        mode: permissions, less the umask.
        force: whether a file that is there may be replaced.

    Raises:
        InputError: it is there already, or cannot be written; what was there is untouched.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    reserved = False
    try:
        if not force:
            # The name is taken by an empty file first: unlike a hard link, any file system of a USB stick can do it.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
            reserved = True
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise InputError(f"{path} is there already") from error
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if reserved:
            path.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from error
