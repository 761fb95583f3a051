"""HTTP/1.1 itself: where one request ends and the next begins, which two readers must never see differently."""

from collections.abc import Iterator

import pytest

from support.router import Router, UpstreamEntry, chat, running_router
from support.upstream import DONE, Upstream
from support.wire import request_bytes

CHAT = "/v1/chat/completions"
HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router without TLS, for what a TLS layer would hide."""
    folder = tmp_path_factory.mktemp("router")
    with Upstream() as upstream, running_router(folder, [UpstreamEntry(upstream)]) as router:
        yield router


def post(router: Router, *fields: str, body: bytes = b"", end: str = "\r\n") -> bytes:
    lines = [
        f"POST {CHAT} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {router.key}",
        "Content-Type: application/json",
    ]
    return end.join([*lines, *fields, "", ""]).encode("latin-1") + body


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 4"),
        ("Content-Length: 4", "Content-Length: 5"),
        ("Content-Length: 4", "Content-Length: 4"),
        ("Content-Length: 4, 4",),
        ("Content-Length: +4",),
        ("Content-Length: -4",),
        ("Content-Length: 0x4",),
        ("Content-Length: 4 4",),
        ("Content-Length: 4.0",),
        ("Content-Length:",),
        ("Content-Length: 99999999999999999999999",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding\t: chunked",),
        ("X: a", " Content-Length: 4"),
        ("X: a\rContent-Length: 4",),
        ("X: a\nContent-Length: 4",),
        ("X: a\0b", "Content-Length: 4"),
        ("X y: z", "Content-Length: 4"),
        (": nameless", "Content-Length: 4"),
        ("no colon", "Content-Length: 4"),
        ("Host: y", "Content-Length: 4"),
        ("Upgrade: h2c", "Connection: Upgrade", "Content-Length: 4"),
    ],
    ids=repr,
)
def test_a_framing_that_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_served(
    plain: Router, fields: tuple[str, ...]
) -> None:
    with plain.connect() as wire:
        wire.send(post(plain, *fields, body=b"{}\r\n0\r\n\r\n" + HIDDEN))
        answer = wire.read_answer()
        assert answer.status == 400
        assert answer.headers["connection"] == "close"
        assert wire.at_end()


@pytest.mark.parametrize(
    "coded",
    [
        b"g\r\n",
        b"-1\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"2 \r\n{}\r\n0\r\n\r\n",
        b"2\n{}\n0\n\n",
        b"2\r\n{}0\r\n\r\n",
        b"2\r\n{}xx0\r\n\r\n",
        b"\r\n2\r\n{}\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n{}",
        b"10000000000000002\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX: y\r\n z\r\n\r\n",
        b"2;a=\n\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_a_chunk_that_is_none_is_refused_and_nothing_behind_it_is_served(plain: Router, coded: bytes) -> None:
    with plain.connect() as wire:
        wire.send(post(plain, "Transfer-Encoding: chunked") + coded + HIDDEN)
        answer = wire.read_answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_field")
        assert wire.at_end()


@pytest.mark.parametrize("coding", ["gzip, chunked", "chunked, chunked", "identity"])
def test_a_transfer_coding_that_is_not_undone_is_refused(plain: Router, coding: str) -> None:
    with plain.connect() as wire:
        wire.send(post(plain, f"Transfer-Encoding: {coding}") + b"0\r\n\r\n")
        assert wire.read_answer().status == 400


def test_bare_line_feeds_are_no_line_ends(plain: Router) -> None:
    with plain.connect() as wire:
        wire.send(post(plain, "Content-Length: 2", body=b"{}", end="\n"))
        assert wire.read_answer().status == 400


@pytest.mark.parametrize("host", [None, "a, b", "a\r\nHost: b"])
def test_a_request_has_one_host(plain: Router, host: str | None) -> None:
    field = "" if host is None else f"Host: {host}\r\n"
    with plain.connect() as wire:
        wire.send(f"GET /healthz HTTP/1.1\r\n{field}\r\n".encode())
        answer = wire.read_answer()
    assert (answer.status, answer.error["param"]) == (400, "Host")


def test_requests_ahead_of_their_answers_are_answered_in_order(plain: Router) -> None:
    with plain.connect() as wire:
        wire.send(
            request_bytes("GET", "/healthz")
            + request_bytes("POST", CHAT, key=plain.key, body=chat(stream=True))
            + request_bytes("GET", "/nowhere")
            + request_bytes("POST", CHAT, key=plain.key, body=chat())
            + request_bytes("HEAD", "/healthz")
        )
        assert wire.read_answer().json == {"status": "ok"}
        assert wire.read_answer().body.endswith(DONE)
        assert wire.read_answer().status == 404
        assert wire.read_answer().json["tresor"]["routed_model"] == "eu/alpha/m"
        assert wire.read_answer(head_only=True).status == 200


def test_too_many_requests_ahead_of_their_answers(plain: Router) -> None:
    with plain.connect() as wire:
        wire.send(request_bytes("POST", CHAT, key=plain.key, body=chat()) * 40)
        answer = wire.read_answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert wire.at_end()


def test_a_request_cut_anywhere_is_read_the_same(plain: Router) -> None:
    request = post(plain, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(chat()), chat())
    with plain.connect() as wire:
        for at in range(1, len(request), 9):
            wire.send(request[:at])
            wire.send(request[at:])
            assert wire.read_answer().status == 200


def test_a_request_byte_by_byte_is_read_the_same(plain: Router) -> None:
    request = request_bytes("POST", CHAT, key=plain.key, body=chat())
    with plain.connect() as wire:
        for byte in request:
            wire.send(bytes([byte]))
        assert wire.read_answer().status == 200


def test_empty_lines_before_a_request_are_passed_over(plain: Router) -> None:
    with plain.connect() as wire:
        wire.send(b"\r\n\r\n" + request_bytes("GET", "/healthz"))
        assert wire.read_answer().status == 200


def test_trailers_are_no_headers(plain: Router) -> None:
    body = b"%x\r\n%b\r\n0\r\n" % (len(chat()), chat())
    chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    with plain.connect() as wire:
        wire.send(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{chunked}\r\n".encode() + body)
        wire.send(f"Authorization: Bearer {plain.key}\r\n\r\n".encode())
        assert wire.read_answer().status == 401
    with plain.connect() as wire:
        wire.send(
            post(plain, "Transfer-Encoding: chunked") + body + b"X-Tresor-Receipt: false\r\nX-Tresor-Nonce: n\r\n\r\n"
        )
        assert plain.verify(wire.read_answer().receipt_id).claims.nonce is None


def test_an_expectation_is_met_once_the_body_is_wanted(plain: Router) -> None:
    with plain.connect() as wire:
        wire.send(post(plain, "Expect: 100-continue", f"Content-Length: {len(chat())}"))
        interim = wire.read_head()
        assert (interim.status, interim.headers) == (100, {})
        wire.send(chat())
        assert wire.read_answer().status == 200
        wire.send(post(plain, "Expect: 100-continue", f"Content-Length: {len(chat())}", body=chat()))
        assert wire.read_answer().status in (100, 200)


def test_http_1_0_is_answered_without_chunks_and_without_interim_answers(plain: Router) -> None:
    for stream in (False, True):
        body = chat(stream=stream)
        with plain.connect() as wire:
            head = post(plain, "Expect: 100-continue", f"Content-Length: {len(body)}").replace(b"HTTP/1.1", b"HTTP/1.0")
            wire.send(head)
            wire.send(body)
            answer = wire.read_answer()
            assert answer.status == 200
            assert "transfer-encoding" not in answer.headers
            assert answer.headers["connection"] == "close"
            assert plain.verify(answer.receipt_id, response=answer.body).claims.outcome == "complete"
            assert wire.at_end()


def test_http_1_0_may_keep_its_connection(plain: Router) -> None:
    with plain.connect() as wire:
        for _ in range(2):
            wire.send(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert wire.read_answer().headers["connection"] == "keep-alive"


@pytest.mark.parametrize("target", ["http://router.test/healthz", "https://x:1/healthz?y", "/healthz?a=b&a=c&%ff=%00&"])
def test_targets_in_other_forms(plain: Router, target: str) -> None:
    assert plain.ask("GET", target).json == {"status": "ok"}


@pytest.mark.parametrize("request_line", ["CONNECT x:443", "OPTIONS *", "TRACE /", "GET //x/healthz", "GET /./healthz"])
def test_targets_that_lead_nowhere(plain: Router, request_line: str) -> None:
    with plain.connect() as wire:
        wire.send(f"{request_line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert wire.read_answer().status == 404
        assert wire.at_end()


def test_an_upgrade_that_is_not_taken_is_an_ordinary_request(plain: Router) -> None:
    answer = plain.ask("GET", "/healthz", headers={"Upgrade": "websocket", "Connection": "Upgrade"})
    assert answer.json == {"status": "ok"}
