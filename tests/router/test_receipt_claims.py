"""What a receipt says of its exchange."""

import time
from datetime import UTC, datetime

import msgspec
import pytest

from conftest import StartRouter
from support.router import LAST, ORIGIN, Router, UpstreamEntry, chat
from support.upstream import Upstream, completion, hang_up, reply, reply_error
from tresor.encodings import base64url_decode


def test_a_receipt_says_where_it_is_from_and_when(router: Router) -> None:
    before = int(time.time())
    answer = router.complete(chat("solo"))
    claims = router.verify(answer.receipt_id).claims
    assert (claims.schema, claims.receipt_type, claims.iss) == ("tresor.receipt/v1", "message", ORIGIN)
    assert claims.jti == answer.receipt_id
    assert before <= claims.iat <= int(time.time())
    assert (claims.status, claims.outcome, claims.stream) == (200, "complete", False)


def test_the_token_is_a_compact_jws_with_three_header_members(router: Router) -> None:
    document = msgspec.json.decode(router.receipt(router.complete(chat("solo")).receipt_id))
    assert sorted(document) == ["id", "receipt"]
    header = msgspec.json.decode(base64url_decode(document["receipt"].partition(".")[0]))
    kid = header.pop("kid")
    assert header == {"alg": "ES256", "typ": "tresor-receipt+jwt"}
    assert kid.startswith("router-receipt-")
    assert len(kid) == len("router-receipt-") + 16


@pytest.mark.parametrize(
    ("model", "members", "requested"),
    [
        ("solo", {}, "auto/auto/solo"),
        ("auto/auto/solo", {}, "auto/auto/solo"),
        ("eu/alpha/solo", {}, "eu/alpha/solo"),
        ("eu/auto/solo", {"provider": "alpha"}, "eu/alpha/solo"),
        ("solo", {"region": "eu"}, "eu/auto/solo"),
        ("solo", {"region": "auto", "provider": "alpha"}, "auto/alpha/solo"),
    ],
)
def test_the_requested_route_is_normalised(router: Router, model: str, members: dict[str, str], requested: str) -> None:
    answer = router.complete(chat(model, **members))
    claims = router.verify(answer.receipt_id).claims
    assert (claims.requested_route, claims.routed_model) == (requested, "eu/alpha/solo")
    assert answer.json["tresor"]["requested_route"] == requested


def test_every_try_is_told(steady_router: Router, alpha: Upstream, beta: Upstream) -> None:
    alpha.script(reply_error(503))
    answer = steady_router.complete(chat("m"))
    claims = steady_router.verify(answer.receipt_id, response=answer.body).claims
    assert (claims.routed_model, claims.failover) == ("us/beta/m", True)
    first, second = claims.attempts
    assert (first.route, first.outcome, first.reason, first.status, first.prompt_sent) == (
        "eu/alpha/m",
        "failed",
        "upstream_status",
        503,
        True,
    )
    assert (second.route, second.outcome, second.reason, second.status, second.prompt_sent) == (
        "us/beta/m",
        "served",
        None,
        200,
        True,
    )
    started = [datetime.fromisoformat(attempt.started_at) for attempt in claims.attempts]
    assert started == sorted(started)
    assert abs((datetime.now(UTC) - started[0]).total_seconds()) < 60
    assert answer.json["tresor"]["failover"] is True


def test_a_prompt_that_never_left_is_told(start_router: StartRouter, beta: Upstream) -> None:
    with Upstream() as gone:
        base_url = gone.base_url
    router = start_router([UpstreamEntry(base_url), UpstreamEntry(beta, "beta", "us", settings=LAST)])
    claims = router.verify(router.complete().receipt_id).claims
    assert [(a.reason, a.prompt_sent, a.status) for a in claims.attempts] == [
        ("connect_failed", False, None),
        (None, True, 200),
    ]


def test_a_refusal_after_all_tries_is_told(steady_router: Router, alpha: Upstream, beta: Upstream) -> None:
    alpha.script(hang_up())
    beta.script(reply(b"no json"))
    answer = steady_router.complete(chat("m"))
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    claims = steady_router.verify(answer.receipt_id, request=chat("m"), response=answer.body).claims
    assert (claims.outcome, claims.status, claims.routed_model, claims.failover) == ("refused", 502, None, False)
    assert [(a.outcome, a.reason) for a in claims.attempts] == [
        ("failed", "connection_lost"),
        ("failed", "invalid_response"),
    ]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}, (5, 0, 5)),
        ({"prompt_tokens": 5}, (5, None, None)),
        (None, (None, None, None)),
        ({"prompt_tokens": -1, "completion_tokens": 1.5, "total_tokens": "7"}, (None, None, None)),
        ({"prompt_tokens": True, "completion_tokens": 2**53, "total_tokens": 2**53 - 1}, (None, None, 2**53 - 1)),
        ([1, 2], (None, None, None)),
    ],
)
def test_tokens_are_as_the_upstream_counted_and_null_where_it_did_not(
    router: Router, alpha: Upstream, usage: object, counts: tuple[int | None, ...]
) -> None:
    alpha.script(reply(completion(usage=usage)))
    claims = router.verify(router.complete(chat("solo")).receipt_id).claims
    assert (claims.prompt_tokens, claims.completion_tokens, claims.total_tokens) == counts


def test_the_nonce_is_the_callers(router: Router) -> None:
    nonce = "".join(map(chr, range(0x21, 0x7F))) + "x" * 34
    assert len(nonce) == 128
    with_nonce = router.complete(chat("solo"), X_Tresor_Nonce=nonce)
    assert router.verify(with_nonce.receipt_id, nonce=nonce).claims.nonce == nonce
    assert router.verify(router.complete(chat("solo")).receipt_id).claims.nonce is None


@pytest.mark.parametrize("nonce", ["", "x" * 129, "a b", "é", "a\tb"])
def test_a_nonce_that_cannot_be_echoed_is_refused(router: Router, alpha: Upstream, nonce: str) -> None:
    answer = router.complete(chat("solo"), X_Tresor_Nonce=nonce)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_field", "X-Tresor-Nonce")
    assert alpha.requests == []


def test_nothing_a_caller_sends_chooses_ids_or_digests(router: Router) -> None:
    mine = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
    request = chat("solo", tresor={"receipt_id": mine}, receipt_id=mine)
    answer = router.complete(
        request,
        X_Tresor_Receipt_Id=mine,
        X_Request_Id="mine",
        X_Tresor_Request_Digest="sha256:" + "0" * 64,
        Digest="sha-256=x",
        Traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert answer.receipt_id != mine
    assert answer.headers["x-request-id"] != "mine"
    assert router.verify(answer.receipt_id, request=request, response=answer.body).claims.jti == answer.receipt_id


def test_receipts_are_numbered_without_gaps_from_one(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    alpha.script(reply(completion()), reply_error(500), reply_error(400), reply(completion()))
    answers = [router.complete() for _ in range(3)]
    router.complete(X_Tresor_Receipt="false")
    answers.append(router.complete(b"not json"))
    answers.append(router.complete())
    receipts = [router.verify(a.receipt_id) for a in answers if "x-tresor-receipt-id" in a.headers]
    assert [receipt.claims.seq for receipt in receipts] == [1, 2, 3, 4]
    assert len({receipt.kid for receipt in receipts}) == 1


def test_what_was_not_checked_is_said(router: Router) -> None:
    claims = router.verify(router.complete(chat("solo")).receipt_id).claims
    assert set(claims.not_checked) >= {"router_tee", "cpu_tee", "gpu_tee", "tcb", "workload", "tls_binding"}
