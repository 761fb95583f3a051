"""Which upstream serves: routes, their members, the next candidate, and when there is none."""

import json
import threading
from typing import Any

import pytest

from conftest import StartRouter
from support.certificates import Tls, make_tls
from support.router import LAST, Router, UpstreamEntry, chat
from support.upstream import (
    DONE,
    Call,
    Script,
    Upstream,
    chunk,
    chunked,
    completion,
    finish,
    hang_up,
    head,
    reply,
    reply_error,
    send_raw,
    silent,
    stream,
)
from support.wire import request_bytes

ALPHA, BETA = "eu/alpha/m", "us/beta/m"
OK_HEAD = head(200, "Content-Length: 50")


@pytest.fixture
def router(steady_router: Router) -> Router:
    """Most of these tests have one upstream fail."""
    return steady_router


def tried(router: Router, receipt_id: str) -> list[tuple[str, str | None]]:
    """Return route and reason of every attempt."""
    return [(attempt.route, attempt.reason) for attempt in router.verify(receipt_id).claims.attempts]


@pytest.mark.parametrize(
    ("model", "members", "served"),
    [
        ("m", {}, ALPHA),
        ("auto/auto/m", {}, ALPHA),
        ("eu/alpha/m", {}, ALPHA),
        ("us/beta/m", {}, BETA),
        ("us/auto/m", {}, BETA),
        ("auto/beta/m", {}, BETA),
        ("m", {"region": "us"}, BETA),
        ("m", {"provider": "beta"}, BETA),
        ("m", {"region": "us", "provider": "beta"}, BETA),
        ("auto/auto/m", {"region": "us"}, BETA),
        ("us/auto/m", {"region": "us"}, BETA),
        ("us/beta/m", {"region": "auto", "provider": "auto"}, BETA),
        ("m", {"region": None, "provider": None}, ALPHA),
    ],
)
def test_a_route_is_found(router: Router, model: str, members: dict[str, Any], served: str) -> None:
    answer = router.complete(chat(model, **members))
    assert answer.json["tresor"]["routed_model"] == served
    assert answer.json["tresor"]["failover"] is False


@pytest.mark.parametrize(
    ("model", "members", "param"),
    [
        ("us/beta/m", {"region": "eu"}, "region"),
        ("us/beta/m", {"provider": "alpha"}, "provider"),
        ("us/auto/m", {"region": "eu"}, "region"),
        ("auto/beta/m", {"provider": "alpha", "region": "us"}, "provider"),
    ],
)
def test_members_that_contradict_the_model(
    router: Router, alpha: Upstream, model: str, members: dict[str, str], param: str
) -> None:
    answer = router.complete(chat(model, **members))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_field", param)
    assert alpha.requests == []


@pytest.mark.parametrize("members", [{"region": "us", "provider": "alpha"}, {"region": "mars"}, {"provider": "gamma"}])
def test_members_that_leave_no_route(router: Router, members: dict[str, str]) -> None:
    answer = router.complete(chat("m", **members))
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_an_unknown_failover_route_is_refused_before_anything_is_sent(router: Router, alpha: Upstream) -> None:
    answer = router.complete(chat("solo", failover=["us/beta/m", "nowhere"]))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "failover[1]")
    assert alpha.requests == []


def test_failover_routes_are_tried_in_order_and_each_candidate_once(
    router: Router, alpha: Upstream, beta: Upstream
) -> None:
    alpha.script(reply_error(500))
    beta.script(reply_error(500))
    request = chat("solo", failover=["us/beta/m", "m", "auto/beta/m", "solo", "eu/alpha/m"])
    answer = router.complete(request)
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert [route for route, _ in tried(router, answer.receipt_id)] == ["eu/alpha/solo", BETA, ALPHA]
    assert (len(alpha.requests), len(beta.requests)) == (2, 1)
    assert [request.json["model"] for request in alpha.requests] == ["alpha-solo", "alpha-m"]


@pytest.mark.parametrize(
    "status", [301, 302, 307, 308, 304, 401, 403, 404, 408, 429, 500, 501, 502, 503, 504, 529, 599]
)
def test_a_status_that_is_the_upstreams_own_fault_leads_to_the_next(
    router: Router, alpha: Upstream, beta: Upstream, status: int
) -> None:
    answer_there = json.dumps({"error": {"message": "no"}}).encode() if status != 304 else b""
    alpha.script(reply(answer_there, f"Location: {beta.base_url}/elsewhere", status=status))
    answer = router.complete(chat("m"))
    assert answer.status == 200
    assert answer.json["tresor"]["routed_model"] == BETA
    assert tried(router, answer.receipt_id) == [(ALPHA, "upstream_status"), (BETA, None)]
    assert [request.target for request in beta.requests] == ["POST /v1/chat/completions"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(hang_up(), "connection_lost", id="closed"),
        pytest.param(hang_up(reset=True), "connection_lost", id="reset"),
        pytest.param(send_raw(b"HTTP/1.1 200 OK\r\nContent-"), "connection_lost", id="head-cut"),
        pytest.param(send_raw(OK_HEAD + b'{"choices":'), "connection_lost", id="body-cut"),
        pytest.param(
            send_raw(head(200, "Transfer-Encoding: chunked"), chunked(completion())), "connection_lost", id="chunks-cut"
        ),
        pytest.param(send_raw(b"SSH-2.0-OpenSSH\r\n"), "invalid_response", id="no-http"),
        pytest.param(send_raw(b"HTTP/1.1 abc OK\r\n\r\n"), "invalid_response", id="no-status"),
        pytest.param(send_raw(b"HTTP/2.0 200 OK\r\n\r\n"), "invalid_response", id="http-2"),
        pytest.param(
            send_raw(head(200, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n"),
            "invalid_response",
            id="two-framings",
        ),
        pytest.param(send_raw(head(200, "Content-Length: -1")), "invalid_response", id="negative-length"),
        pytest.param(send_raw(head(200, "X: " + "y" * 2_000_000), close=False), "invalid_response", id="giant-head"),
        pytest.param(
            send_raw(b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 5000, close=False),
            "invalid_response",
            id="endless-1xx",
        ),
        pytest.param(
            send_raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", close=False),
            "invalid_response",
            id="upgrade",
        ),
        pytest.param(reply(b"", status=204), "invalid_response", id="no-content"),
        pytest.param(reply(b""), "invalid_response", id="empty"),
        pytest.param(reply(b"<html>"), "invalid_response", id="html"),
        pytest.param(reply(b"[]"), "invalid_response", id="array"),
        pytest.param(reply(b"null"), "invalid_response", id="null"),
        pytest.param(reply(completion() + b"x"), "invalid_response", id="bytes-behind"),
        pytest.param(reply(b"\xef\xbb\xbf" + completion()), "invalid_response", id="byte-order-mark"),
        pytest.param(reply(b'{"a":' * 100_000), "invalid_response", id="nested"),
        pytest.param(reply(b'{"error":{"message":"no"}}'), "invalid_response", id="error-under-200"),
        pytest.param(reply(completion(), "Content-Encoding: gzip"), "invalid_response", id="gzip"),
        pytest.param(
            reply(b"\x1f\x8b\x08", "Transfer-Encoding: gzip, chunked"), "invalid_response", id="gzip-transfer"
        ),
        pytest.param(stream(chunk(), finish(), DONE), "invalid_response", id="unasked-stream"),
    ],
)
def test_an_answer_that_is_none_leads_to_the_next(router: Router, alpha: Upstream, script: Script, reason: str) -> None:
    alpha.script(script)
    answer = router.complete(chat("m"))
    assert answer.status == 200, answer
    assert tried(router, answer.receipt_id) == [(ALPHA, reason), (BETA, None)]
    assert router.verify(answer.receipt_id, response=answer.body).claims.failover is True


def test_an_answer_that_is_too_long_leads_to_the_next(
    start_router: StartRouter, alpha: Upstream, beta: Upstream
) -> None:
    router = start_router(
        [UpstreamEntry(alpha), UpstreamEntry(beta, "beta", "us", settings=LAST)],
        settings={"limits": {"max_response_bytes": 100_000}},
    )
    alpha.script(reply(completion("x" * 100_000)))
    answer = router.complete()
    assert tried(router, answer.receipt_id) == [(ALPHA, "invalid_response"), (BETA, None)]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(reply_error(500), "upstream_status", id="status"),
        pytest.param(stream(), "stream_broken", id="empty"),
        pytest.param(stream(b": wait\n\n", b'data: {"error":{"message":"no"}}\n\n'), "stream_broken", id="error"),
        pytest.param(stream(b": wait\n\n", chunk()[:30]), "stream_broken", id="cut"),
        pytest.param(reply(completion()), "invalid_response", id="no-stream"),
    ],
)
def test_a_stream_that_breaks_before_content_leads_to_the_next(
    router: Router, alpha: Upstream, script: Script, reason: str
) -> None:
    alpha.script(script)
    answer = router.complete(chat("m", stream=True))
    assert answer.status == 200
    assert answer.body.startswith(chunk("fo"))
    assert answer.body.endswith(DONE)
    assert tried(router, answer.receipt_id) == [(ALPHA, reason), (BETA, None)]
    assert router.verify(answer.receipt_id, response=answer.body).claims.routed_model == BETA


def test_behind_content_there_is_no_next(router: Router, alpha: Upstream, beta: Upstream) -> None:
    alpha.script(stream(chunk("fo")))
    answer = router.complete(chat("m", stream=True))
    assert answer.body.startswith(chunk("fo"))
    assert b'"error"' in answer.body
    assert beta.requests == []


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("wants_stream", [False, True])
def test_a_refusal_of_the_request_is_passed_on(
    router: Router, alpha: Upstream, beta: Upstream, status: int, wants_stream: bool
) -> None:
    alpha.script(reply_error(status, "context is too long", code="context_length_exceeded"))
    answer = router.complete(chat("m", stream=wants_stream))
    assert (answer.status, answer.error["message"]) == (status, "context is too long")
    assert (answer.error["code"], answer.error["type"]) == ("upstream_rejected", "invalid_request_error")
    assert beta.requests == []
    assert tried(router, answer.receipt_id) == [(ALPHA, "upstream_rejected")]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"error":"as text"}', b'{"error":null}', b'{"error":{"message":7}}', b"\xff"]
)
def test_a_refusal_without_a_message_has_one(router: Router, alpha: Upstream, body: bytes) -> None:
    alpha.script(reply(body, status=400))
    answer = router.complete(chat("m"))
    assert (answer.status, answer.error["code"]) == (400, "upstream_rejected")
    assert answer.error["message"] == "as text" or "without a message" in answer.error["message"]


def test_an_upstream_that_is_not_who_it_should_be_gets_no_prompt(
    start_router: StartRouter, beta: Upstream, tls: Tls, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = make_tls(tmp_path_factory.mktemp("stranger"))
    with Upstream(stranger.server_context()) as impostor:
        entries = [
            UpstreamEntry(impostor, settings={"ca_file": str(tls.ca_file)}),
            UpstreamEntry(beta, "beta", "us", settings=LAST),
        ]
        router = start_router(entries)
        answer = router.complete()
        assert impostor.requests == []
    claims = router.verify(answer.receipt_id).claims
    assert [(a.reason, a.prompt_sent) for a in claims.attempts] == [("tls_failed", False), (None, True)]


def test_an_upstream_over_tls_serves(start_router: StartRouter, tls: Tls) -> None:
    with Upstream(tls.server_context()) as upstream:
        router = start_router([UpstreamEntry(upstream, settings={"ca_file": str(tls.ca_file)})], tls=tls)
        for _ in range(3):
            assert router.complete().status == 200
            assert router.complete(chat(stream=True)).body.endswith(DONE)
        assert len({request.connection for request in upstream.requests}) == 1


def test_a_connection_that_went_stale_is_not_used(router: Router, alpha: Upstream) -> None:
    for _ in range(20):
        answer = router.complete(chat("solo"))
        assert answer.status == 200
        assert tried(router, answer.receipt_id) == [("eu/alpha/solo", None)]
        alpha.drop_connections()


def test_an_upstream_that_closes_behind_every_answer_serves(router: Router, alpha: Upstream) -> None:
    def serve_once(call: Call) -> None:
        reply(completion())(call)
        call.close()

    alpha.script(serve_once)
    assert [router.complete(chat("solo")).status for _ in range(30)] == [200] * 30


def test_the_budget_ends_all_tries(router: Router, alpha: Upstream, beta: Upstream) -> None:
    alpha.script(silent)
    answer = router.complete(chat("m"), X_Tresor_Timeout_Seconds="0.4")
    assert (answer.status, answer.error["code"], answer.error["type"]) == (504, "upstream_timeout", "upstream_error")
    assert beta.requests == []
    assert alpha.last.cancelled.wait(10)
    claims = router.verify(answer.receipt_id, response=answer.body).claims
    assert (claims.outcome, claims.status) == ("refused", 504)
    assert [(a.reason, a.prompt_sent) for a in claims.attempts] == [("timeout", True)]


def test_the_budget_is_for_the_whole_answer(router: Router, alpha: Upstream) -> None:
    never = threading.Event()
    alpha.script(send_raw(OK_HEAD + b"{", never))
    answer = router.complete(chat("solo"), X_Tresor_Timeout_Seconds="0.4")
    assert answer.status == 504
    never.set()


def test_the_budget_is_not_for_streams(router: Router, alpha: Upstream) -> None:
    step = threading.Event()
    alpha.script(stream(step, chunk(), finish(), DONE))
    with router.connect() as wire:
        body = chat("solo", stream=True)
        headers = {"X-Tresor-Timeout-Seconds": "0.001"}
        wire.send(request_bytes("POST", "/v1/chat/completions", key=router.key, headers=headers, body=body))
        alpha.wait_for(1)
        step.set()
        assert wire.read_answer().body.endswith(DONE)


@pytest.mark.parametrize("claims", ["cpu_tee", "cpu_tee,gpu_tee", " workload , tcb "])
@pytest.mark.parametrize("wants_stream", [False, True])
def test_where_attestation_is_required_the_prompt_goes_nowhere(
    router: Router, alpha: Upstream, beta: Upstream, claims: str, wants_stream: bool
) -> None:
    connections = alpha.connections, beta.connections
    request = chat("m", stream=wants_stream)
    answer = router.complete(request, X_Tresor_Require_Attestation=claims)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (
        412,
        "attestation_requirements_not_met",
        "api_error",
    )
    assert alpha.requests == beta.requests == []
    assert (alpha.connections, beta.connections) == connections
    receipt = router.verify(answer.receipt_id, request=request, response=answer.body).claims
    assert (receipt.outcome, receipt.attempts, receipt.upstream_request_digest) == ("refused", (), None)


def test_an_opted_out_refusal_has_no_receipt(router: Router, alpha: Upstream) -> None:
    alpha.script(reply_error(500))
    answer = router.complete(chat("solo"), X_Tresor_Receipt="false")
    assert answer.status == 502
    assert "x-tresor-receipt-id" not in answer.headers
