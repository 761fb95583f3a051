"""Processes: several workers on one port, an orderly end, an end that is not, and what is left behind."""

import contextlib
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships no types
import pytest

from conftest import StartRouter
from support.certificates import Tls
from support.router import Router, UpstreamEntry, chat, new_state, tresor, wait_until, write_config
from support.upstream import DONE, Upstream, chunk, finish, silent, stream
from support.wire import Wire, request_bytes


def begin_stream(router: Router, wire: Wire) -> str:
    """Begin a stream and wait for its first chunk, `a`; return the receipt's id."""
    wire.send(request_bytes("POST", "/v1/chat/completions", key=router.key, body=chat(stream=True)))
    receipt_id = wire.read_head().receipt_id
    assert wire.read_piece() == chunk("a")
    return receipt_id


@contextlib.contextmanager
def restarted(router: Router) -> Iterator[Router]:
    """Start the router again on the state that it left."""
    again = Router(router.config, tls=None, key=router.key)
    try:
        again.wait_ready()
        yield again
    finally:
        again.kill()


def test_workers_share_the_port_and_have_keys_of_their_own(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2}})
    receipt_ids = []
    for worker in router.workers():
        worker.suspend()
        receipt_ids.append(router.complete().receipt_id)
        worker.resume()
    receipts = [router.verify(receipt_id) for receipt_id in receipt_ids]
    assert [receipt.claims.seq for receipt in receipts] == [1, 1]
    assert len({receipt.kid for receipt in receipts}) == 2


def test_a_running_stream_ends_well_on_sigterm_and_nobody_new_is_left_waiting(
    start_router: StartRouter, alpha: Upstream
) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2, "drain_timeout_s": 20}})
    step = threading.Event()
    alpha.script(stream(chunk("a"), step, chunk("b"), finish(), DONE))
    with router.connect() as idle, router.connect() as wire:
        assert idle.ask("GET", "/healthz").status == 200
        receipt_id = begin_stream(router, wire)
        router.signal_stop()
        assert idle.at_end()
        wait_until(lambda: not accepts(router), "new callers are turned away")
        step.set()
        body = wire.read_body()
        assert body.startswith(chunk("b"))
        assert body.endswith(DONE)
        assert router.wait() == 0
    with restarted(router) as again:
        assert again.verify(receipt_id, response=chunk("a") + body).claims.outcome == "complete"


def accepts(router: Router) -> bool:
    """Whether a new caller gets a connection; one that is neither served nor refused would hang, and fails."""
    try:
        with Wire(router.address) as wire:
            return wire.ask("GET", "/healthz").status == 200
    except ConnectionError:
        return False


def test_a_stream_that_outlasts_the_drain_is_ended_with_an_error_and_a_receipt(
    start_router: StartRouter, alpha: Upstream
) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"drain_timeout_s": 0.5}})
    alpha.script(stream(chunk("a"), end=False))
    with router.connect() as wire:
        receipt_id = begin_stream(router, wire)
        router.signal_stop()
        body = wire.read_body()
    assert body.startswith(b'data: {"error":')
    assert b'"code":"service_unavailable"' in body
    assert receipt_id.encode() in body
    assert router.wait() == 0
    assert alpha.last.cancelled.wait(10)
    with restarted(router) as again:
        claims = again.verify(receipt_id, response=chunk("a") + body).claims
    assert claims.outcome == "upstream_aborted"
    assert [attempt.reason for attempt in claims.attempts] == ["router_stopped"]


def test_an_answer_that_outlasts_the_drain_is_a_503_with_a_receipt(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"drain_timeout_s": 0.5}})
    alpha.script(silent)
    with router.connect() as wire:
        wire.send(request_bytes("POST", "/v1/chat/completions", key=router.key, body=chat()))
        alpha.wait_for(1)
        router.signal_stop()
        answer = wire.read_answer()
        assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
        assert "retry-after" in answer.headers
    assert router.wait() == 0
    with restarted(router) as again:
        claims = again.verify(answer.receipt_id, response=answer.body).claims
    assert (claims.outcome, claims.status) == ("refused", 503)


def test_asked_twice_the_router_ends_at_once(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"drain_timeout_s": 60}})
    alpha.script(stream(chunk("a"), end=False))
    workers = router.workers()
    with router.connect() as wire:
        begin_stream(router, wire)
        router.signal_stop()
        wait_until(lambda: not accepts(router), "the router is stopping")
        router.process.send_signal(signal.SIGINT)
        router.wait()
    assert not any(worker.is_running() for worker in workers)


def test_a_killed_supervisor_leaves_nothing_running(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2, "drain_timeout_s": 20}})
    step = threading.Event()
    alpha.script(stream(chunk("a"), step, finish(), DONE))
    workers = router.workers()
    with router.connect() as wire:
        begin_stream(router, wire)
        router.process.send_signal(signal.SIGKILL)
        router.process.wait(10)
        step.set()
        assert wire.read_body().endswith(DONE)  # what runs is brought to its end
    assert psutil.wait_procs(workers, 20)[1] == []
    with socket.create_server(router.address):
        pass


def test_a_worker_that_dies_is_replaced(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    (first,) = router.workers()
    receipt_id = router.complete().receipt_id
    first.send_signal(signal.SIGKILL)
    wait_until(lambda: [w.pid for w in router.workers()] not in ([], [first.pid]), "another worker runs")
    answer = router.complete()  # waits in the shared backlog for the new one
    assert answer.status == 200
    assert [router.verify(r).claims.seq for r in (receipt_id, answer.receipt_id)] == [1, 2]
    assert router.verify(receipt_id).kid == router.verify(answer.receipt_id).kid


def test_a_worker_that_dies_before_it_is_ready_is_replaced_too(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    killed: set[int] = set()
    for _ in range(2):
        wait_until(lambda: {w.pid for w in router.workers()} - killed, "a worker runs")
        for worker in router.workers():
            killed.add(worker.pid)
            worker.send_signal(signal.SIGKILL)
    assert router.complete().status == 200
    assert router.process.poll() is None


def test_a_port_that_is_taken_is_said(tmp_path: Path, alpha: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = write_config(tmp_path, [UpstreamEntry(alpha)], settings={"server": {"listen": address}})
        done = tresor("serve", "--config", config)
    assert done.exit_code == 1
    assert done.err == f"tresor: cannot listen on {address} (server.listen): Address already in use\n"


def test_a_worker_that_cannot_start_ends_the_router(tmp_path: Path, alpha: Upstream) -> None:
    config = write_config(tmp_path, [UpstreamEntry(alpha)])
    (tmp_path / "receipt-keys").mkdir()
    key_file = tmp_path / "receipt-keys" / "slot-0.pem"
    key_file.write_text("not a key")
    key_file.chmod(0o644)
    done = tresor("serve", "--config", config)
    assert done.exit_code == 1
    assert "slot-0.pem has mode 644, want 600" in done.err


def test_readiness_follows_the_upstream_and_liveness_does_not(start_router: StartRouter) -> None:
    with Upstream() as upstream:
        router = start_router([UpstreamEntry(upstream)], settings={"limits": {"upstream_keep_alive_s": 600}})
        ready = router.ask("GET", "/readyz")
        assert ready.json == {
            "status": "ready",
            "checks": {
                "store": True,
                "signing_key": True,
                "attestation": True,
                "upstream": True,
                "not_draining": True,
            },
            "faults": {},
        }
        port = upstream.port
    wait_until(lambda: not router.is_ready(), "the router notices that the upstream is gone")
    answer = router.ask("GET", "/readyz")
    assert (answer.status, answer.json["checks"]["upstream"]) == (503, False)
    assert router.ask("GET", "/healthz").status == 200
    with socket.create_server(("127.0.0.1", port)):
        wait_until(router.is_ready, "the router notices that it is back")


def test_callers_without_patience_do_not_make_the_router_unready(start_router: StartRouter, tls: Tls) -> None:
    with Upstream(tls.server_context()) as upstream:
        entry = UpstreamEntry(upstream, settings={"ca_file": str(tls.ca_file), "keep_alive": False})
        router = start_router([entry], settings={"limits": {"upstream_keep_alive_s": 0.1}})
        wait_until(lambda: not upstream.is_connected, "no connection is kept")
        answer = router.complete(X_Tresor_Timeout_Seconds="0.000000001")
        assert answer.status == 504
        assert router.is_ready()


def test_a_router_starts_while_its_upstream_is_down(tmp_path: Path) -> None:
    config = write_config(tmp_path, [UpstreamEntry("http://127.0.0.1:1/v1")])
    router = Router(config, tls=None, key=new_state(config))
    try:
        wait_until(lambda: accepts(router), "it answers")
        assert not router.is_ready()
        answer = router.complete()
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
        assert router.stop() == 0
    finally:
        router.kill()


def test_signing_keys_are_replaced_under_load_without_a_lost_receipt(
    start_router: StartRouter, alpha: Upstream
) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2}})
    before = set(router.jwks())
    stop = threading.Event()
    receipt_ids: list[str] = []

    def ask_again_and_again() -> None:
        while not stop.is_set():
            with router.connect() as wire:
                for _ in range(10):
                    answer = wire.ask("POST", "/v1/chat/completions", key=router.key, body=chat())
                    assert answer.status == 200
                    receipt_ids.append(answer.receipt_id)

    threads = [threading.Thread(target=ask_again_and_again) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for rotations in (1, 2):
            done = tresor("keys", "rotate-signing", "--config", router.config)
            assert done.exit_code == 0
            wait_until(lambda n=rotations: len(router.jwks()) >= 2 + 2 * n, "both workers have a new key")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    keys = router.jwks()
    assert before <= set(keys)
    assert len(keys) == 6
    numbers: dict[str, list[int]] = {}
    for receipt_id in receipt_ids:
        receipt = router.verify(receipt_id, jwks=keys)
        numbers.setdefault(receipt.kid, []).append(receipt.claims.seq)
    for kid, seqs in numbers.items():
        assert sorted(seqs) == list(range(1, len(seqs) + 1)), kid
    wait_until(lambda: sum(key.not_after is not None for key in router.jwks().values()) == 4, "old keys are retired")


def test_a_new_key_is_used_within_seconds_and_the_old_one_still_verifies(
    start_router: StartRouter, alpha: Upstream
) -> None:
    router = start_router([UpstreamEntry(alpha)])
    old = router.verify(router.complete().receipt_id)
    assert tresor("keys", "rotate-signing", "--config", router.config).exit_code == 0
    wait_until(lambda: len(router.jwks()) == 2, "there is a new key")
    wait_until(lambda: router.verify(router.complete().receipt_id).kid != old.kid, "the new key signs")
    assert router.verify(old.claims.jti).kid == old.kid
    wait_until(lambda: router.jwks()[old.kid].not_after is not None, "the old key is retired")
    assert (router.folder / "receipt-keys" / "slot-0.pem").stat().st_mode & 0o777 == 0o600


def test_a_store_put_back_makes_no_replaced_key_live_again(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    old = router.verify(router.complete().receipt_id).kid
    backup = router.folder / "backup.db"
    with contextlib.closing(sqlite3.connect(router.database)) as database:
        database.execute("VACUUM INTO ?", (str(backup),))
    assert tresor("keys", "rotate-signing", "--config", router.config).exit_code == 0
    wait_until(lambda: router.jwks()[old].not_after is not None, "the old key is retired")
    assert router.stop() == 0
    for name in ("tresor.db-wal", "tresor.db-shm"):
        (router.folder / name).unlink(missing_ok=True)
    backup.chmod(0o644)
    backup.rename(router.database)
    assert tresor("keys", "rotate-signing", "--config", router.config).exit_code == 0
    again = Router(router.config, tls=None, key=router.key)
    try:
        again.wait_ready()
        assert again.jwks()[old].not_after is not None
        assert again.verify(again.complete().receipt_id).kid != old
        assert len([key for key in again.jwks().values() if key.not_after is None]) == 1
        modes = {(again.folder / f"tresor.db{suffix}").stat().st_mode & 0o777 for suffix in ("", "-wal", "-shm")}
        assert modes == {0o600}
    finally:
        again.kill()


def test_an_idle_caller_over_tls_does_not_hold_up_the_end(start_router: StartRouter, alpha: Upstream, tls: Tls) -> None:
    router = start_router([UpstreamEntry(alpha)], tls=tls, settings={"server": {"drain_timeout_s": 100}})
    with router.connect() as wire:
        assert wire.ask("GET", "/healthz").status == 200
        assert router.stop() == 0  # the test would time out first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_router_ends_in_good_order(start_router: StartRouter, alpha: Upstream, number: signal.Signals) -> None:
    router = start_router([UpstreamEntry(alpha)])
    workers = router.workers()
    router.process.send_signal(number)
    assert router.wait() == 0
    assert not any(worker.is_running() for worker in workers)
    assert router.log_lines()[-1]["event"] != "worker died"
