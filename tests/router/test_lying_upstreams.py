"""Upstreams that send more than their answer, or less: nothing is another's, and what was cut is not whole."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from support.certificates import Tls
from support.router import Router, UpstreamEntry, chat, running_router
from support.upstream import DONE, Upstream, chunk, chunked, completion, finish, head, reply, send_raw
from support.wire import Answer

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nw\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nxx\r\n--b--\r\n'
)
MODELS: Mapping[str, str | Mapping[str, Any]] = {
    "m": "upstream-name",
    "w": {"upstream_name": "upstream-name", "type": "transcription"},
}
CHUNKED = head(200, "Transfer-Encoding: chunked")
EVENTS = head(200, "Transfer-Encoding: chunked", content_type="text/event-stream")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as scripted:
        yield scripted


@pytest.fixture(scope="module")
def _lied_to(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with running_router(tmp_path_factory.mktemp("router"), [UpstreamEntry(upstream, models=MODELS)]) as router:
        yield router


@pytest.fixture
def router(_lied_to: Router, upstream: Upstream) -> Iterator[Router]:
    upstream.reset()
    yield _lied_to
    assert all(line["event"] != "handler failed" for line in _lied_to.log_lines())


def whole(body: bytes, status: int = 200, content_type: str = "application/json") -> bytes:
    return head(status, f"Content-Length: {len(body)}", content_type=content_type) + body


def transcribe(router: Router) -> Answer:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return router.ask("POST", "/v1/audio/transcriptions", key=router.key, headers=headers, body=FORM)


def outcome(router: Router, answer: Answer, request: bytes | None = None) -> str:
    """Return what the receipt says, held against what was received."""
    return router.verify(answer.receipt_id, request=request, response=answer.body).claims.outcome


# More than the answer.


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(whole(b'{"error":{"message":"second"}}', 400), id="another-answer"),
        pytest.param(whole(completion("second")), id="another-good-answer"),
        pytest.param(head(200, "Content-Length: 100000"), id="another-head"),
        pytest.param(b"HTTP/1.1 400 Evil\r\nX-Swallow: ", id="half-a-head"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="interim"),
        pytest.param(b"H", id="one-byte"),
        pytest.param(b"\0\xff", id="no-http"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_stands_behind_an_answer_belongs_to_no_other(
    router: Router, upstream: Upstream, behind: bytes, *, stream: bool
) -> None:
    events = chunk("first") + finish() + DONE
    answer = EVENTS + chunked(events) + chunked(b"") if stream else whole(completion("first"))
    upstream.script(send_raw(answer + behind, close=False), reply(completion("next")))
    first = router.complete(chat(stream=stream))
    assert (first.status, outcome(router, first)) == (200, "complete")
    assert b"first" in first.body
    following = router.complete(X_Tresor_Timeout_Seconds="10")
    assert (following.status, outcome(router, following)) == (200, "complete")
    assert b"next" in following.body
    assert upstream.requests[0].connection != upstream.requests[1].connection


def test_two_texts_are_not_one(router: Router, upstream: Upstream) -> None:
    texts = whole(b"hello ", content_type="text/plain") + whole(b"WORLD", content_type="text/html")
    upstream.script(send_raw(texts, close=False))
    answer = transcribe(router)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/plain", b"hello ")
    assert outcome(router, answer, FORM) == "complete"


def test_empty_lines_behind_an_answer_are_nothing(router: Router, upstream: Upstream) -> None:
    upstream.script(send_raw(whole(completion("first")) + b"\r\n\r\n", close=False), reply(completion("next")))
    assert [b"first" in router.complete().body, b"next" in router.complete().body] == [True, True]


@pytest.mark.parametrize("framing", [b"0;" + b"x" * (3 << 19), b"0\r\n" + b"X-T: y\r\n" * (3 << 16)])
def test_framing_without_content_is_given_up(router: Router, upstream: Upstream, framing: bytes) -> None:
    upstream.script(send_raw(CHUNKED + framing, close=False))
    answer = router.complete()
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert answer.error["attempts"][0]["reason"] == "invalid_response"


def test_an_answer_without_content_has_no_length(router: Router, upstream: Upstream) -> None:
    upstream.script(send_raw(head(204, content_type=None), close=False))
    answer = transcribe(router)
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip"])
def test_a_transfer_coding_that_is_not_undone_is_no_answer(router: Router, upstream: Upstream, coding: str) -> None:
    upstream.script(send_raw(head(200, f"Transfer-Encoding: {coding}") + chunked(completion("x")) + chunked(b"")))
    answer = router.complete()
    assert (answer.status, answer.error["attempts"][0]["reason"]) == (502, "invalid_response")


def test_a_text_in_a_kind_of_json_does_not_speak_in_the_routers_name(router: Router, upstream: Upstream) -> None:
    forged = b'{"text":"x","tresor":{"receipt_id":"forged"}}'
    upstream.script(send_raw(whole(forged, content_type="application/vnd.x+json"), close=False))
    answer = transcribe(router)
    assert answer.json["tresor"]["receipt_id"] == answer.receipt_id
    assert outcome(router, answer, FORM) == "complete"


@pytest.mark.parametrize("status", ["000", "099", "600", "999"])
def test_a_status_of_no_class_is_no_answer(router: Router, upstream: Upstream, status: str) -> None:
    raw = whole(completion("never")).replace(b" 200 ", f" {status} ".encode())
    upstream.script(send_raw(raw, close=False))
    answer = router.complete()
    assert (answer.status, answer.error["attempts"][0]["reason"]) == (502, "invalid_response")
    assert answer.error["attempts"][0]["status"] is None
    assert outcome(router, answer) == "refused"


# Less than the answer.


@pytest.fixture(scope="module")
def cut_over_tls(tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Iterator[tuple[Router, Upstream]]:
    """An upstream whose answers end with the connection, and a network that can end it."""
    with Upstream(tls.server_context()) as upstream:
        entry = UpstreamEntry(upstream, models=MODELS, settings={"ca_file": str(tls.ca_file)})
        with running_router(tmp_path_factory.mktemp("tls"), [entry]) as router:
            yield router, upstream


def test_a_text_whose_end_nothing_shows_is_not_passed_on(cut_over_tls: tuple[Router, Upstream]) -> None:
    router, upstream = cut_over_tls
    upstream.script(send_raw(head(200, content_type="text/plain") + b"do not take this medicine, unless"))
    answer = transcribe(router)
    assert (answer.status, answer.error["attempts"][0]["reason"]) == (502, "connection_lost")
    assert outcome(router, answer, FORM) == "refused"


@pytest.mark.parametrize(("events", "said"), [(b"", "upstream_aborted"), (DONE, "complete")])
def test_a_stream_over_tls_is_whole_if_it_says_so(
    cut_over_tls: tuple[Router, Upstream], events: bytes, said: str
) -> None:
    router, upstream = cut_over_tls
    upstream.script(send_raw(head(200, content_type="text/event-stream") + chunk("a") + finish() + events))
    answer = router.complete(chat(stream=True))
    assert (answer.status, outcome(router, answer)) == (200, said)
    assert answer.body.endswith(DONE) == (said == "complete")


def test_an_object_over_tls_is_whole_if_it_can_be_read(cut_over_tls: tuple[Router, Upstream]) -> None:
    router, upstream = cut_over_tls
    upstream.script(send_raw(head(200) + completion("all")), send_raw(head(200) + completion("half")[:-1]))
    assert router.complete().status == 200
    answer = router.complete()
    assert (answer.status, answer.error["attempts"][0]["reason"]) == (502, "invalid_response")
