"""What a caller or an upstream says is nowhere afterwards: no file, no log line, no metric, no error.  Nor are keys."""

import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import StartRouter
from support.router import Router, UpstreamEntry, chat, tresor, wait_until
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
    sse,
    stream,
)
from support.wire import Answer, request_bytes

CANARY = f"canary-{secrets.token_hex(12)}"
UPSTREAM_KEY = f"sk-{secrets.token_hex(16)}"
EVENTS = head(200, "Transfer-Encoding: chunked", content_type="text/event-stream")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def fetch_metrics(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def answers_without_content() -> Iterator[Script]:
    """Yield what an upstream may do that ends in an error answer; each names the canary where it can."""
    yield reply_error(500, CANARY, param=CANARY)
    yield reply_error(429, CANARY)
    yield reply(CANARY.encode())
    yield reply(sse(CANARY.encode()))
    yield send_raw(head(200, f"X-Echo: {CANARY}", "Content-Length: 99") + CANARY.encode())
    yield send_raw(CANARY.encode() + b"\r\n\r\n")
    yield send_raw(b"HTTP/1.1 200 " + CANARY.encode() + b"\r\n" + CANARY.encode())
    yield reply(completion(CANARY), f"Content-Encoding: {CANARY}")
    yield reply(completion(CANARY), status=302)
    yield hang_up()


def broken_streams() -> Iterator[Script]:
    yield stream(chunk(CANARY))
    yield stream(chunk(CANARY), sse({"error": {"message": CANARY}}))
    yield stream(sse({"error": {"message": CANARY}}))
    yield stream(sse(CANARY.encode()))
    yield stream(chunk("x"), sse(CANARY.encode()), f": {CANARY}\n\n".encode(), b"data: " + CANARY.encode())
    yield send_raw(EVENTS, chunked(chunk(CANARY)), CANARY.encode() + b"\r\n")
    yield send_raw(EVENTS, chunked(chunk(CANARY)[:-4]))


def bad_requests() -> Iterator[bytes]:
    yield CANARY.encode()
    yield chat("m", CANARY)[:-1]
    yield chat("m", CANARY, stream=CANARY)
    yield chat(CANARY, CANARY)
    yield chat(f"eu/{CANARY}/m")
    yield chat("m", CANARY, region=CANARY)
    yield chat("m", CANARY, failover=[CANARY])
    yield b'{"messages":[{"role":"user","content":"%b"}],"model":7}' % CANARY.encode()
    yield b'"' + CANARY.encode()


def exercise(router: Router, upstream: Upstream) -> Iterator[tuple[Answer, bool]]:
    """Go through everything; yield each answer and whether the caller's own canary may be in it."""
    for wants_stream in (False, True):
        upstream.script(stream(chunk(CANARY), finish(), DONE) if wants_stream else reply(completion(CANARY)))
        yield router.complete(chat("m", CANARY, stream=wants_stream, user=CANARY)), True
    upstream.script(reply(completion(CANARY)))
    yield router.complete(chat("m", CANARY), X_Tresor_Receipt="false"), True
    upstream.script(reply_error(400, CANARY))
    yield router.complete(chat("m", CANARY)), True  # an upstream's word about the request is for the caller
    for script in answers_without_content():
        upstream.script(script)
        yield router.complete(chat("m", CANARY)), False
    for script in broken_streams():
        upstream.script(script)
        yield router.complete(chat("m", CANARY, stream=True)), True
    upstream.reset()
    for body in bad_requests():
        yield router.complete(body), False
    for target in (f"/{CANARY}", f"/v1/models/{CANARY}", f"/v1/receipts/{CANARY}", f"/v1/models?detail={CANARY}"):
        yield router.ask("GET", target, key=router.key), False
    yield router.ask("POST", "/v1/chat/completions", key=CANARY, body=chat("m", CANARY)), False
    for name in (
        "Content-Type",
        "Content-Encoding",
        "X-Tresor-Receipt",
        "X-Tresor-Timeout-Seconds",
        "X-Tresor-Require-Attestation",
    ):
        headers = {name: CANARY}
        yield router.ask("POST", "/v1/chat/completions", key=router.key, headers=headers, body=chat("m", CANARY)), False


def test_no_word_and_no_key_stays_anywhere(start_router: StartRouter, alpha: Upstream) -> None:
    port = free_port()
    router = start_router(
        [UpstreamEntry(alpha, settings={"api_key_env": "ALPHA_KEY"})],
        settings={
            "server": {"metrics_listen": f"127.0.0.1:{port}", "workers": 2},
            "log": {"level": "debug", "access": True},
        },
        environment={"ALPHA_KEY": UPSTREAM_KEY},
    )
    for answer, may_have_it in exercise(router, alpha):
        text = answer.raw_head.decode("latin-1") + answer.body.decode("utf-8", "replace")
        assert may_have_it or CANARY not in answer.body.decode("utf-8", "replace")
        assert CANARY not in answer.raw_head.decode("latin-1")
        for secret in (UPSTREAM_KEY, router.key, str(alpha.port), alpha.base_url):
            assert secret not in text
    leave_in_the_middle(router, alpha)
    wait_until(lambda: "tresor_exchanges" in fetch_metrics(port), "the workers' numbers are there")
    metrics = fetch_metrics(port)
    checked = tresor("config", "check", "--config", router.config, environment={"ALPHA_KEY": UPSTREAM_KEY})
    said = [metrics, checked.out, checked.err, str(router.log_lines())]
    check_folder(router.folder, router.key)
    assert router.stop() == 0
    check_folder(router.folder, router.key)
    for text in said:
        assert "tresor" in text or text == ""
        assert CANARY not in text
        assert UPSTREAM_KEY not in text
        assert router.key not in text


def leave_in_the_middle(router: Router, upstream: Upstream) -> None:
    upstream.reset()
    step = threading.Event()
    upstream.script(stream(chunk(CANARY), step, end=False))
    with router.connect() as wire:
        body = chat("m", CANARY, stream=True)
        wire.send(request_bytes("POST", "/v1/chat/completions", key=router.key, body=body))
        wire.read_head()
        wire.read_until(CANARY.encode())
    step.set()
    assert upstream.last.cancelled.wait(10)


def check_folder(folder: Path, api_key: str) -> None:
    """Look into every file the router has, the store and its log of changes included."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"tresor.db", "stderr.log", "slot-0.pem"} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes()
        for secret in (CANARY, UPSTREAM_KEY, api_key):
            assert secret.encode() not in content, file
            assert secret.encode("utf-16-le") not in content, file


def test_what_looks_for_the_canary_finds_it(tmp_path: Path) -> None:
    for name in ("tresor.db", "stderr.log", "slot-0.pem"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    check_folder(tmp_path, "tr-")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "spool").write_bytes(b"x" * 1000 + CANARY.encode())
    with pytest.raises(AssertionError):
        check_folder(tmp_path, "tr-")
