"""Signing keys outside a TEE: one file per router process, in a folder of the operator's.

A process takes the first slot whose lock is free and holds it for life, so that no two processes ever sign with one
key. Implements docs/spec/receipt.md section 6.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tresor.errors import KeyFileError
from tresor.issuer.keys import KeyAttestation
from tresor.jose.jwk import public_jwk
from tresor.store.base import Store

__all__ = ["KeySlot", "retire_lost_keys"]

_MAX_SLOTS: Final = 1024
_SLOT = re.compile(r"slot-[0-9]+\.pem")


class KeySlot:
    """A locked place for the signing key of this process.

    Args:
        folder: where slots are; made where it does not exist, readable by the owner only.

    Raises:
        KeyFileError: the folder cannot be used, or every slot is taken.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for number in range(_MAX_SLOTS):
                lock = os.open(folder / f"slot-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
                self._lock = lock
                self._file = folder / f"slot-{number}.pem"
                return
        except OSError as error:
            raise KeyFileError(f"key directory {folder}: {error.strerror}") from error
        raise KeyFileError(f"key directory {folder}: all {_MAX_SLOTS} slots are in use")

    def __repr__(self) -> str:
        return f"<KeySlot {self._file.name}>"

    @property
    def attested(self) -> bool:
        """Keys in files are bound to nothing."""
        return False

    def attest(self, key: ec.EllipticCurvePrivateKey) -> KeyAttestation | None:  # noqa: ARG002 - as KeySource has it
        """Return None: keys in files are bound to nothing."""
        return None

    def load(self) -> tuple[ec.EllipticCurvePrivateKey, int] | None:
        """Return the key of the process that held this slot before and since when it is there, or None for no key.

        Raises:
            KeyFileError: the file cannot be read, is open to others, or holds no P-256 key.
        """
        return _read(self._file)

    def make(self) -> ec.EllipticCurvePrivateKey:
        """Make a new key in place of the old one, flushed to disk before it is returned.

        Raises:
            KeyFileError: the file cannot be written; the old key stands.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        fresh = self._file.with_suffix(".new")
        try:
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
            folder = os.open(self._file.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise KeyFileError(f"key file {self._file}: {error.strerror}") from error
        return key


def retire_lost_keys(store: Store, folder: Path, *, now: int) -> None:
    """Retire what a rotation was to replace and no slot holds; to be called while no process signs.

    A store that was put back from a backup knows keys as live that were rotated away since.  Their files were
    overwritten, so no process would ever retire them, and whoever had copied one could sign with it again.

    Raises:
        KeyFileError: a key file cannot be used.
        StoreUnavailableError: as the store says.
    """
    try:
        files = [file for file in folder.iterdir() if _SLOT.fullmatch(file.name)]
    except FileNotFoundError:
        files = []
    except OSError as error:
        raise KeyFileError(f"key directory {folder}: {error.strerror}") from error
    held = {public_jwk(key.public_key()).kid for key, _ in filter(None, map(_read, files))}
    asked_at = store.rotation_requested_at()
    for key in store.signing_keys():
        if key.retired_at is None and key.created_at < asked_at and key.kid not in held:
            store.retire_signing_key(key.kid, now=max(now, key.created_at))


def _read(file: Path) -> tuple[ec.EllipticCurvePrivateKey, int] | None:
    """Return the key in a file and when that was written, Unix seconds; None where there is no file."""
    try:
        pem = file.read_bytes()
        status = file.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"key file {file}: {error.strerror}") from error
    if status.st_mode & 0o077:
        raise KeyFileError(f"key file {file} has mode {status.st_mode & 0o777:o}, want 600: others may have read it")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"key file {file} holds no unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"key file {file} holds a key that is not P-256")
    return key, int(status.st_mtime)
