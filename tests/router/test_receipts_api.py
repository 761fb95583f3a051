"""Receipts, key sets and models as they are read."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from conftest import StartRouter
from support.router import Router, UpstreamEntry, chat, new_key, new_state, running_router, tresor, wait_until
from support.upstream import Upstream, chunk, reply_error, stream
from support.wire import Answer

UNKNOWN = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


def fetch(router: Router, receipt_id: str, key: str | None = None) -> Answer:
    return router.ask("GET", f"/v1/receipts/{receipt_id}", key=key or router.key)


def test_any_key_of_the_customer_fetches_a_receipt(router: Router) -> None:
    answer = router.complete(chat("solo"))
    fetched = fetch(router, answer.receipt_id, new_key(router.config, "acme"))
    assert fetched.status == 200
    assert fetched.headers["content-type"] == "application/json"
    assert fetched.json["id"] == answer.receipt_id
    assert fetched.body == router.receipt(answer.receipt_id)  # the same token every time


def test_what_is_not_ones_own_is_not_there_whatever_the_reason(router: Router, other_key: str) -> None:
    mine = router.complete(chat("solo"))
    # The id of an opted-out exchange is told to nobody; one that was never given out stands for it.
    assert "receipt_id" not in router.complete(chat("solo"), X_Tresor_Receipt="false").json["tresor"]
    answers = [
        fetch(router, UNKNOWN),
        fetch(router, mine.receipt_id, other_key),
        fetch(router, mine.receipt_id.upper()),
        fetch(router, mine.receipt_id[:-1]),
        fetch(router, mine.receipt_id + "/"),
        fetch(router, "x"),
        fetch(router, "../receipts"),
        fetch(router, "%00"),
        fetch(router, "'%20OR%201=1"),
        fetch(router, "9" * 5000),
    ]
    bodies = []
    for answer in answers:
        document = answer.json
        assert document.pop("request_id") == answer.headers["x-request-id"]
        bodies.append((answer.status, document, sorted(answer.headers), answer.headers["content-type"]))
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0][:2] == (
        404,
        {
            "error": {
                "message": "no receipt of yours has this id",
                "type": "not_found_error",
                "code": "not_found",
                "param": "id",
            }
        },
    )


def test_an_empty_id_is_said(router: Router) -> None:
    answer = fetch(router, "")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "missing_field", "id")


def test_evidence_is_included_where_asked(router: Router) -> None:
    receipt_id = router.complete(chat("solo")).receipt_id
    assert sorted(fetch(router, receipt_id).json) == ["id", "receipt"]
    assert fetch(router, f"{receipt_id}?include=evidence").json["evidence"] == {}
    wrong = fetch(router, f"{receipt_id}?include=everything")
    assert (wrong.status, wrong.error["code"], wrong.error["param"]) == (400, "invalid_field", "include")


def listed(router: Router, query: str = "", key: str | None = None) -> dict[str, Any]:
    answer = router.ask("GET", f"/v1/receipts{query}", key=key or router.key)
    assert answer.status == 200, answer
    page: dict[str, Any] = answer.json
    return page


def test_receipts_are_listed_newest_first_page_by_page(router: Router, alpha: Upstream) -> None:
    key = new_state(router.config, "pages")
    assert listed(router, key=key) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    ids = [router.complete(chat("solo"), key=key).receipt_id for _ in range(7)][::-1]
    router.complete(chat("solo"))  # of another customer
    seen: list[str] = []
    query = "?limit=3"
    for page_ids in (ids[:3], ids[3:6], ids[6:]):
        page = listed(router, query, key)
        assert [entry["id"] for entry in page["data"]] == page_ids
        assert (page["first_id"], page["last_id"]) == (page_ids[0], page_ids[-1])
        assert page["has_more"] is (page_ids[-1] != ids[-1])
        seen += page_ids
        query = f"?limit=3&after={page['last_id']}"
    assert seen == ids
    assert listed(router, query, key)["data"] == []


def test_a_listed_receipt_says_what_it_is_about(router: Router, alpha: Upstream) -> None:
    key = new_state(router.config, "entries")
    alpha.script(stream(chunk()), reply_error(500))
    ids = [router.complete(chat("solo", stream=True), key=key).receipt_id]
    ids.append(router.complete(chat("solo"), key=key).receipt_id)
    refused, aborted = listed(router, key=key)["data"]
    claims = router.verify(ids[0], key=key).claims
    issued_at = aborted.pop("issued_at")
    assert issued_at.endswith("Z")
    assert aborted == {
        "id": ids[0],
        "receipt_type": "message",
        "routed_model": "eu/alpha/solo",
        "prompt_tokens": None,
        "completion_tokens": None,
        "total_tokens": None,
        "outcome": claims.outcome,
    }
    assert (refused["id"], refused["outcome"], refused["routed_model"]) == (ids[1], "refused", None)


@pytest.mark.parametrize("limit", ["0", "-1", "101", "x", "", "1.0", "%D9%A3", "9" * 5000])
def test_a_limit_that_is_none_is_refused(router: Router, limit: str) -> None:
    answer = router.ask("GET", f"/v1/receipts?limit={limit}", key=router.key)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_field", "limit")


def test_a_cursor_that_is_not_ones_own_is_refused(router: Router, other_key: str) -> None:
    theirs = router.complete(chat("solo"), key=other_key).receipt_id
    for after in (UNKNOWN, theirs, "x", ""):
        answer = router.ask("GET", f"/v1/receipts?after={after}", key=router.key)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_field", "after")


def test_the_key_set_holds_public_keys_alone(router: Router) -> None:
    answer = router.ask("GET", "/.well-known/jwks.json")
    assert answer.headers["content-type"] == "application/jwk-set+json"
    assert sorted(answer.json) == ["keys"]
    for key in answer.json["keys"]:
        assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("EC", "P-256", "ES256", "sig")
        assert "d" not in key
    assert router.verify(router.complete(chat("solo")).receipt_id).kid in {key["kid"] for key in answer.json["keys"]}


def tables(router: Router) -> dict[str, list[Any]]:
    """Return everything the store holds, except the counters of rate limits."""
    with closing(sqlite3.connect(router.database)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names if name != "permits"}  # noqa: S608 - names from the schema


def test_opting_out_leaves_no_trace_in_the_store(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    router.complete()
    before = tables(router)
    alpha.script(reply_error(400), stream(chunk()), stream())
    for body in (chat(), chat(stream=True), chat(stream=True), chat("nowhere")):
        router.complete(body, X_Tresor_Receipt="false")
    assert router.complete(X_Tresor_Receipt="false", X_Tresor_Require_Attestation="tcb").status == 412
    assert tables(router) == before
    assert router.complete().status == 502
    assert tables(router) != before


def test_expired_receipts_are_deleted_and_their_keys_stay(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"receipts": {"retention_days": 1}})
    old, young = (router.complete().receipt_id for _ in range(2))
    kids = set(router.jwks())
    assert router.stop() == 0
    with closing(sqlite3.connect(router.database)) as connection, connection:
        connection.execute("UPDATE receipts SET issued_at = issued_at - 90000 WHERE seq = 1")
    again = Router(router.config, tls=None, key=router.key)
    try:
        wait_until(lambda: fetch(again, old).status == 404, "the old one is deleted")
        assert fetch(again, young).status == 200
        assert set(again.jwks()) >= kids
        assert again.verify(again.complete().receipt_id).claims.seq == 3
    finally:
        again.kill()


# Models.


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router with prices."""
    pricing = {"currency": "EUR", "input_per_mtok": 0.25, "output_per_mtok": 1.5}
    priced = {"upstream_name": "x", "created": 1700000000, "pricing": pricing}
    with (
        Upstream() as upstream,
        running_router(
            tmp_path_factory.mktemp("router"),
            [
                UpstreamEntry(
                    upstream, "one", "eu", {"big": priced, "vec": {"upstream_name": "v", "type": "embedding"}}
                ),
                UpstreamEntry(upstream, "two", "us", {"big": "y"}),
            ],
        ) as router,
    ):
        yield router


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", ["eu/one/big", "eu/one/vec", "us/two/big"]),
        ("?region=us", ["us/two/big"]),
        ("?provider=one", ["eu/one/big", "eu/one/vec"]),
        ("?type=embedding", ["eu/one/vec"]),
        ("?type=chat&region=eu", ["eu/one/big"]),
        ("?region=mars", []),
    ],
)
def test_models_are_listed_and_filtered(shop: Router, query: str, ids: list[str]) -> None:
    document = shop.ask("GET", f"/v1/models{query}").json
    assert document["object"] == "list"
    assert [model["id"] for model in document["data"]] == ids
    assert all(sorted(model) == ["created", "id", "object", "owned_by"] for model in document["data"])


def test_models_have_detail_where_asked(shop: Router) -> None:
    first, vec, _ = shop.ask("GET", "/v1/models?detail=true").json["data"]
    assert first == {
        "id": "eu/one/big",
        "object": "model",
        "created": 1700000000,
        "owned_by": "one",
        "tresor": {
            "model_key": "big",
            "region": "eu",
            "provider": "one",
            "type": "chat",
            "attestation": "unverified",
            "pricing": {"currency": "EUR", "input_per_mtok": 0.25, "output_per_mtok": 1.5},
        },
    }
    assert "pricing" not in vec["tresor"]
    wrong = shop.ask("GET", "/v1/models?detail=yes")
    assert (wrong.status, wrong.error["code"], wrong.error["param"]) == (400, "invalid_field", "detail")


@pytest.mark.parametrize(
    ("wanted", "found"), [("us/two/big", "us/two/big"), ("big", "eu/one/big"), ("us%2Ftwo%2Fbig", "us/two/big")]
)
def test_one_model_is_read(shop: Router, wanted: str, found: str) -> None:
    assert shop.ask("GET", f"/v1/models/{wanted}").json["id"] == found


@pytest.mark.parametrize("wanted", ["small", "two/big", "us/two/big/", "", "auto/auto/nothing"])
def test_a_model_that_is_none(shop: Router, wanted: str) -> None:
    answer = shop.ask("GET", f"/v1/models/{wanted}")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_the_verifier_accepts_what_the_api_gives(router: Router, tmp_path: Any) -> None:
    request = chat("solo")
    answer = router.complete(request, X_Tresor_Nonce="n1")
    for name, data in (
        ("request", request),
        ("response", answer.body),
        ("receipt.json", router.receipt(answer.receipt_id)),
        ("jwks.json", router.ask("GET", "/.well-known/jwks.json").body),
    ):
        (tmp_path / name).write_bytes(data)
    arguments = ["--jwks", tmp_path / "jwks.json", "--request", tmp_path / "request", "--nonce", "n1"]
    good = tresor(
        "receipt", *arguments, "--response", tmp_path / "response", tmp_path / "receipt.json", module="verify"
    )
    assert (good.exit_code, good.out.splitlines()[0]) == (0, "PASS")
    bad = tresor("receipt", *arguments, "--response", tmp_path / "request", tmp_path / "receipt.json", module="verify")
    assert (bad.exit_code, bad.out.splitlines()[0]) == (1, "FAIL  response_digest_mismatch")
