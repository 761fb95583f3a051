"""The table of errors, row by row: status, type, code, and one envelope for all of them."""

import json
from typing import Any

import pytest

from support.router import Router, chat
from support.upstream import Upstream
from support.wire import Answer

CHAT = "/v1/chat/completions"
KEYED = [
    ("POST", CHAT),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/audio/transcriptions"),
    ("GET", "/v1/receipts"),
    ("GET", "/v1/receipts/7c9e6679-7425-40de-944b-e07fc1f90ae7"),
    ("GET", "/v1/receipts/"),
]
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    412: "api_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
}
PROMPT = "a-prompt-that-no-error-repeats"


def check(answer: Answer, status: int, code: str, param: str | None = None) -> None:
    """Check an error answer whole: status, envelope, headers."""
    document = answer.json
    assert document == {
        "error": {"message": document["error"]["message"], "type": TYPES[status], "code": code, "param": param},
        "request_id": answer.headers["x-request-id"],
    }
    assert answer.status == status
    assert document["error"]["message"]
    assert answer.headers["content-type"] == "application/json"
    assert PROMPT not in answer.body.decode()
    assert "Traceback" not in answer.body.decode()


@pytest.mark.parametrize(("method", "target"), KEYED)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer tr-",
        "Bearer sk-" + "0" * 96,
        "Bearer tr-" + "0" * 95,
        "Bearer tr-" + "0" * 97,
        "Bearer tr-" + "A" * 96,
        "Bearer tr-" + "0" * 96,
        "Basic dHItOng=",
        "tr-" + "0" * 96,
        "Bearer tr-" + "0" * 96 + ", Bearer tr-" + "1" * 96,
    ],
)
def test_without_a_live_key_there_is_401(router: Router, method: str, target: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = router.ask(method, target, headers=headers)
    check(answer, 401, "unauthorized")
    assert "x-ratelimit-limit" not in answer.headers
    assert "x-tresor-receipt-id" not in answer.headers


@pytest.mark.parametrize(
    ("method", "headers", "body"),
    [
        pytest.param("POST", {}, b"not json", id="body"),
        pytest.param("DELETE", {}, b"", id="method"),
        pytest.param("POST", {"Content-Type": "text/html"}, b"<p>", id="media-type"),
        pytest.param("POST", {"Content-Length": str(100 << 20)}, b"", id="length"),
        pytest.param("POST", {"X-Tresor-Nonce": "a b"}, b"{}", id="option"),
        pytest.param("POST", {"Content-Encoding": "gzip"}, b"{}", id="coding"),
        pytest.param("POST", {"Expect": "100-continue", "Content-Length": "9"}, b"", id="expectation"),
    ],
)
def test_the_key_is_looked_at_before_anything_else(
    router: Router, method: str, headers: dict[str, str], body: bytes
) -> None:
    check(router.ask(method, CHAT, headers=headers, body=body), 401, "unauthorized")


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "Bearer    "])
def test_a_live_key_is_taken_in_every_spelling_of_its_scheme(router: Router, scheme: str) -> None:
    answer = router.ask("GET", "/v1/receipts", headers={"Authorization": scheme + router.key})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("HEAD", CHAT, "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("OPTIONS", "/v1/audio/transcriptions", "POST"),
        ("POST", "/v1/receipts", "GET"),
        ("DELETE", "/v1/receipts/7c9e6679-7425-40de-944b-e07fc1f90ae7", "GET"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PATCH", "/v1/models/solo", "GET, HEAD"),
        ("POST", "/.well-known/jwks.json", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/readyz", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_allowed(router: Router, method: str, target: str, allow: str) -> None:
    answer = router.ask(method, target, key=router.key)
    assert answer.headers["allow"] == allow
    if method == "HEAD":
        assert answer.status == 405
    else:
        check(answer, 405, "method_not_allowed")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/completions",
        CHAT + "/",
        "//v1/models",
        "/V1/models",
        "/metrics",
        "/v1/keys",
        "/%00",
        "/%C3%A9",
    ],
)
def test_a_path_that_is_none(router: Router, target: str) -> None:
    check(router.ask("GET", target), 404, "not_found")
    check(router.ask("POST", target, key=router.key, body=chat(prompt=PROMPT)), 404, "not_found")


@pytest.mark.parametrize(
    "model", ["gpt-17", "", "a/b", "eu/alpha/solo/x", "eu//solo", "us/alpha/solo", "embed", "SOLO", "/"]
)
def test_a_model_that_is_none(router: Router, alpha: Upstream, model: str) -> None:
    answer = router.complete(chat(model, PROMPT))
    if model:
        check(answer, 404, "model_not_found", "model")
    else:
        check(answer, 400, "invalid_field", "model")
    assert alpha.requests == []


@pytest.mark.parametrize(
    ("content_type", "target"),
    [
        ("text/plain", CHAT),
        ("application/x-www-form-urlencoded", CHAT),
        ("multipart/form-data; boundary=x", CHAT),
        ("application/jsonx", CHAT),
        ("", CHAT),
        ("application/json", "/v1/audio/transcriptions"),
        ("text/plain", "/v1/embeddings"),
    ],
)
def test_a_media_type_that_is_not_taken(router: Router, content_type: str, target: str) -> None:
    answer = router.ask(
        "POST", target, key=router.key, headers={"Content-Type": content_type}, body=chat("solo", PROMPT)
    )
    assert answer.status == 415
    check(answer, 415, "unsupported_media_type", answer.error["param"])


def test_a_content_coding_is_not_taken(router: Router) -> None:
    check(router.complete(chat("solo"), Content_Encoding="gzip"), 415, "unsupported_media_type")
    assert router.complete(chat("solo"), Content_Encoding="identity").status == 200


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json ;x=y"]
)
def test_a_media_type_that_is_taken(router: Router, content_type: str) -> None:
    assert router.complete(chat("solo"), Content_Type=content_type).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b" ",
        b"null",
        b"7",
        b'"x"',
        b"[]",
        b"[{}]",
        b"{",
        b"}",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b'{"a":1}}',
        b'{"a":1} x',
        b'{"a":1}{"a":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":[-Infinity]}',
        b'{"a":01}',
        b'{"a":+1}',
        b'{"a":.5}',
        b'{"a":1.}',
        b'{"a":0x1}',
        b'{"a":"\n"}',
        b'{"a":"\x00"}',
        b'{"a":"\\x"}',
        b'{"a":"\\ud8"}',
        b'{"a":tru}',
        b'{"a":1 /* no */}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        b'{"a":"\xc0\xaf"}',
        b'{"a":"\xed\xa0\x80"}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
        b'{"a":' * 1_000_000,
        b"[" * 3_000_000,
    ],
    ids=lambda body: repr(body[:16]) + str(len(body)),
)
def test_a_body_that_is_no_strict_json(router: Router, alpha: Upstream, body: bytes) -> None:
    check(router.complete(body), 400, "invalid_json")
    assert alpha.requests == []


def test_an_empty_body_is_no_json(router: Router) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": "0"}
    check(router.ask("POST", CHAT, key=router.key, headers=headers), 400, "invalid_json")
    check(router.ask("POST", CHAT, key=router.key, headers={"Content-Type": "application/json"}), 400, "invalid_json")


def test_nesting_within_reason_is_taken(router: Router) -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [{"a": deep}]
    assert router.complete(chat("solo", deep=deep)).status == 200


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_member_that_is_missing(router: Router, name: str) -> None:
    for value in ({}, {name: None}):
        body = {"model": "solo", "messages": [{"role": "user", "content": PROMPT}]}
        del body[name]
        check(router.complete(json.dumps({**body, **value}).encode()), 400, "missing_field", name)


WRONG_FORMS: dict[str, list[object]] = {
    "model": [1, True, [], {}, ""],
    "messages": [[], {}, "hi", 1, True],
    "stream": [1, 0, "true", "", [], {}],
    "temperature": [-0.01, 2.01, -1, 3, "1", True, [], 1e400],
    "max_tokens": [0, -1, 1.0, "1", True, []],
    "failover": ["m", {}, 1, ["m"] * 6],
    "region": [1, "", [], True],
    "provider": [1, "", {}, False],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG_FORMS.items() for value in values])
def test_a_member_of_the_wrong_form(router: Router, alpha: Upstream, name: str, value: object) -> None:
    body = {"model": "solo", "messages": [{"role": "user", "content": PROMPT}], name: value}
    raw = json.dumps(body).replace("Infinity", "1e400").encode()
    check(router.complete(raw), 400, "invalid_field", name)
    assert alpha.requests == []


@pytest.mark.parametrize("value", [None, 0, 1.0, 2, 2.0, 1e-9])
def test_a_temperature_within_its_range(router: Router, value: float | None) -> None:
    assert router.complete(chat("solo", temperature=value)).status == 200


@pytest.mark.parametrize(("position", "value"), [(0, 1), (1, ""), (1, None), (0, ["m"])])
def test_a_failover_route_of_the_wrong_form(router: Router, position: int, value: object) -> None:
    routes: list[object] = ["m", "m"]
    routes[position] = value
    check(router.complete(chat("solo", failover=routes)), 400, "invalid_field", f"failover[{position}]")


def test_stream_options_of_the_wrong_form(router: Router) -> None:
    check(router.complete(chat("solo", stream=True, stream_options=[])), 400, "invalid_field", "stream_options")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *[
            ("X-Tresor-Timeout-Seconds", value)
            for value in ("0", "-1", "0.0", "", "x", "nan", "inf", "1e3", "1,5", "٣")
        ],
        *[("X-Tresor-Receipt", value) for value in ("", "no", "0", "false, false")],
        *[("X-Tresor-Require-Attestation", value) for value in ("", "tee", "cpu_tee,", "cpu_tee;gpu_tee")],
    ],
)
def test_an_option_that_is_not_understood_is_refused(router: Router, alpha: Upstream, header: str, value: str) -> None:
    headers = {header: value.encode().decode("latin-1")}
    answer = router.ask("POST", CHAT, key=router.key, headers=headers, body=chat("solo"))
    check(answer, 400, "invalid_field", header)
    assert alpha.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x"}, "model"),
        ({"model": "embed"}, "input"),
        ({"model": "embed", "input": []}, "input"),
        ({"model": "embed", "input": 7}, "input"),
        ({"model": "solo", "input": "x"}, "model"),
    ],
)
def test_embedding_requests_are_checked(router: Router, body: dict[str, object], param: str) -> None:
    answer = router.ask("POST", "/v1/embeddings", key=router.key, body=json.dumps(body).encode())
    assert answer.status in (400, 404)
    assert answer.error["param"] == param


def form(*parts: tuple[str, str]) -> bytes:
    return b"".join(
        f'--X\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in parts
    )


FILE = ("file", "RIFF")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        pytest.param(form(FILE) + b"--X--", "missing_field", "model", id="no-model"),
        pytest.param(form(("model", "whisper")) + b"--X--", "missing_field", "file", id="no-file"),
        pytest.param(form(FILE, ("model", "")) + b"--X--", "invalid_field", "model", id="empty-model"),
        pytest.param(
            form(FILE, ("model", "whisper"), ("model", "x")) + b"--X--", "invalid_field", "model", id="two-models"
        ),
        pytest.param(
            form(FILE, ("model", "whisper"), ("stream", "true")) + b"--X--", "invalid_field", "stream", id="stream"
        ),
        pytest.param(
            form(FILE, ("model", "whisper"), *[("failover", "m")] * 6) + b"--X--",
            "invalid_field",
            "failover",
            id="failover",
        ),
        pytest.param(form(FILE, ("model", "w" * 5000)) + b"--X--", "invalid_field", "model", id="long-model"),
        pytest.param(form(FILE, ("model", "whisper")), "invalid_field", "body", id="no-end"),
        pytest.param(b"--X--", "missing_field", "file", id="empty-form"),
        pytest.param(b"preamble" + form(FILE) + b"--X--", "invalid_field", "body", id="preamble"),
        pytest.param(b"--X\r\n\r\nx\r\n--X--", "invalid_field", "body", id="nameless"),
        pytest.param(form(*[("a", "b")] * 300) + b"--X--", "invalid_field", "body", id="many-parts"),
    ],
)
def test_transcription_forms_are_checked(router: Router, alpha: Upstream, body: bytes, code: str, param: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    answer = router.ask("POST", "/v1/audio/transcriptions", key=router.key, headers=headers, body=body)
    check(answer, 400, code, param)
    assert alpha.requests == []


def test_every_request_has_an_id_of_its_own(router: Router) -> None:
    with router.connect() as wire:
        answers = [
            wire.ask("GET", "/healthz"),
            wire.ask("GET", "/nowhere"),
            wire.ask("GET", "/v1/receipts"),
            wire.ask("POST", CHAT, key=router.key, body=b"{}"),
            wire.ask("POST", CHAT, key=router.key, body=chat("solo")),
            wire.ask("POST", CHAT, key=router.key, body=chat("solo", stream=True)),
        ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/v1/models", "/v1/models/solo", "/.well-known/jwks.json"])
def test_head_is_get_without_a_body(router: Router, target: str) -> None:
    with router.connect() as wire:
        asked = wire.ask("HEAD", target)
        got = wire.ask("GET", target)
    assert (asked.status, asked.headers["content-length"]) == (200, got.headers["content-length"])
    assert len(got.body) == int(got.headers["content-length"])
