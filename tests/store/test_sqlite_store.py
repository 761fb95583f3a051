"""What is SQLite's own: files and their modes, migrations, faults of the disk, the log."""

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from tresor.errors import StoreUnavailableError
from tresor.jose.jws import SignedJws
from tresor.store.base import EvidenceItem, NewReceipt
from tresor.store.sqlite import store as module
from tresor.store.sqlite.store import SqliteStore

NOW = 1_800_000_000
PAGE = 4096
TOKEN = SignedJws(b'{"kid":"k"}', '{"seq":1,"nonce":"ä"}'.encode(), bytes(range(192, 256))).compact


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tresor.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(path)
    opened.register_signing_key("k", "x", "y", now=NOW)
    yield opened
    opened.close()


def receipts(first: int, count: int = 1, size: int = 10) -> list[NewReceipt]:
    return [
        NewReceipt(str(uuid4()), 1, "k", seq, NOW, SignedJws(b"{}", b"t" * size, b""))
        for seq in range(first, first + count)
    ]


def last_seq(store: SqliteStore) -> int:
    return store.signing_keys()[0].last_seq


# Files.


def test_files_are_the_owners_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "folder" / "tresor.db")
        store.register_signing_key("k", "x", "y", now=NOW)
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "folder").iterdir()}
    assert modes == {"tresor.db": 0o600, "tresor.db-wal": 0o600, "tresor.db-shm": 0o600}
    store.close()


def test_files_that_others_can_read_are_closed_to_them(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "tresor.db")
    store.register_signing_key("k", "x", "y", now=NOW)
    for file in tmp_path.iterdir():
        file.chmod(0o644)
    SqliteStore(tmp_path / "tresor.db").close()
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    store.close()


def test_a_commit_is_flushed(store: SqliteStore) -> None:
    pragmas = {name: store._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


@pytest.mark.parametrize("name", ["nowhere/below/a/file", "."])
def test_a_path_that_cannot_be_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "nowhere").write_text("no folder")
    with pytest.raises(StoreUnavailableError, match=r"Not a directory|Is a directory"):
        SqliteStore(tmp_path / name)


@pytest.mark.parametrize("content", [b"no database " * 100, b"SQLite format 3\0" + b"\xff" * 4000, b"\0" * PAGE])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreUnavailableError):
        SqliteStore(path)
    assert path.read_bytes() == content


# Migrations.


def test_a_new_file_gets_the_newest_schema(path: Path, store: SqliteStore) -> None:
    scripts = list((Path(module.__file__).parent / "migrations").glob("*.sql"))
    assert scripts
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(scripts),)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_of_an_older_version_keeps_what_it_holds(path: Path, version: int) -> None:
    """Customers that were added before there were required claims require nothing, until that is changed."""
    scripts = sorted((Path(module.__file__).parent / "migrations").glob("*.sql"))
    receipt_id, item = uuid4(), EvidenceItem(b"d" * 32, "text/plain", b"data")
    with closing(sqlite3.connect(path)) as connection:
        for script in scripts[:version]:
            connection.executescript(script.read_text())
        connection.execute("INSERT INTO customers (id, name, plan, created_at) VALUES (7, 'acme', 'gold', ?)", (NOW,))
        connection.execute("INSERT INTO api_keys VALUES (?, 'key_1', 7, 'laptop', ?, NULL)", (b"1" * 32, NOW))
        connection.execute("INSERT INTO signing_keys VALUES (3, 'k', 'x', 'y', ?, NULL, 0)", (NOW,))
        connection.execute("INSERT INTO receipts VALUES (1, ?, 7, 3, 1, ?, ?)", (receipt_id.bytes, NOW, TOKEN))
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
    for opened_before in (False, True):
        store = SqliteStore(path)
        (customer,) = store.customers()
        assert (customer.id, customer.name, customer.plan, customer.created_at) == (7, "acme", "gold", NOW)
        found = store.find_api_key(b"1" * 32)
        assert found is not None
        assert found.required_claims == ({"cpu_tee"} if opened_before else frozenset())
        stored = store.find_receipt(str(receipt_id), 7)
        assert stored is not None
        assert (stored.jws.compact, last_seq(store)) == (TOKEN, 1)
        assert store.change_customer("acme", plan=None, required_claims="cpu_tee") is not None
        store.put_evidence([item], used_until=NOW)
        assert store.find_evidence([item.digest]) == [item]
        store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(scripts),)


@pytest.mark.parametrize("token", ["", "abc", "é.é.é", "e30.e30", "e30.e3.AA", "e30.__8.AA"])
def test_a_file_that_cannot_be_brought_up_to_date_is_refused_and_left_alone(path: Path, token: str) -> None:
    scripts = sorted((Path(module.__file__).parent / "migrations").glob("*.sql"))
    with closing(sqlite3.connect(path)) as connection:
        for script in scripts[:3]:
            connection.executescript(script.read_text())
        connection.execute("INSERT INTO receipts VALUES (1, ?, 7, 3, 1, ?, ?)", (b"1" * 16, NOW, token))
        connection.execute("PRAGMA user_version = 3")
        connection.commit()
    with pytest.raises(StoreUnavailableError, match=r"cannot be brought up to date by 0004-jws-parts\.sql: NOT NULL"):
        SqliteStore(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT token FROM receipts").fetchall() == [(token,)]
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    SqliteStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1000")
    before = path.read_bytes()
    with pytest.raises(StoreUnavailableError, match=r"schema version 1000, this program knows .*newer"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_migration_that_fails_leaves_nothing(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE rotation (taken)")  # the last of the first script
    with pytest.raises(StoreUnavailableError, match="rotation"):
        SqliteStore(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("rotation",)]


# Faults.


def every_call(store: SqliteStore) -> list[Callable[[], object]]:
    return [
        store.check,
        store.customers,
        store.signing_keys,
        store.rotation_requested_at,
        lambda: store.add_customer("acme", "default", now=NOW),
        lambda: store.change_customer("acme", plan="gold", required_claims=None),
        lambda: store.find_api_key(b"1"),
        lambda: store.put_evidence([EvidenceItem(b"1" * 32, "text/plain", b"1")], used_until=NOW),
        lambda: store.find_evidence([b"1" * 32]),
        lambda: store.append_receipts(receipts(2)),
        lambda: store.find_receipt(str(uuid4()), 1),
        lambda: store.list_receipts(1, after=None, limit=1),
        lambda: store.delete_receipts(NOW + 1, limit=1),
        lambda: store.take_permits(1, 60, wanted=1, limit=1, now=NOW),
        lambda: store.register_signing_key("l", "x", "y", now=NOW),
    ]


@pytest.mark.parametrize("put", [None, b"", b"something else"])
def test_a_file_that_was_deleted_or_replaced_is_noticed_and_may_come_back(
    path: Path, store: SqliteStore, put: bytes | None
) -> None:
    store.append_receipts(receipts(1))
    away = path.rename(path.with_name("away"))
    if put is not None:
        path.write_bytes(put)
    for call in every_call(store):
        with pytest.raises(StoreUnavailableError):
            call()
    away.rename(path)
    for call in every_call(store):
        call()
    assert last_seq(store) == 2


@pytest.fixture
def _read_only(store: SqliteStore) -> Iterator[None]:
    store._writer.execute("PRAGMA query_only = ON")
    yield
    store._writer.execute("PRAGMA query_only = OFF")


@pytest.mark.usefixtures("_read_only")
def test_a_store_that_cannot_be_written_is_unavailable_to_writers_alone(store: SqliteStore) -> None:
    for call in (
        lambda: store.append_receipts(receipts(1)),
        lambda: store.add_customer("acme", "default", now=NOW),
        lambda: store.take_permits(1, 60, wanted=1, limit=1, now=NOW),
    ):
        with pytest.raises(StoreUnavailableError, match="SQLITE_READONLY"):
            call()
    assert store.customers() == []
    assert store.find_receipt(str(uuid4()), 1) is None


@pytest.mark.usefixtures("_read_only")
def test_check_says_so_once_an_append_has_failed(store: SqliteStore) -> None:
    with pytest.raises(StoreUnavailableError):
        store.append_receipts(receipts(1))
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            store.check()
    store._writer.execute("PRAGMA query_only = OFF")
    store.check()
    store.append_receipts(receipts(1))


def test_a_full_store_changes_nothing_and_goes_on_once_there_is_room(store: SqliteStore) -> None:
    store.append_receipts(receipts(1))
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreUnavailableError, match="SQLITE_FULL"):
        store.append_receipts(receipts(2, count=100, size=1000))
    assert last_seq(store) == 1
    listed = store.list_receipts(1, after=None, limit=200)
    assert listed is not None
    assert len(listed) == 1
    store._writer.execute("PRAGMA max_page_count = 1000000")
    store.append_receipts(receipts(2, count=100, size=1000))
    assert last_seq(store) == 101


ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from uuid import uuid4
from tresor.errors import StoreUnavailableError
from tresor.jose.jws import SignedJws
from tresor.store.base import NewReceipt
from tresor.store.sqlite.store import SqliteStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
store = SqliteStore(path)
store.register_signing_key("k", "x", "y", now=1)
new = [NewReceipt(str(uuid4()), 1, "k", seq, 1, SignedJws(b"{}", b"t" * 1000, b"")) for seq in range(1, 101)]
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
size = path.with_name("tresor.db-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, hard))
for call in (lambda: store.append_receipts(new), store.check, lambda: store.append_receipts(new[:20])):
    try:
        call()
    except StoreUnavailableError as error:
        print(str(error).split(":")[1].strip())
print(store.signing_keys()[0].last_seq, store.list_receipts(1, after=None, limit=1))
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
store.check()
store.append_receipts(new)
print(store.signing_keys()[0].last_seq)
"""


def test_a_disk_that_is_full_is_not_taken_for_one_that_is_written(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, path], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    *faults, during, behind = done.stdout.splitlines()
    assert len(faults) == 3
    assert all(fault.startswith(("SQLITE_IOERR", "SQLITE_FULL")) for fault in faults)
    assert (during, behind) == ("0 []", "100")


def test_a_lock_held_too_long_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_S", 0.0)
    store = SqliteStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="SQLITE_BUSY"):
            store.check()
        assert store.customers() == []
    store.check()
    store.close()


def test_an_error_inside_a_transaction_takes_it_back(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_one", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.add_customer("acme", "default", now=NOW)
    monkeypatch.undo()
    assert store.customers() == []
    assert store.add_customer("acme", "default", now=NOW) is not None


# The log.


def test_upkeep_keeps_the_log_bounded_and_everything_readable(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_WAL_FRAMES", 50)
    log = path.with_name("tresor.db-wal")
    sizes = []
    for first in range(1, 401, 20):
        store.append_receipts(receipts(first, count=20, size=1000))
        store.maintain()
        sizes.append(log.stat().st_size)
    assert sizes[-1] == sizes[len(sizes) // 2]  # it has stopped growing
    assert sizes[-1] < 100 * (PAGE + 24)
    assert path.stat().st_size > 400 * 1000  # what was in it is in the file
    listed = store.list_receipts(1, after=None, limit=1000)
    assert listed is not None
    assert [receipt.jws.payload for receipt in listed] == [b"t" * 1000] * 400
    assert last_seq(store) == 400


def test_the_log_alone_grows_without_upkeep(path: Path, store: SqliteStore) -> None:
    before = path.stat().st_size
    for first in range(1, 101):
        store.append_receipts(receipts(first, size=4000))
    assert path.stat().st_size == before  # no commit had to copy what others wrote


def test_a_reader_does_not_keep_receipts_from_being_stored(path: Path, store: SqliteStore) -> None:
    store.append_receipts(receipts(1))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM receipts").fetchone() == (1,)
        store.append_receipts(receipts(2))
        store.maintain()
        assert reader.execute("SELECT count(*) FROM receipts").fetchone() == (1,)
    assert last_seq(store) == 2


def test_a_process_that_was_killed_leaves_what_it_stored(path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from tresor.store.sqlite.store import SqliteStore\n"
        "store = SqliteStore(Path(sys.argv[1])); store.add_customer('acme', 'default', now=1)\n"
        "store._writer.execute('BEGIN IMMEDIATE'); store._writer.execute('DELETE FROM customers')\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, path], check=False, timeout=60).returncode == -9
    store = SqliteStore(path)
    assert [customer.name for customer in store.customers()] == ["acme"]
    store.close()


def test_a_file_that_cannot_be_looked_at_is_unavailable(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(StoreUnavailableError, match="Input/output error"):
        store.check()
