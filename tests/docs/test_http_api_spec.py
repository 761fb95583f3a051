"""docs/spec/http-api.md and the code say the same: tables, limits, and every example byte by byte."""

import ast
import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pages import ROOT, Page, source_files

from support.certificates import Tls
from support.router import Router, UpstreamEntry, chat, running_router
from support.upstream import (
    DONE,
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
    sse,
    stream,
)
from support.wire import Answer
from tresor.accounts import rate_limits
from tresor.accounts.api_keys import FRESH_S, STALE_S
from tresor.app import application, attesting, exchange, ledger, resources, worker
from tresor.app.options import CLAIM_NAMES
from tresor.errors import FailedAttempt, RequestError, UpstreamError, type_of_status
from tresor.http1.sweeper import Sweeper
from tresor.limits import Limits
from tresor.receipts.recorder import StreamPhase, StreamRecorder, splice_answer
from tresor.routing.catalogue import ModelEntry
from tresor.server import connection
from tresor.settings.load import Secret
from tresor.settings.model import IdentitySettings, ModelSettings, UpstreamSettings
from tresor.trust.jwk import TrustKey
from tresor.trust.release_root import encode_public_jwk
from tresor.upstreams.pool import UpstreamPool
from tresor.wire import inference, transcription
from tresor.wire.envelope import encode_envelope, encode_stream_error
from tresor.wire.inference import parse_chat_request, parse_embedding_request

SPEC = Page(ROOT / "docs" / "spec" / "http-api.md")
EXAMPLES = SPEC.examples()
JSON = "application/json"
LIMITS = Limits()


def bare(cell: str) -> str:
    return cell.strip("`")


# 1. Endpoints


def test_endpoints_are_those_of_the_application() -> None:
    source = ast.parse((ROOT / "src" / "tresor" / "app" / "application.py").read_text())
    strings = {
        node.value for node in ast.walk(source) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    below_base = {endpoint.path for endpoint in application._ENDPOINTS.values()}
    served = {text for text in strings if re.fullmatch(r"/[\w./{}-]+[\w}]", text)} - below_base - {"/v1"}
    assert {bare(row[0]) for row in SPEC.table("Path")} == served | set(application._ENDPOINTS)


@pytest.mark.parametrize("row", SPEC.table("Path"), ids=lambda row: bare(row[0]))
def test_methods_and_keys(router: Router, row: list[str]) -> None:
    path, methods, key = bare(row[0]).format(id="none"), row[1], row[2]
    for method in methods.split(", "):
        answer = router.ask(method, path)
        assert (answer.status == 401) == (key == "yes"), answer
        assert answer.status not in (405, 500)
    wrong = router.ask("PATCH", path, key=router.key)
    assert (wrong.status, wrong.headers["allow"]) == (405, methods)
    SPEC.section(row[4])


def test_every_other_path_is_not_found(router: Router) -> None:
    for path in ("/", "/v1", "/attestations", "/metrics", "/v1/completions"):
        answer = router.ask("GET", path)
        assert (answer.status, answer.error["code"]) == (404, "not_found")


def test_limits_named_in_the_text() -> None:
    assert rate_limits._LOTS == 100
    for number, text in (
        ("1.2", f"up to {connection._MAX_PIPELINED} requests"),
        ("1.3", f"a head of {LIMITS.max_head_bytes >> 10} KiB within {LIMITS.head_timeout_s:.0f} seconds"),
        ("1.3", f"a body of {LIMITS.max_body_bytes >> 20} MiB"),
        ("1.3", f"arriving for {LIMITS.body_timeout_s:.0f} seconds"),
        ("1.3", f"{LIMITS.max_connections} connections"),
        ("2.1", f"remembers a key for {FRESH_S:.0f} seconds"),
        ("2.1", f"go on working for {STALE_S:.0f} seconds"),
        ("2.2", f"a hundredth of its limit, at most {rate_limits._MAX_LOT}."),
        ("4.5", f"After {LIMITS.keep_alive_comment_s:.0f} seconds of silence"),
        ("4.6", f"up to {exchange._MAX_MESSAGE_CHARS} characters"),
        ("8", f"at least every {worker._UPKEEP_S * worker._PROBE_EVERY:.0f} seconds"),
        ("11", f"at most {transcription._MAX_PARTS} parts"),
        ("12.1", f"at most {attesting._MAX_WAITING} wait"),
        ("12.1", f"has {IdentitySettings().nonces_per_minute} fresh answers in a minute"),
        ("11", f"at most {LIMITS.max_failover_routes} times"),
    ):
        assert text in " ".join(SPEC.section(number).split())


# 3. Errors


def test_errors_are_those_of_the_code() -> None:
    raised: set[tuple[str, str]] = set()
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RequestError":
                status, code, *_ = node.args
                assert isinstance(code, ast.Constant)
                raised.add((str(status.value) if isinstance(status, ast.Constant) else "4xx", str(code.value)))
    rows = SPEC.table("Status")
    assert sorted((row[0], bare(row[2])) for row in rows) == sorted(raised)
    assert {int(row[0]): bare(row[1]) for row in rows if row[0].isdigit()} == type_of_status


def test_the_envelope() -> None:
    error = RequestError(400, "missing_field", "messages is missing", param="messages")
    assert encode_envelope(error, "req_5f1d0c7a9b3e0").decode() == EXAMPLES["envelope"]
    tried = FailedAttempt("eu/vllm/gpt-oss-120b", "upstream_status", 500)
    message = "no upstream gave a usable answer; routes tried: 1, upstream_status"
    error = RequestError(502, "upstream_error", message, attempts=(tried,))
    assert encode_envelope(error, "req_5f1d0c7a9b3e0").decode() == EXAMPLES["envelope-attempts"]


def test_an_exchange_begins_behind_the_checks_in_their_order(router: Router, alpha: Upstream) -> None:
    """Each request has the faults of all later steps too."""
    path, bad = (
        "/v1/chat/completions",
        {"X-Tresor-Nonce": "two words", "Content-Encoding": "gzip", "Content-Type": "a/b"},
    )
    assert router.ask("PATCH", "/nothing", headers=bad).status == 404
    assert router.ask("PATCH", path, headers=bad).status == 401
    assert router.ask("PATCH", path, key=router.key, headers=bad).status == 405
    codes = []
    for faults in (
        dict(bad),
        {"Content-Encoding": "gzip", "Content-Type": "a/b"},
        {"Content-Length": str(LIMITS.max_body_bytes + 1), "Content-Type": "a/b"},
        {"Content-Type": "a/b"},
        {"Content-Type": JSON},
    ):
        answer = router.ask("POST", path, key=router.key, headers=faults, body=b'{"model":"nothing","messages":[]')
        assert "x-tresor-receipt-id" not in answer.headers
        codes.append(answer.error["code"])
    wanted = ["invalid_field", "unsupported_media_type", "payload_too_large", "unsupported_media_type", "invalid_json"]
    assert codes == wanted
    assert router.complete(b'{"model":"nothing","messages":[]}').error["param"] == "messages"
    assert router.complete(chat("nothing")).error["code"] == "model_not_found"
    assert alpha.requests == []


# 4.1 to 4.3


@pytest.mark.parametrize(
    ("row", "parse", "good"),
    [
        *((row, parse_chat_request, {"model": "m", "messages": [{}]}) for row in SPEC.table("Member", number="4.1")),
        *((row, parse_embedding_request, {"model": "m", "input": "i"}) for row in SPEC.table("Member", number="10")),
    ],
    ids=lambda value: bare(value[0]) if isinstance(value, list) else "",
)
def test_members_that_are_checked(row: list[str], parse: Any, good: dict[str, Any]) -> None:
    name, required, wanted = bare(row[0]), row[1] == "yes", row[2]
    wrong: dict[str, Any] = {"failover": ["r"] * 6, "stream_options": 0}
    for value in (wrong.get(name, 0.5 if name == "max_tokens" else {}), wrong.get(name, -1)):
        body = {"stream": True, **good, name: value} if name == "stream_options" else {**good, name: value}
        with pytest.raises(RequestError) as refused:
            parse(json.dumps(body).encode(), JSON, LIMITS.max_failover_routes)
        assert (refused.value.code, str(refused.value)) == ("invalid_field", f"{name} is not {wanted}")
    for body in ({k: v for k, v in good.items() if k != name}, {**good, name: None}):
        if required:
            with pytest.raises(RequestError, match=f"^{name} is missing$"):
                parse(json.dumps(body).encode(), JSON, LIMITS.max_failover_routes)
        else:
            parse(json.dumps(body).encode(), JSON, LIMITS.max_failover_routes)


def test_the_members_that_are_checked_are_all() -> None:
    source = (ROOT / "src" / "tresor" / "wire" / "inference.py").read_text()
    looked_at = set(
        re.findall(r'(?:values\.get|_required|_optional_string)\((?:(?:members\.)?values, )?"(\w+)"', source)
    )
    assert looked_at == {bare(row[0]) for number in ("4.1", "10") for row in SPEC.table("Member", number=number)}


@pytest.mark.parametrize("number", ["1", "2", "3", "4"])
def test_what_is_forwarded(number: str) -> None:
    parsed = parse_chat_request(EXAMPLES[f"received-{number}"].encode(), JSON, LIMITS.max_failover_routes)
    assert parsed.forwarded("openai/gpt-oss-120b").decode() == EXAMPLES[f"forwarded-{number}"]
    assert "`openai/gpt-oss-120b`" in SPEC.section("4.2")


def test_the_edits_are_those_of_the_code() -> None:
    assert sorted(inference._TRESOR_MEMBERS) == ["failover", "provider", "region"]
    assert all(f"`{part}`" in SPEC.section("11") for part in transcription._TRESOR_PARTS | transcription._READ_PARTS)


def test_the_forwarded_head() -> None:
    async def made() -> str:
        settings = UpstreamSettings(
            provider="vllm",
            region="eu",
            base_url="https://vllm.example:8000/v1",
            attestation="none",
            models=(ModelSettings(key="m", upstream_name="m"),),
        )
        pool = UpstreamPool(settings, api_key=Secret("sk-secret", "a"), ca_file=None, limits=LIMITS, sweeper=Sweeper())
        return pool.request_head("/chat/completions", JSON, JSON, len(EXAMPLES["forwarded-1"].encode())).decode()

    assert asyncio.run(made()) == EXAMPLES["forwarded-head"].replace("\n", "\r\n") + "\r\n\r\n"


def test_request_headers() -> None:
    rows = {bare(row[0]).lower(): row for row in SPEC.table("Request header")}
    source = (ROOT / "src" / "tresor" / "app" / "options.py").read_text()
    assert set(rows) == set(re.findall(r'headers\.get\("(x-tresor-[\w-]+)"', source))
    assert f"1 to {LIMITS.max_nonce_chars} visible" in rows["x-tresor-nonce"][1]
    assert rows["x-tresor-timeout-seconds"][2] == f"{LIMITS.default_timeout_s:.0f}"
    assert f"more than {LIMITS.max_timeout_s:.0f} is" in rows["x-tresor-timeout-seconds"][3]
    assert set(re.findall(r"`(\w+)`", rows["x-tresor-require-attestation"][1])) == CLAIM_NAMES


def test_required_attestation_is_refused_with_a_receipt(router: Router, alpha: Upstream) -> None:
    for claim in CLAIM_NAMES:
        answer = router.complete(X_Tresor_Require_Attestation=claim)
        assert (answer.status, answer.error["code"]) == (412, "attestation_requirements_not_met")
        assert router.verify(answer.receipt_id, response=answer.body).claims.outcome == "refused"
    assert alpha.requests == []


def test_response_headers(router: Router, alpha: Upstream) -> None:
    named = {bare(name).lower() for row in SPEC.table("Response header") for name in row[0].split(", ")}
    alpha.script(stream(chunk(), finish(), DONE))
    answers = [
        router.complete(),
        router.complete(chat("solo", stream=True)),
        router.ask("PATCH", "/v1/receipts", key=router.key),
    ]
    seen = {name for answer in answers for name in answer.headers}
    framing = {"date", "content-type", "content-length", "transfer-encoding", "connection"}
    assert seen - framing == named - {"retry-after"}


# 4.4 and 4.5


def extension() -> bytes:
    sent = EXAMPLES["answer-sent"]
    return sent[sent.index('"tresor":') + len('"tresor":') : -1].encode()


def test_an_answer() -> None:
    sent, usage = splice_answer(EXAMPLES["answer-received"].encode(), extension())
    assert sent.decode() == EXAMPLES["answer-sent"]
    assert usage.total_tokens == 14
    members = msgspec.json.decode(extension())
    assert [bare(row[0]) for row in SPEC.table("Member of `tresor`")] == list(members)
    assert tuple(members) == ledger._Extension.__struct_fields__


def recorder(*, pass_usage: bool) -> StreamRecorder:
    return StreamRecorder(extension=extension(), pass_usage=pass_usage, max_event_bytes=LIMITS.max_event_bytes)


def test_a_stream() -> None:
    received, sent = (EXAMPLES[name].encode() + b"\n" for name in ("stream-received", "stream-sent"))
    usage = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":1,"total_tokens":13}}\n\n'
    assert usage in received
    for pass_usage in (False, True):
        record = recorder(pass_usage=pass_usage)
        out = record.feed(received)
        assert record.phase is StreamPhase.DONE
        whole = out + record.tail()
        assert whole.replace(usage, b"") == sent
        assert (usage in whole) == pass_usage


def test_the_error_event() -> None:
    record = recorder(pass_usage=False)
    record.feed(EXAMPLES["stream-received"].encode()[:150])
    record.end()
    assert isinstance(record.fault, UpstreamError)
    receipt_id = msgspec.json.decode(extension())["receipt_id"]
    event = record.broken_tail(encode_stream_error(exchange._broken(record.fault), receipt_id))
    assert event.decode() == EXAMPLES["error-event"] + "\n"


# 4.6.  Each row of the tables, by its first cell, and a script that makes an upstream do it.

EVENTS = head(200, "Transfer-Encoding: chunked", content_type="text/event-stream")
ERROR = sse({"error": {"message": "out of memory"}})
STREAMED = "streamed"

BEFORE: dict[str, list[tuple[Script, bool]]] = {
    "is silent for too long": [(silent, False), (silent, True)],
    "answers 401, 403, 404, 408, 429, 3xx or 5xx": [
        (reply_error(status), False) for status in (401, 403, 404, 408, 429, 304, 500, 503)
    ],
    "closes the connection before the end of its answer": [
        (hang_up(), False),
        (send_raw(head(200, "Content-Length: 99"), b"{"), False),
        (send_raw(EVENTS), True),
    ],
    "answers with what is no HTTP, no JSON object, or content-coded": [
        (send_raw(b"SSH-2.0-x\r\n"), False),
        (reply(b"[]"), False),
        (reply(b"{}", "Content-Encoding: gzip"), False),
    ],
    "answers with an error object under a status of success": [(reply(b'{"error":{"message":"no"}}'), False)],
    "answers a streaming request with what is no event stream": [(reply(completion()), True)],
    "begins a stream with an error event": [(stream(ERROR), True)],
    "ends a stream, or says `[DONE]`, before any content": [(stream(), True), (stream(DONE), True)],
}

BEGUN: dict[str, list[Script]] = {
    "ends the stream with a finish chunk and `[DONE]`": [stream(chunk(), finish(), DONE)],
    "ends its body in order behind the finish chunk, without `[DONE]`": [stream(chunk(), finish())],
    "sends an error event": [stream(chunk(), ERROR, DONE)],
    "ends the stream, or says `[DONE]`, without a finish chunk": [stream(chunk()), stream(chunk(), DONE)],
    "closes the connection inside its body": [send_raw(EVENTS, chunked(chunk() + finish()))],
    "falls silent for longer than `idle_timeout_s`": [stream(chunk(), end=False)],
    "sends an event larger than `max_event_bytes`, or what is no HTTP": [
        stream(chunk(), chunk("x" * 3000)),
        send_raw(EVENTS, chunked(chunk()), b"zz\r\n"),
    ],
}


OUT_OF_REACH: dict[str, str] = {
    "cannot be connected to": "nobody",
    "fails the TLS handshake": "untrusted",
    "cannot prove what it must (section 4.1), or not in time": "unproven",
}
# These take more than a script: tests/router/test_attested_faults.py and test_routing.py.
ELSEWHERE: set[str] = {
    "serves as many requests as it may, and none ends in time",
    "ends TLS with another key than the attested one",
}
_FIRSTS = 48


@pytest.fixture(scope="module")
def upstreams() -> Iterator[tuple[Upstream, Upstream]]:
    with Upstream() as first, Upstream() as second:
        yield first, second


@pytest.fixture(scope="module")
def hasty(upstreams: tuple[Upstream, Upstream], tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Iterator[Router]:
    """A router that waits for nobody.

    The first upstream stands in the catalogue many times, for one that has failed a few times is left to rest (section
    4.7).  Two more are out of reach, and one does not prove what it must.
    """
    waits = {"first_byte_timeout_s": 0.3, "idle_timeout_s": 0.3}
    first, second = upstreams
    root = tmp_path_factory.mktemp("root") / "release-root.jwk"
    root.write_bytes(encode_public_jwk(TrustKey.of(Ed25519PrivateKey.generate().public_key())))
    unproven = {"attestation": "tresor", "release_root_file": str(root)}
    with Upstream(tls.server_context()) as untrusted:
        entries = [
            *(UpstreamEntry(first, f"first-{n}", models={f"m-{n}": "m"}, settings=waits) for n in range(_FIRSTS)),
            UpstreamEntry(second, "second", models={"m": "m"}, settings=waits),
            UpstreamEntry("https://127.0.0.1:9/v1", "unproven", models={"unproven": "m"}, settings=unproven),
            UpstreamEntry("http://127.0.0.1:9/v1", "nobody", models={"nobody": "m"}),
            UpstreamEntry(untrusted, "untrusted", models={"untrusted": "m"}),
        ]
        limits = {"max_event_bytes": 2048, "default_timeout_s": 0.3}
        with running_router(tmp_path_factory.mktemp("hasty"), entries, settings={"limits": limits}) as router:
            yield router


@pytest.fixture(scope="module")
def fresh() -> Iterator[str]:
    """Keys of models at the first upstream; each stands for a route that has never failed."""
    return (f"m-{n}" for n in range(_FIRSTS))


def with_failover(key: str, **members: Any) -> bytes:
    return chat(key, failover=["eu/second/m"], **members)


def code_in(cell: str) -> str:
    found = re.search(r"`(\w+)`", cell)
    assert found is not None, cell
    return found[1]


def refused(hasty: Router, answer: Answer, row: list[str]) -> None:
    status, code = row[1].split(" ")
    assert (answer.status, answer.error["code"]) == (int(status), bare(code)), answer
    claims = hasty.verify(answer.receipt_id, response=answer.body).claims
    assert claims.outcome == "refused"
    assert [attempt.reason for attempt in claims.attempts] == [bare(row[2])]


def test_every_way_to_end_is_tried() -> None:
    before, _, begun, _ = (
        next(SPEC.tables(*heading, number="4.6"))
        for heading in (
            ("The upstream", "The caller gets", "Reason of the attempt"),
            ("The upstream", "The caller gets", "Reason of the attempt"),
            ("The upstream", "The caller gets", "Outcome"),
            ("What happens",),
        )
    )
    assert {row[0] for row in before} == {*BEFORE, *OUT_OF_REACH, *ELSEWHERE}
    assert {row[0] for row in begun} == set(BEGUN)


@pytest.mark.parametrize("row", next(SPEC.tables("The upstream", number="4.6")), ids=lambda row: row[0])
def test_an_attempt_that_has_not_begun(
    hasty: Router, upstreams: tuple[Upstream, Upstream], fresh: Iterator[str], row: list[str]
) -> None:
    first, second = upstreams
    if (unreachable := OUT_OF_REACH.get(row[0])) is not None:
        refused(hasty, hasty.complete(chat(unreachable)), row)
        return
    for script, streamed in BEFORE.get(row[0], []):
        first.reset()
        second.reset()
        first.script(script)
        key = next(fresh)
        refused(hasty, hasty.complete(chat(key, stream=streamed)), row)
        if bare(row[2]) != "timeout" or streamed:  # else the budget of all attempts is used up
            answer = hasty.complete(with_failover(key, stream=streamed))
            claims = hasty.verify(answer.receipt_id, response=answer.body).claims
            assert [attempt.reason for attempt in claims.attempts] == [bare(row[2]), None]
            assert (claims.outcome, claims.routed_model, claims.failover) == ("complete", "eu/second/m", True)


@pytest.mark.parametrize("status", [400, 402, 405, 409, 413, 415, 422])
def test_an_upstream_that_refuses_the_request(
    hasty: Router, upstreams: tuple[Upstream, Upstream], fresh: Iterator[str], status: int
) -> None:
    first, second = upstreams
    second.reset()
    first.script(reply_error(status, "too long by half"))
    answer = hasty.complete(with_failover(next(fresh)))
    row = list(SPEC.tables("The upstream", number="4.6"))[1][0]
    assert (answer.status, answer.error["code"]) == (status, code_in(row[1]))
    assert answer.error["message"] == "too long by half"
    claims = hasty.verify(answer.receipt_id, response=answer.body).claims
    assert (claims.outcome, [attempt.reason for attempt in claims.attempts]) == ("refused", [bare(row[2])])
    assert second.requests == []


@pytest.mark.parametrize("row", list(SPEC.tables("The upstream", number="4.6"))[2], ids=lambda row: row[0])
def test_a_stream_that_has_begun(
    hasty: Router, upstreams: tuple[Upstream, Upstream], fresh: Iterator[str], row: list[str]
) -> None:
    first, second = upstreams
    for script in BEGUN[row[0]]:
        second.reset()
        first.script(script)
        answer = hasty.complete(with_failover(next(fresh), stream=True))
        assert answer.status == 200
        assert answer.body.startswith(chunk())
        assert answer.body.endswith(DONE) == (bare(row[2]) == "complete")
        assert (b'data: {"error":' in answer.body) == ("error event" in row[1])
        if "error event" in row[1]:
            assert f'"code":"{code_in(row[1])}"'.encode() in answer.body
        claims = hasty.verify(answer.receipt_id, response=answer.body).claims
        reason = None if row[3] == "none" else bare(row[3])
        assert (claims.outcome, [attempt.reason for attempt in claims.attempts]) == (bare(row[2]), [reason])
        assert second.requests == []


def test_statuses_that_are_no_refusal_of_the_request() -> None:
    (cell,) = (row[0] for row in next(SPEC.tables("The upstream", number="4.6")) if "3xx" in row[0])
    assert {int(status) for status in re.findall(r"\d{3}", cell)} == exchange._NEXT_CANDIDATE


# 5 to 8


def test_a_page_of_receipts(router: Router) -> None:
    page = msgspec.json.decode(EXAMPLES["receipts"], type=resources._Page)
    assert msgspec.json.encode(page).decode() == EXAMPLES["receipts"]
    rows = {bare(row[0]): row for row in SPEC.table("Parameter", number="5.2")}
    assert (rows["limit"][1], rows["limit"][2]) == (f"1 to {resources._MAX_PAGE}", str(resources._DEFAULT_PAGE))
    first, second = (router.complete().receipt_id for _ in range(2))
    behind = router.ask("GET", f"/v1/receipts?limit=1&after={second}", key=router.key).json
    assert [entry["id"] for entry in behind["data"]] == [first]
    for query in ("limit=0", "limit=101", "after=x", "after=01a2057b-6d45-7e80-8242-6ee9c3e96a29"):
        answer = router.ask("GET", f"/v1/receipts?{query}", key=router.key)
        assert (answer.status, answer.error["code"]) == (400, "invalid_field")


def test_a_receipt(router: Router, other_key: str) -> None:
    assert list(msgspec.json.decode(EXAMPLES["receipt"])) == ["id", "receipt"]
    receipt_id = router.complete().receipt_id
    path = f"/v1/receipts/{receipt_id}"
    assert list(router.ask("GET", path, key=router.key).json) == ["id", "receipt"]
    assert router.ask("GET", f"{path}?include=evidence", key=router.key).json["evidence"] == {}
    assert router.ask("GET", f"{path}?include=all", key=router.key).error["code"] == "invalid_field"
    assert router.ask("GET", "/v1/receipts/", key=router.key).error["code"] == "missing_field"
    missing = [
        router.ask("GET", p, key=other_key) for p in (path, "/v1/receipts/x", path.replace(receipt_id[:8], "0" * 8))
    ]
    bodies = {re.sub(rb'"request_id":"[^"]*"', b"", answer.body) for answer in missing}
    assert ([answer.status for answer in missing], len(bodies)) == ([404] * 3, 1)


def test_models(router: Router) -> None:
    entries = msgspec.json.decode(
        msgspec.json.encode(msgspec.json.decode(EXAMPLES["models"])["data"]), type=list[ModelEntry]
    )
    assert msgspec.json.encode({"object": "list", "data": entries}).decode() == EXAMPLES["models"]
    for row in SPEC.table("Parameter", number="6"):
        value = {"detail": "true", "region": "eu", "provider": "alpha", "type": "embedding"}[bare(row[0])]
        listed = router.ask("GET", f"/v1/models?{bare(row[0])}={value}").json["data"]
        assert listed
        assert listed != router.ask("GET", "/v1/models").json["data"]
    assert router.ask("GET", "/v1/models?detail=yes").error["code"] == "invalid_field"
    assert router.ask("GET", "/v1/models/m").json["id"] == "eu/alpha/m"
    assert router.ask("GET", "/v1/models/us/beta/m").json["tresor"]["attestation"] == "unverified"


def test_keys_and_health(router: Router) -> None:
    assert router.ask("GET", "/.well-known/jwks.json").headers["content-type"] == "application/jwk-set+json"
    assert router.ask("GET", "/healthz").body.decode() == EXAMPLES["healthz"]
    assert router.ask("GET", "/readyz").body.decode() == EXAMPLES["readyz"]
    checks = msgspec.json.decode(EXAMPLES["readyz"])["checks"]
    assert [bare(row[0]) for row in SPEC.table("Check")] == list(checks)


# 11


@pytest.mark.parametrize(("value", "good"), [("false", True), ("0", True), ("", True), ("true", False)])
def test_transcriptions_are_not_streamed(value: str, good: bool) -> None:
    fields = (("file", "x"), ("model", "m"), ("stream", value))
    parts = "".join(f'--B\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields)
    with contextlib.nullcontext() if good else pytest.raises(RequestError):
        transcription.parse_transcription_request(f"{parts}--B--\r\n".encode(), "multipart/form-data; boundary=B", 5)


def test_sections_that_are_cited_exist() -> None:
    cited: set[str] = set()
    for path in source_files():
        for first, _, last in re.findall(
            r"http-api\.md,? sections? ([\d.]*\d)(?:( to | and )([\d.]*\d))?", path.read_text()
        ):
            cited |= {first, last} - {""}
    assert len(cited) > 5
    for number in cited:
        SPEC.section(number)
