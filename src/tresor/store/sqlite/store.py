"""`SqliteStore`: the promises of `tresor.store.base` on one SQLite file.

WAL with `synchronous=FULL`: a commit returns when the log is flushed.  One connection per process writes, under a
lock, so that threads queue fairly instead of polling SQLite's own lock; readers have a connection per thread.
Automatic checkpoints are off: they would run inside somebody's commit.  `maintain` makes them, and only one process
calls it (docs/adr/0004-sqlite-store.md).
"""

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from tresor.encodings import base64url_decode
from tresor.errors import EncodingError, StoreUnavailableError
from tresor.jose.jws import SignedJws
from tresor.store.base import ApiKey, Customer, EvidenceItem, NewReceipt, SigningKey, StoredReceipt

__all__ = ["SqliteStore"]

_BUSY_TIMEOUT_S: Final = 5.0
_MIN_SQLITE: Final = (3, 37, 0)  # STRICT tables
_RESTART_WAIT_MS: Final = 50
_MAX_WAL_FRAMES: Final = 2_000  # pages of 4 KiB
_NEWEST: Final = 1 << 62
_SIGNATURE: Final = 2  # the position of that part in a compact JWS
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def _load_queries() -> Mapping[str, str]:
    text = resources.files(__package__).joinpath("queries.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: sql.strip() for name, sql in zip(parts[::2], parts[1::2], strict=True)}


_QUERIES: Final = _load_queries()


class SqliteStore:
    """A store in one file.

    Args:
        path: the database file; it and its folder are made where they do not exist, readable by the owner only, and
            a file that others could read is closed to them.

    Raises:
        StoreUnavailableError: the file cannot be opened, is no database, or was made by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # one of its own: a reader must not wait for whoever waits to write
        self._readers = threading.local()
        self._in_doubt = False  # whether the last append failed, or runs now
        self._open: list[sqlite3.Connection] = []
        self._key_ids: dict[str, int] = {}
        if sqlite3.sqlite_version_info < _MIN_SQLITE:
            raise StoreUnavailableError(f"SQLite is {sqlite3.sqlite_version}, want at least 3.37")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._inode = os.fstat(file).st_ino
            finally:
                os.close(file)
            for suffix in ("", "-wal", "-shm"):
                _close_to_others(path.with_name(f"{path.name}{suffix}"))
        except OSError as error:
            raise StoreUnavailableError(f"store {path}: {error.strerror}") from error
        with _mapped():
            self._writer = self._connect()
            self._migrate()

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}>"

    def close(self) -> None:
        with self._lock, self._opening, _mapped():
            for connection in self._open:
                connection.close()
            self._open.clear()

    def check(self) -> None:
        with self._write() as writer:
            version = writer.execute("PRAGMA user_version").fetchone()[0]
            if self._in_doubt:  # a full disk shows only where a page is written, and this writes one that says the same
                writer.execute(f"PRAGMA user_version = {version}")
        self._in_doubt = False

    # Customers and API keys.

    def add_customer(self, name: str, plan: str, *, now: int, required_claims: str = "") -> Customer | None:
        values = {"name": name, "plan": plan, "now": now, "required_claims": required_claims}
        with self._write() as writer:
            row = self._one(writer, "add_customer", values)
        return None if row is None else Customer(*row)

    def change_customer(self, name: str, *, plan: str | None, required_claims: str | None) -> Customer | None:
        values = {"name": name, "plan": plan, "required_claims": required_claims}
        with self._write() as writer:
            row = self._one(writer, "change_customer", values)
        return None if row is None else Customer(*row)

    def customers(self) -> list[Customer]:
        return [Customer(*row) for row in self._read("customers", {})]

    def add_api_key(self, key_id: str, customer: str, digest: bytes, label: str, *, now: int) -> bool:
        values = {"key_id": key_id, "customer": customer, "digest": digest, "label": label, "now": now}
        with self._write() as writer:
            return self._one(writer, "add_api_key", values) is not None

    def api_keys(self, customer: str | None = None) -> list[ApiKey]:
        return [_api_key(row) for row in self._read("api_keys", {"customer": customer})]

    def find_api_key(self, digest: bytes) -> ApiKey | None:
        rows = self._read("find_api_key", {"digest": digest})
        return _api_key(rows[0]) if rows else None

    def revoke_api_key(self, key_id: str, *, now: int) -> bool:
        with self._write() as writer:
            return self._one(writer, "revoke_api_key", {"key_id": key_id, "now": now}) is not None

    # Signing keys.

    def register_signing_key(self, kid: str, x: str, y: str, *, now: int) -> SigningKey:
        with self._write() as writer:
            writer.execute(_QUERIES["register_signing_key"], {"kid": kid, "x": x, "y": y, "now": now})
            row = self._one(writer, "find_signing_key", {"kid": kid})
        if row is None:
            raise StoreUnavailableError("a signing key just registered is not there")
        return SigningKey(*row)

    def retire_signing_key(self, kid: str, *, now: int) -> None:
        with self._write() as writer:
            writer.execute(_QUERIES["retire_signing_key"], {"kid": kid, "now": now})

    def signing_keys(self) -> list[SigningKey]:
        return [SigningKey(*row) for row in self._read("signing_keys", {})]

    def request_rotation(self, *, now: int) -> None:
        with self._write() as writer:
            writer.execute(_QUERIES["request_rotation"], {"now": now})

    def rotation_requested_at(self) -> int:
        return int(self._read("rotation_requested_at", {})[0][0])

    # Receipts.

    def append_receipts(self, receipts: Sequence[NewReceipt]) -> None:
        key_id = self._key_id(receipts[0].kid)
        values: list[object] = []
        for receipt in receipts:
            values += (
                _uuid_bytes(receipt.id),
                receipt.customer_id,
                key_id,
                receipt.seq,
                receipt.issued_at,
                receipt.jws.protected.decode(),
                receipt.jws.payload.decode(),
                receipt.jws.signature,
            )
        # One statement is one transaction, and one call without the interpreter lock from its begin to its flush.
        rows = ",".join(["(?,?,?,?,?,?,?,?)"] * len(receipts))
        self._in_doubt = True
        with self._lock, _mapped():
            self._check_file()
            self._writer.execute(f"{_QUERIES['append_receipts']} {rows}", values)
        self._in_doubt = False

    def _key_id(self, kid: str) -> int:
        key_id = self._key_ids.get(kid)
        if key_id is None:
            rows = self._read("signing_key_id", {"kid": kid})
            if not rows:
                raise StoreUnavailableError(f"signing key {kid} is not registered")
            key_id = self._key_ids[kid] = int(rows[0][0])
        return key_id

    def find_receipt(self, receipt_id: str, customer_id: int) -> StoredReceipt | None:
        rows = self._read("find_receipt", {"id": _uuid_bytes(receipt_id), "customer_id": customer_id})
        return _stored(rows[0]) if rows else None

    def list_receipts(self, customer_id: int, *, after: str | None, limit: int) -> list[StoredReceipt] | None:
        before = _NEWEST
        if after is not None:
            position = self._read("receipt_position", {"id": _uuid_bytes(after), "customer_id": customer_id})
            if not position:
                return None
            before = position[0][0]
        rows = self._read("list_receipts", {"customer_id": customer_id, "before": before, "limit": limit})
        return [_stored(row) for row in rows]

    def delete_receipts(self, issued_before: int, *, limit: int) -> int:
        with self._write() as writer:
            writer.execute(_QUERIES["keep_last_seq"])
            values = {"issued_before": issued_before, "limit": limit}
            deleted = len(writer.execute(_QUERIES["delete_receipts"], values).fetchall())
            if deleted < limit:
                writer.execute(_QUERIES["delete_unused_evidence"], {"issued_before": issued_before})
            return deleted

    # Evidence that receipts refer to.

    def put_evidence(self, items: Sequence[EvidenceItem], *, used_until: int) -> None:
        with self._write() as writer:
            for item in items:
                values = {"digest": item.digest, "media_type": item.media_type, "data": item.data}
                writer.execute(_QUERIES["put_evidence"], {**values, "used_until": used_until})

    def find_evidence(self, digests: Sequence[bytes]) -> list[EvidenceItem]:
        found = (self._read("find_evidence", {"digest": digest}) for digest in digests)
        return [EvidenceItem(*row) for rows in found for row in rows]

    # Counters.

    def take_permits(self, customer_id: int, window: int, *, wanted: int, limit: int, now: int) -> tuple[int, int]:
        key = {"customer_id": customer_id, "window": window, "began_at": now - now % window}
        with self._write() as writer:
            row = self._one(writer, "permits_taken", key)
            before = 0 if row is None else int(row[0])
            row = self._one(writer, "take_permits", {**key, "wanted": wanted, "limit": limit})
        after = before if row is None else int(row[0])
        return max(0, after - before), max(0, limit - after)

    # Upkeep.

    def maintain(self) -> None:
        """Copy the log into the database file, and have writers begin the log anew once it has grown.

        A log that is written over keeps its size, and flushing it then needs no change of the file's metadata: a commit
        takes a fraction of the time it takes while the file grows.  Most is copied while writers go on; only the rest
        is copied while they wait.
        """
        with _mapped():
            _, frames, _ = self._reader().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if frames > _MAX_WAL_FRAMES:
                # Long enough to come between two commits; a reader that is not done by then must not hold them up.
                self._reader().execute(f"PRAGMA busy_timeout={_RESTART_WAIT_MS}").fetchone()
                try:
                    self._reader().execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
                finally:
                    self._reader().execute(f"PRAGMA busy_timeout={int(_BUSY_TIMEOUT_S * 1000)}").fetchone()

    # Connections.

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
        )
        _turn_log_on(connection)
        for pragma in (
            "synchronous=FULL",
            "foreign_keys=ON",
            "wal_autocheckpoint=0",
            "cache_size=-16384",
            "trusted_schema=OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")
        self._open.append(connection)
        return connection

    def _reader(self) -> sqlite3.Connection:
        reader: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if reader is None:
            with self._opening:
                reader = self._readers.connection = self._connect()
        return reader

    def _read(self, query: str, values: Mapping[str, object]) -> list[Any]:
        self._check_file()
        with _mapped():
            return self._reader().execute(_QUERIES[query], values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """Give the writing connection inside a transaction that is durable when the block is left."""
        with self._lock, _mapped():
            self._check_file()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _check_file(self) -> None:
        """Refuse a file that was deleted or replaced: SQLite would go on writing to one that has no name."""
        try:
            inode = os.stat(self._path).st_ino  # noqa: PTH116 - on the path of every commit
        except OSError as error:
            raise StoreUnavailableError(f"store: {error.strerror}") from error
        if inode != self._inode:
            raise StoreUnavailableError("store: the database file was replaced while in use")

    @staticmethod
    def _one(connection: sqlite3.Connection, query: str, values: Mapping[str, object]) -> Any:
        """Return the first row of a query or None, having stepped it to its end."""
        rows = connection.execute(_QUERIES[query], values).fetchall()
        return rows[0] if rows else None

    def _migrate(self) -> None:
        folder = resources.files(__package__).joinpath("migrations")
        scripts = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
        self._writer.create_function("jws_part", 2, _jws_part, deterministic=True)
        with self._write() as writer:
            version = writer.execute("PRAGMA user_version").fetchone()[0]
            if version > len(scripts):
                raise StoreUnavailableError(
                    f"store has schema version {version}, this program knows {len(scripts)}: it was made by a newer one"
                )
            for script in scripts[version:]:
                try:
                    for statement in _statements(script.read_text(encoding="utf-8")):
                        writer.execute(statement)
                except sqlite3.Error as error:
                    raise StoreUnavailableError(
                        f"store: it cannot be brought up to date by {script.name}: {error}"
                    ) from error
            writer.execute(f"PRAGMA user_version = {len(scripts)}")


def _close_to_others(file: Path) -> None:
    """Take from others what they may not have: a copy that was put back has the mode of whoever made it."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        file.chmod(0o600)


def _turn_log_on(connection: sqlite3.Connection) -> None:
    """Turn the log on; SQLite itself does not wait for another process that is just doing so with a fresh file."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _statements(script: str) -> Iterator[str]:
    """Split a script; `executescript` would commit the transaction it runs in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _uuid_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("-", ""))


def _api_key(row: tuple[Any, ...]) -> ApiKey:
    return replace(ApiKey(*row), required_claims=frozenset(filter(None, row[-1].split(","))))


def _stored(row: tuple[bytes, str, str, bytes]) -> StoredReceipt:
    receipt_id, protected, payload, signature = row
    return StoredReceipt(str(UUID(bytes=receipt_id)), SignedJws(protected.encode(), payload.encode(), signature))


def _jws_part(token: str, position: int) -> str | bytes | None:
    """Return a part of a compact JWS, for the migration of receipts that were stored as one; None where it is none."""
    try:
        part = base64url_decode(token.split(".")[position])
        return part if position == _SIGNATURE else part.decode()
    except (EncodingError, IndexError, UnicodeDecodeError):
        return None  # which the new table refuses


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        raise StoreUnavailableError(f"store: {name}: {error}") from error
