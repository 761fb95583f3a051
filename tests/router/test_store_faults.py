"""A store that is gone, replaced, locked or full: 503s, no receipt id that stands for nothing, and recovery."""

import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from conftest import StartRouter
from support.router import Router, UpstreamEntry, chat, tresor, wait_until, write_config
from support.upstream import Upstream, chunk
from support.wire import Answer, request_bytes

Fault = Callable[[Router], AbstractContextManager[None]]
FILES = ("tresor.db", "tresor.db-wal", "tresor.db-shm")


@contextmanager
def away(router: Router) -> Iterator[None]:
    for name in FILES:
        (router.folder / name).rename(router.folder / f"{name}.away")
    yield
    for name in FILES:
        (router.folder / f"{name}.away").rename(router.folder / name)


@contextmanager
def replaced(router: Router) -> Iterator[None]:
    with away(router):
        router.database.write_bytes(b"something else")
        yield


@contextmanager
def locked(router: Router) -> Iterator[None]:
    with closing(sqlite3.connect(router.database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def full(router: Router) -> Iterator[None]:
    """Let no file of the workers grow: what they cannot append is what a full disk would not take."""
    workers = router.workers()
    limits = [worker.rlimit(resource.RLIMIT_FSIZE) for worker in workers]
    for worker, (_, hard) in zip(workers, limits, strict=True):
        worker.rlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    for worker, limit in zip(workers, limits, strict=True):
        worker.rlimit(resource.RLIMIT_FSIZE, limit)


def check_refused(answer: Answer) -> None:
    """Check that an answer is a 503 that names no receipt."""
    assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
    assert "x-tresor-receipt-id" not in answer.headers
    assert "retry-after" in answer.headers
    assert b"four" not in answer.body


@pytest.mark.parametrize("fault", [away, replaced, full])
def test_without_its_store_the_router_names_no_receipt_and_recovers(
    start_router: StartRouter, alpha: Upstream, fault: Fault
) -> None:
    router = start_router([UpstreamEntry(alpha)])
    before = router.complete()
    assert before.status == 200
    with fault(router):
        check_refused(router.complete())
        streamed = router.complete(chat(stream=True))
        assert streamed.status == 200
        assert streamed.body.startswith(chunk("fo"))
        assert b'"code":"service_unavailable"' in streamed.body
        assert b'"tresor"' not in streamed.body
        assert b"[DONE]" not in streamed.body
        assert router.complete(X_Tresor_Receipt="false").status == 200  # needs no store
        assert not router.is_ready()
        wait_until(lambda: not router.ask("GET", "/readyz").json["checks"]["store"], "the store is said not to answer")
        assert router.ask("GET", "/healthz").status == 200
    wait_until(router.is_ready, "the router is ready again")
    behind = router.complete()
    assert behind.status == 200
    assert router.ask("GET", f"/v1/receipts/{streamed.receipt_id}", key=router.key).status == 404
    seqs = [router.verify(answer.receipt_id, response=answer.body).claims.seq for answer in (before, behind)]
    assert seqs == [1, 2]
    router.check_numbers()


def test_a_store_that_refuses_receipts_makes_the_router_unready(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    with closing(sqlite3.connect(router.database)) as database:
        database.execute("ALTER TABLE receipts RENAME COLUMN payload TO elsewhere")
        check_refused(router.complete())
        checks = router.ask("GET", "/readyz").json["checks"]
        assert (checks["store"], checks["signing_key"]) == (True, False)
        database.execute("ALTER TABLE receipts RENAME COLUMN elsewhere TO payload")
    assert router.complete().status == 200
    assert router.is_ready()
    with closing(sqlite3.connect(router.database)) as database:
        database.execute("ALTER TABLE receipts RENAME COLUMN payload TO elsewhere")
        check_refused(router.complete())
    wait_until(router.is_ready, "further receipts are to show whether it has recovered")


@pytest.mark.parametrize("fault", [away, replaced])
def test_a_store_that_is_gone_is_503_and_not_404(start_router: StartRouter, alpha: Upstream, fault: Fault) -> None:
    router = start_router([UpstreamEntry(alpha)])
    receipt_id = router.complete().receipt_id
    with fault(router):
        for target in (f"/v1/receipts/{receipt_id}", "/v1/receipts", "/.well-known/jwks.json"):
            answer = router.ask("GET", target, key=router.key)
            assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
        unknown = router.ask("GET", "/v1/receipts", key="tr-" + "0" * 96)
        assert (unknown.status, unknown.error["code"]) == (503, "service_unavailable")
    assert router.verify(receipt_id).claims.seq == 1


def test_while_another_process_holds_the_store_receipts_are_read_and_none_is_named(
    start_router: StartRouter, alpha: Upstream
) -> None:
    router = start_router([UpstreamEntry(alpha)])
    receipt_id = router.complete().receipt_id
    with locked(router):
        assert router.verify(receipt_id).claims.seq == 1
        check_refused(router.complete())
        assert router.verify(receipt_id).claims.seq == 1
    assert router.verify(router.complete().receipt_id).claims.seq == 2


def test_when_too_many_receipts_wait_nothing_more_is_forwarded(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"limits": {"max_pending_receipts": 2}})
    router.complete()
    with ExitStack() as stack:
        waiting = []
        with locked(router):
            for _ in range(20):
                wire = stack.enter_context(router.connect())
                wire.send(request_bytes("POST", "/v1/chat/completions", key=router.key, body=chat()))
                wire.sock.settimeout(0.25)
                try:
                    check_refused(wire.read_answer())
                    break
                except TimeoutError:
                    waiting.append(wire)
            assert 3 <= len(waiting) < 20
            assert len(alpha.requests) == 1 + len(waiting)
        for wire in waiting:
            wire.sock.settimeout(30)
            assert wire.read_answer().status == 200
    assert router.complete().status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_while_a_receipt_waits_the_upstream_is_free_for_others(
    start_router: StartRouter, alpha: Upstream, stream: bool
) -> None:
    router = start_router([UpstreamEntry(alpha, settings={"max_concurrent_requests": 1})])
    router.complete()  # has the worker take its permits, which it could not while the store is locked
    connections = alpha.connections
    with ExitStack() as stack:
        with locked(router):
            wires = [stack.enter_context(router.connect()) for _ in range(3)]
            for number, wire in enumerate(wires, start=2):
                body = chat(stream=True) if stream else chat()
                wire.send(request_bytes("POST", "/v1/chat/completions", key=router.key, body=body))
                alpha.wait_for(number)
        assert [wire.read_answer().status for wire in wires] == [200, 200, 200]
    assert alpha.connections == connections


def test_a_worker_that_cannot_come_back_leaves_the_others_alone(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2}})
    wait_until(lambda: log_has(router, "worker ready", 2), "both run")
    first, second = router.workers()
    with replaced(router):
        first.kill()
        wait_until(lambda: log_has(router, "worker died", 3), "the supervisor has tried again, twice")
        assert router.process.poll() is None
        assert second.is_running()
        assert router.ask("GET", "/healthz").status == 200
    wait_until(lambda: len(router.workers()) == 2 and router.is_ready(), "both run")
    assert router.complete().status == 200


def log_has(router: Router, event: str, times: int) -> bool:
    return router.log.read_text().count(f'"{event}"') >= times


def test_a_key_that_cannot_be_replaced_goes_on_signing(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    old = router.verify(router.complete().receipt_id).kid
    folder = router.folder / "receipt-keys"
    folder.rename(router.folder / "elsewhere")
    assert tresor("keys", "rotate-signing", "--config", router.config).exit_code == 0
    wait_until(lambda: log_has(router, "signing key not replaced, or not retired", 1), "the worker has tried")
    answer = router.complete()
    assert router.verify(answer.receipt_id).kid == old
    (router.folder / "elsewhere").rename(folder)
    wait_until(lambda: router.verify(router.complete().receipt_id).kid != old, "it tries again")
    router.check_numbers()


@pytest.mark.parametrize(
    "content", [b"this is no database at all, but it is long enough to be looked at", b"\0" * 4096]
)
def test_a_file_that_is_no_store_is_refused_at_start(tmp_path: Path, alpha: Upstream, content: bytes) -> None:
    config = write_config(tmp_path, [UpstreamEntry(alpha)])
    (tmp_path / "tresor.db").write_bytes(content)
    done = tresor("serve", "--config", config)
    assert done.exit_code == 1
    assert done.err.startswith("tresor: store: ")
    assert done.err.count("\n") == 1
    assert (tmp_path / "tresor.db").read_bytes() == content


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path, alpha: Upstream) -> None:
    config = write_config(tmp_path, [UpstreamEntry(alpha)])
    with closing(sqlite3.connect(tmp_path / "tresor.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    done = tresor("customers", "list", "--config", config)
    assert done.exit_code == 1
    assert "made by a newer one" in done.err
