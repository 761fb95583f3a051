"""Streams while they run: nothing waits that need not, the finish chunk waits for its receipt, leaving is noticed."""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from uuid import uuid4

import pytest

from conftest import StartRouter
from support.router import Router, UpstreamEntry, chat, wait_until
from support.upstream import (
    DONE,
    Call,
    Upstream,
    chunk,
    completion,
    finish,
    head,
    reply,
    send_raw,
    silent,
    stream,
    usage_chunk,
)
from support.wire import Wire, request_bytes
from tresor.receipts.claims import ReceiptClaims

COMMENT = b": keep-alive\n\n"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def send_chat(wire: Wire, router: Router, body: bytes, *, nonce: str | None = None) -> None:
    headers = {} if nonce is None else {"X-Tresor-Nonce": nonce}
    wire.send(request_bytes("POST", "/v1/chat/completions", key=router.key, body=body, headers=headers))


def receipt_with(router: Router, nonce: str) -> ReceiptClaims:
    """Wait for the receipt of an exchange whose id was told to nobody; return its claims."""
    found: list[ReceiptClaims] = []

    def look() -> bool:
        entries = router.ask("GET", "/v1/receipts?limit=10", key=router.key).json["data"]
        receipts = [router.verify(entry["id"]).claims for entry in entries]
        found.extend(claims for claims in receipts if claims.nonce == nonce)
        return bool(found)

    wait_until(look, "the receipt is there")
    return found[0]


def has_receipt(router: Router, receipt_id: str) -> bool:
    return router.ask("GET", f"/v1/receipts/{receipt_id}", key=router.key).status == 200


@contextmanager
def locked(router: Router) -> Iterator[None]:
    """Hold the store's write lock."""
    with closing(sqlite3.connect(router.database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_content_arrives_while_the_upstream_still_waits(router: Router, alpha: Upstream) -> None:
    steps = [threading.Event() for _ in range(3)]
    alpha.script(stream(chunk("a"), steps[0], chunk("b"), steps[1], chunk("c"), steps[2], finish(), DONE))
    with router.connect() as wire:
        send_chat(wire, router, chat("solo", stream=True))
        answer = wire.read_head()
        for text, step in zip("abc", steps, strict=True):
            assert wire.read_piece() == chunk(text)
            step.set()
        rest = wire.read_body()
    assert rest.endswith(DONE)
    assert answer.receipt_id.encode() in rest


def test_the_receipt_is_fetchable_when_the_finish_chunk_arrives(router: Router) -> None:
    for _ in range(10):
        with router.connect() as wire:
            send_chat(wire, router, chat("solo", stream=True))
            receipt_id = wire.read_head().receipt_id
            wire.read_until(b'"finish_reason":"stop"')
            assert router.verify(receipt_id).claims.outcome == "complete"


def test_the_finish_chunk_waits_for_the_end_and_the_receipt(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"limits": {"keep_alive_comment_s": 0.3}})
    step = threading.Event()
    alpha.script(stream(chunk("a"), finish(), step, usage_chunk(), DONE))
    with router.connect() as wire:
        send_chat(wire, router, chat(stream=True))
        receipt_id = wire.read_head().receipt_id
        assert wire.read_piece() == chunk("a")
        assert wire.read_piece() == COMMENT  # the finish chunk has come and waits
        assert not has_receipt(router, receipt_id)
        with locked(router):
            step.set()
            wire.sock.settimeout(1.0)
            with pytest.raises(TimeoutError):
                wire.read_until(b"finish")
            assert not has_receipt(router, receipt_id)
        wire.sock.settimeout(30.0)
        assert wire.read_body().endswith(DONE)
    assert has_receipt(router, receipt_id)


def test_an_answer_waits_for_its_receipt(router: Router, alpha: Upstream) -> None:
    alpha.script(reply(completion()))
    with router.connect() as wire:
        with locked(router):
            send_chat(wire, router, chat("solo"))
            alpha.wait_for(1)
            wire.sock.settimeout(1.0)
            with pytest.raises(TimeoutError):
                wire.read_head()
        wire.sock.settimeout(30.0)
        assert wire.read_answer().status == 200


def test_comments_keep_a_silent_stream_alive_and_are_hashed(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"limits": {"keep_alive_comment_s": 0.3}})
    step = threading.Event()
    alpha.script(stream(chunk("a"), step, finish(), DONE))
    with router.connect() as wire:
        send_chat(wire, router, chat(stream=True))
        receipt_id = wire.read_head().receipt_id
        got = wire.read_until(COMMENT + COMMENT)
        assert got == chunk("a") + COMMENT + COMMENT
        step.set()
        got += wire.read_body()
    assert router.verify(receipt_id, response=got).claims.outcome == "complete"


def test_a_caller_who_leaves_ends_the_upstream_call_and_the_receipt_says_so(router: Router, alpha: Upstream) -> None:
    alpha.script(stream(chunk("a"), chunk("b"), end=False))
    with router.connect() as wire:
        send_chat(wire, router, chat("solo", stream=True))
        receipt_id = wire.read_head().receipt_id
        assert wire.read_until(chunk("b")) == chunk("a") + chunk("b")
    assert alpha.last.cancelled.wait(10)
    wait_until(lambda: has_receipt(router, receipt_id), "the receipt is there")
    claims = router.verify(receipt_id, request=chat("solo", stream=True), response=chunk("a") + chunk("b")).claims
    assert (claims.outcome, claims.status, claims.routed_model) == ("client_disconnected", 200, "eu/alpha/solo")
    assert claims.upstream_response_digest == sha256(chunk("a") + chunk("b"))
    assert [(a.outcome, a.reason, a.prompt_sent) for a in claims.attempts] == [("cancelled", "caller_gone", True)]


@pytest.mark.parametrize("stream_wanted", [False, True])
def test_a_caller_who_leaves_before_the_first_byte(router: Router, alpha: Upstream, stream_wanted: bool) -> None:
    nonce = uuid4().hex
    alpha.script(silent)
    with router.connect() as wire:
        send_chat(wire, router, chat("solo", stream=stream_wanted), nonce=nonce)
        alpha.wait_for(1)
    assert alpha.last.cancelled.wait(10)
    claims = receipt_with(router, nonce)
    assert claims.outcome == "client_disconnected"
    assert (claims.status, claims.routed_model, claims.response_digest) == (None, None, sha256(b""))
    assert claims.upstream_request_digest == sha256(alpha.last.body)
    assert claims.stream is stream_wanted


def test_a_caller_who_leaves_while_the_finish_chunk_waits(router: Router, alpha: Upstream) -> None:
    alpha.script(stream(chunk("a") + finish(), end=False))
    with router.connect() as wire:
        send_chat(wire, router, chat("solo", stream=True))
        receipt_id = wire.read_head().receipt_id
        assert wire.read_piece() == chunk("a")
    assert alpha.last.cancelled.wait(10)
    wait_until(lambda: has_receipt(router, receipt_id), "the receipt is there")
    assert router.verify(receipt_id, response=chunk("a")).claims.outcome == "client_disconnected"


def test_a_caller_who_leaves_a_queue_of_requests(router: Router, alpha: Upstream) -> None:
    nonce = uuid4().hex
    alpha.script(silent)
    with router.connect() as wire:
        for _ in range(3):
            send_chat(wire, router, chat("solo"), nonce=nonce)
        alpha.wait_for(1)
    assert alpha.last.cancelled.wait(10)
    assert receipt_with(router, nonce).outcome == "client_disconnected"
    assert len(alpha.requests) == 1


def test_a_caller_who_takes_nothing_stops_the_upstream_and_not_the_router(router: Router, alpha: Upstream) -> None:
    sent = [0]

    def pour(call: Call) -> None:
        call.send(head(200, "Transfer-Encoding: chunked", content_type="text/event-stream"))
        event = chunk("x" * (256 << 10))
        try:
            while sent[0] < 1 << 30:
                call.send(b"%x\r\n%b\r\n" % (len(event), event))
                sent[0] += len(event)
        except OSError:
            call.request.cancelled.set()

    def stands_still() -> bool:
        before = sent[0]
        return before > 0 and not threading.Event().wait(0.4) and sent[0] == before

    before = router.rss_bytes()
    alpha.script(pour)
    with router.connect() as wire:
        send_chat(wire, router, chat("solo", stream=True))
        wire.read_head()
        wait_until(stands_still, "the upstream is held up")
        assert router.rss_bytes() - before < 64 << 20
        alpha.script(reply(completion()))
        assert router.complete(chat("solo")).status == 200
    assert alpha.requests[0].cancelled.wait(10)


def test_the_upstream_connection_is_used_again_behind_a_stream(start_router: StartRouter) -> None:
    with Upstream() as upstream:
        router = start_router([UpstreamEntry(upstream)])
        for _ in range(5):
            assert router.complete(chat(stream=True)).body.endswith(DONE)
            assert router.complete().status == 200
        assert {request.connection for request in upstream.requests} == {upstream.requests[0].connection}


def test_interim_answers_are_passed_over(router: Router, alpha: Upstream) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    alpha.script(send_raw(interim + head(200, f"Content-Length: {len(completion())}") + completion()))
    answer = router.complete(chat("solo"))
    assert answer.status == 200
    assert router.verify(answer.receipt_id).claims.attempts[0].status == 200
