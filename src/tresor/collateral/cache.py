"""Collateral that was fetched before: one directory, one file per question (docs/spec/attestation.md, 3.2.2).

An entry is good until its content ends: a VCEK for ever, since it is asked for by chip and TCB; a revocation list and
Intel's collateral until their next update; a manifest until its signer's certificate ends; an OCSP answer for at most a
day; a key set for hours.  What is kept is verified like anything else at each use, so the cache needs no secrecy and no
integrity of its own; an entry that cannot be read is not there.  Writing is atomic: processes may share the directory.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from cryptography.x509 import ocsp

from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import CollateralKind, Need
from tresor.attestation.nvidia.rim import parse_rim
from tresor.attestation.tdx.collateral import parse_collateral
from tresor.attestation.x509 import load_crl, validity

__all__ = ["CollateralCache", "ends_at"]

_FOREVER: Final = datetime.max.replace(tzinfo=UTC)
_OCSP_LIFE: Final = timedelta(hours=24)
_JWKS_LIFE: Final = timedelta(hours=4)
_MAX_ENTRY_BYTES: Final = 16 << 20


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str
    kind: CollateralKind
    ends_at: datetime
    documents: tuple[bytes, ...]
    sha256: str


class CollateralCache:
    """A directory of answers; `get` and `put` never raise for what is or is not in it.

    Args:
        directory: made where it does not exist, with mode 0700.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory

    def get(self, need: Need, *, now: datetime) -> tuple[bytes, ...]:
        """Return the documents that answer `need`; empty where none are kept, or they have ended."""
        try:
            with self._path(need).open("rb") as file:
                entry = msgspec.json.decode(file.read(_MAX_ENTRY_BYTES), type=_Entry)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return ()
        if (entry.url, entry.kind) != (need.url, need.kind) or entry.sha256 != _digest(entry.documents):
            return ()
        return entry.documents if now < entry.ends_at else ()

    def put(self, need: Need, documents: tuple[bytes, ...], *, now: datetime) -> None:
        """Keep the documents that answer `need`, unless they have ended; a full disk keeps nothing."""
        end = ends_at(need.kind, documents, now=now)
        if end <= now:
            return
        entry = msgspec.json.encode(_Entry(need.url, need.kind, end, documents, _digest(documents)))
        path = self._path(need)
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(dir=self._directory, prefix=".", suffix=".new")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(entry)
                Path(name).replace(path)
            except OSError:
                Path(name).unlink(missing_ok=True)

    def _path(self, need: Need) -> Path:
        parts = (need.kind.encode(), need.url.encode(), *(url.encode() for url in need.also), need.body or b"")
        return self._directory / f"{_digest(parts)}.json"


def ends_at(kind: CollateralKind, documents: tuple[bytes, ...], *, now: datetime) -> datetime:
    """Return until when documents fetched at `now` answer the same question; `now` itself where that is not known."""
    try:
        return min((_ENDS[kind](document, now) for document in documents), default=now)
    except (AttestationError, ValueError):
        return now


def _crl_end(data: bytes, now: datetime) -> datetime:
    return load_crl(data).next_update_utc or now


def _tdx_end(data: bytes, now: datetime) -> datetime:
    collateral = parse_collateral(data)
    return min(
        collateral.tcb_info.next_update,
        collateral.qe_identity.next_update,
        collateral.pck_crl.next_update_utc or now,
        collateral.root_ca_crl.next_update_utc or now,
    )


def _rim_end(data: bytes, _now: datetime) -> datetime:
    return validity(parse_rim(data).certificates)[1]


def _ocsp_end(data: bytes, now: datetime) -> datetime:
    answers = ocsp.load_der_ocsp_response(data).responses
    return min(now + _OCSP_LIFE, *(answer.next_update_utc or now for answer in answers))


_ENDS: Final[dict[CollateralKind, Callable[[bytes, datetime], datetime]]] = {
    CollateralKind.CERTIFICATE: lambda _data, _now: _FOREVER,
    CollateralKind.CRL: _crl_end,
    CollateralKind.OCSP: _ocsp_end,
    CollateralKind.RIM: _rim_end,
    CollateralKind.TDX: _tdx_end,
    CollateralKind.JWKS: lambda _data, now: now + _JWKS_LIFE,
}


def _digest(parts: tuple[bytes, ...]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
