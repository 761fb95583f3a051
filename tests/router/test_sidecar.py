"""`tresor sidecar`: what passes through it untouched, what never looks whole, and what it proves of itself."""

import contextlib
import gzip
import os
import random
import secrets
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import openai
import pytest

from support.ceremony import Ceremony, simulated_ceremony, spki_of
from support.certificates import Tls, make_tls
from support.router import Router, UpstreamEntry, chat, running_router, toml, tresor, wait_until
from support.sidecar import Sidecar, running_sidecar
from support.upstream import (
    DONE,
    Upstream,
    chunk,
    chunked,
    completion,
    finish,
    hang_up,
    head,
    reply,
    send_raw,
    silent,
    stream,
)
from support.wire import Wire, request_bytes

NONCE: Final = "ab" * 32
LARGE: Final = random.Random(7).randbytes(6 << 20)  # noqa: S311 - any bytes do
OWN: Final = {"date", "connection", "transfer-encoding", "content-length", "x-request-id"}


@pytest.fixture(scope="module")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> Ceremony:
    return simulated_ceremony(tmp_path_factory.mktemp("ceremony"), "inference")


@pytest.fixture(scope="module")
def _sidecar(
    tmp_path_factory: pytest.TempPathFactory, ceremony: Ceremony, tls: Tls, _alpha: Upstream
) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("sidecar")
    identity = ceremony.identity(nonces_per_minute=1000)
    with running_sidecar(folder, _alpha, tls, identity, settings={"backend": {"idle_timeout_s": 2.0}}) as it:
        yield it


@pytest.fixture
def sidecar(_sidecar: Sidecar, alpha: Upstream) -> Sidecar:
    """The sidecar of this page, in front of `alpha`, which is fresh."""
    return _sidecar


def lines_of(raw_head: bytes) -> list[tuple[str, str]]:
    """Return the header fields of a request or an answer, in order, names in lower case."""
    lines = raw_head.decode("latin-1").split("\r\n")[1:-2]
    return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def exchange(sidecar: Sidecar, raw: bytes, *, head_only: bool = False) -> tuple[list[tuple[str, str]], int, bytes]:
    """Send a request as it is; return header fields, status and body of the answer."""
    with sidecar.connect() as wire:
        wire.send(raw)
        data = b""
        while b"\r\n\r\n" not in data:
            data += wire.sock.recv(1 << 16)
        raw_head, _, rest = data.partition(b"\r\n\r\n")
        fields = lines_of(raw_head + b"\r\n\r\n")
        status = int(raw_head.split(b" ")[1])
        named = dict(fields)
        if head_only:
            wire.sock.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                rest += wire.sock.recv(1)
            return fields, status, rest
        while len(rest) < int(named["content-length"]):
            rest += wire.sock.recv(1 << 16)
        return fields, status, rest


# Requests.


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_methods_and_bodies_pass(sidecar: Sidecar, alpha: Upstream, method: str) -> None:
    alpha.script(reply(b'{"ok":1}'))
    body = b"" if method in ("GET", "DELETE", "OPTIONS") else b'{"a": 1.0,\n"a":2}'
    assert sidecar.ask(method, "/v1/anything", body=body).body == b'{"ok":1}'
    assert (alpha.last.target, alpha.last.body) == (f"{method} /v1/anything", body)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models?limit=1&after=%20%2F&empty=&flag",
        "/a%2Fb/%E4%BD%A0/%zz?q=%E4%BD%A0",
        "//two//slashes/../and/./dots/",
        "/?",
        "/v1/chat/completions?api-version=2024-10-21",
        "/attestation/",
        "/;p=1?a=b?c=d",
    ],
)
def test_targets_pass_letter_for_letter(sidecar: Sidecar, alpha: Upstream, target: str) -> None:
    alpha.script(reply(b"{}"))
    assert sidecar.ask("GET", target).status == 200
    assert alpha.last.target == f"GET {target}"


def test_end_to_end_fields_pass_and_the_others_end_here(sidecar: Sidecar, alpha: Upstream) -> None:
    alpha.script(reply(b"{}"))
    raw = request_bytes(
        "POST",
        "/v1/x",
        headers={
            "Authorization": "Bearer of-the-backend",
            "X-Latin": "caf\xe9",
            "Accept-Encoding": "br;q=1.0, identity",
            "Content-Type": "application/x-own; charset=utf-8",
            "Content-Length": "2",
            "Connection": "keep-alive, X-Mine",
            "X-Mine": "for the sidecar",
            "Keep-Alive": "timeout=5",
            "TE": "trailers",
            "Trailer": "X-Late",
            "Proxy-Connection": "keep-alive",
        },
        body=b"hi",
    )
    assert exchange(sidecar, raw)[1] == 200
    fields = dict(lines_of(alpha.last.head))
    assert fields == {
        "host": f"127.0.0.1:{alpha.port}",
        "authorization": "Bearer of-the-backend",
        "x-latin": "caf\xe9",
        "accept-encoding": "br;q=1.0, identity",
        "content-type": "application/x-own; charset=utf-8",
        "content-length": "2",
    }


def test_a_chunked_request_arrives_whole(sidecar: Sidecar, alpha: Upstream) -> None:
    alpha.script(reply(b"{}"))
    raw = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert exchange(sidecar, raw + chunked(b"first ") + chunked(b"second") + chunked(b""))[1] == 200
    assert alpha.last.body == b"first second"
    assert "transfer-encoding" not in alpha.last.headers


def test_large_bodies_pass_both_ways(sidecar: Sidecar, alpha: Upstream) -> None:
    alpha.script(reply(LARGE, content_type="application/octet-stream"))
    answer = sidecar.ask("POST", "/v1/audio/transcriptions", body=LARGE)
    assert alpha.last.body == LARGE
    assert answer.body == LARGE


def test_a_caller_who_waits_for_leave_gets_it(sidecar: Sidecar, alpha: Upstream) -> None:
    alpha.script(reply(b"{}"))
    with sidecar.connect() as wire:
        wire.send(b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert wire.read_head().status == 100
        wire.send(b"hi")
        assert wire.read_answer().status == 200
    assert "expect" not in alpha.last.headers


# Answers.


@pytest.mark.parametrize("status", [200, 201, 307, 400, 401, 404, 409, 413, 422, 429, 500, 503, 599])
def test_statuses_and_bodies_pass(sidecar: Sidecar, alpha: Upstream, status: int) -> None:
    body = b'{ "error" : {"message":"as the backend words it"} }\n'
    alpha.script(reply(body, "Location: http://elsewhere/", "Retry-After: 7", status=status))
    answer = sidecar.ask("POST", "/v1/chat/completions", body=chat())
    assert (answer.status, answer.body) == (status, body)
    assert (answer.headers["location"], answer.headers["retry-after"]) == ("http://elsewhere/", "7")


def test_fields_of_answers_pass_and_the_others_end_here(sidecar: Sidecar, alpha: Upstream) -> None:
    fields = (
        "Server: uvicorn",
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
        "X-Request-Id: of-the-backend",
        "X-Latin: caf\xe9",
        'ETag: W/"1"',
        "Connection: X-Mine",
        "X-Mine: for the sidecar",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: close",
        "Upgrade: h2c",
        "Trailer: X-Late",
    )
    alpha.script(reply(b"{}", *fields, content_type="application/json; charset=utf-8"))
    got, _, _ = exchange(sidecar, request_bytes("GET", "/v1/models"))
    assert [field for field in got if field[0] not in OWN - {"x-request-id"}] == [
        ("server", "uvicorn"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-request-id", "of-the-backend"),
        ("x-latin", "caf\xe9"),
        ("etag", 'W/"1"'),
        ("content-type", "application/json; charset=utf-8"),
    ]


def test_there_is_no_way_through(sidecar: Sidecar, alpha: Upstream) -> None:
    with sidecar.connect() as wire:
        wire.send(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.read_answer().status == 400
    assert alpha.requests == []


def test_trailers_are_no_header_fields(sidecar: Sidecar, alpha: Upstream) -> None:
    coded = head(200, "Transfer-Encoding: chunked") + chunked(b"{}") + b"0\r\nX-Late: yes\r\nX-Request-Id: late\r\n\r\n"
    alpha.script(send_raw(coded, close=False))
    got, _, _ = exchange(sidecar, request_bytes("GET", "/v1/models"))
    assert {name for name, _ in got}.isdisjoint({"x-late", "trailer"})
    assert "late" not in dict(got)["x-request-id"]


def test_nothing_is_said_about_a_body_that_its_sender_did_not_say(sidecar: Sidecar, alpha: Upstream) -> None:
    alpha.script(reply(b"whatever", content_type=None))
    answer = sidecar.ask("GET", "/v1/files/1")
    assert answer.body == b"whatever"
    assert "content-type" not in answer.headers


def test_coded_bodies_pass_as_they_are(sidecar: Sidecar, alpha: Upstream) -> None:
    coded = gzip.compress(b'{"a":1}' * 1000)
    alpha.script(reply(coded, "Content-Encoding: gzip"))
    answer = sidecar.ask("GET", "/v1/models")
    assert (answer.headers["content-encoding"], answer.body) == ("gzip", coded)


@pytest.mark.parametrize("length", ["1234", "0", None])
def test_an_answer_to_head_has_the_fields_and_no_body(sidecar: Sidecar, alpha: Upstream, length: str | None) -> None:
    alpha.script(send_raw(head(200, *([] if length is None else [f"Content-Length: {length}"])), close=False))
    fields, status, rest = exchange(sidecar, request_bytes("HEAD", "/v1/models"), head_only=True)
    assert (status, dict(fields).get("content-length"), rest) == (200, length, b"")
    assert dict(fields)["content-type"] == "application/json"
    alpha.script(reply(b"{}"))  # and what comes next is not taken for its body
    assert sidecar.ask("GET", "/v1/models").body == b"{}"


@pytest.mark.parametrize(("status", "length"), [(204, None), (304, "17"), (304, None)])
def test_answers_without_a_body(sidecar: Sidecar, alpha: Upstream, status: int, length: str | None) -> None:
    alpha.script(
        send_raw(head(status, 'ETag: "1"', *([] if length is None else [f"Content-Length: {length}"])), close=False)
    )
    fields, got, rest = exchange(sidecar, request_bytes("GET", "/v1/x"), head_only=True)
    assert (got, rest, dict(fields)["etag"]) == (status, b"", '"1"')
    assert dict(fields).get("content-length") == length
    assert "transfer-encoding" not in dict(fields)


def test_a_body_that_ends_with_the_connection(sidecar: Sidecar, alpha: Upstream) -> None:
    alpha.script(send_raw(head(200), b'{"a":', b"1}"))
    assert sidecar.ask("GET", "/v1/models").body == b'{"a":1}'


def test_events_arrive_one_by_one_and_unchanged(sidecar: Sidecar, alpha: Upstream) -> None:
    step, again = threading.Event(), threading.Event()
    parts = (b": comment\r\n\r\n", chunk("fo"), chunk("ur"), b"event: x\rdata: y\r\r", finish(), DONE)
    alpha.script(stream(parts[0], parts[1], step, parts[2], parts[3], again, *parts[4:]))
    with sidecar.connect() as wire:
        wire.send(request_bytes("POST", "/v1/chat/completions", body=chat(stream=True)))
        answer = wire.read_head()
        assert answer.headers["content-type"] == "text/event-stream"
        got = wire.read_until(b'"fo"')
        step.set()
        got += wire.read_until(b"data: y\r\r")
        again.set()
        got += wire.read_body()
    assert got == b"".join(parts)


def test_one_connection_carries_many_exchanges(sidecar: Sidecar, alpha: Upstream) -> None:
    before = alpha.connections
    with sidecar.connect() as wire:
        for number in range(20):
            alpha.script(reply(b'{"n":%d}' % number))
            assert wire.ask("POST", "/v1/x", body=b"{}").json == {"n": number}
    assert alpha.connections <= before + 1


# What never looks whole.


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "sent",
    [
        head(200, "Content-Length: 1000") + b"x" * 10,
        head(200, "Content-Length: 3000000") + b"x" * 2_000_000,
        head(200, "Transfer-Encoding: chunked") + chunked(b"x" * 10),
        head(200, "Transfer-Encoding: chunked", content_type="text/event-stream") + chunked(chunk("fo")),
        head(200, "Transfer-Encoding: chunked") + b"5\r\nab",
    ],
    ids=["length", "long", "chunked", "events", "inside-a-chunk"],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_cut_answer_is_cut(sidecar: Sidecar, alpha: Upstream, sent: bytes, version: str, reset: bool) -> None:
    def cut(call: Any) -> None:
        call.send(sent)
        time.sleep(0.1)
        hang_up(reset=reset)(call)

    alpha.script(cut)
    raw = f"GET /v1/x HTTP/{version}\r\nHost: h\r\n\r\n".encode()
    with sidecar.connect() as wire, pytest.raises((ConnectionError, ssl.SSLError, AssertionError)) as caught:  # noqa: PT012
        wire.send(raw)
        answer = wire.read_head()
        if answer.status == 502:  # nothing of it had been passed on
            raise ConnectionError
        if version == "1.0":  # whose bodies end with the connection: TLS has to say whether that was the end
            wire.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # typeshed does not know it
            while wire.sock.recv(1 << 16):
                pass
            raise RuntimeError("the end of TLS was announced")
        wire.read_body()
    assert not isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (hang_up(), 502, "upstream_error"),
        (hang_up(reset=True), 502, "upstream_error"),
        (send_raw(b"SSH-2.0-OpenSSH\r\n\r\n"), 502, "upstream_error"),
        (silent, 504, "upstream_timeout"),
    ],
    ids=["closed", "reset", "no-http", "silent"],
)
def test_a_backend_that_gives_no_answer(sidecar: Sidecar, alpha: Upstream, script: Any, status: int, code: str) -> None:
    alpha.script(script)
    answer = sidecar.ask("POST", "/v1/chat/completions", body=chat())
    assert (answer.status, answer.error["code"]) == (status, code)
    assert str(alpha.port) not in answer.body.decode()


def test_who_leaves_takes_the_backends_work_along(sidecar: Sidecar, alpha: Upstream) -> None:
    alpha.script(stream(chunk("fo"), end=False))
    with sidecar.connect() as wire:
        wire.send(request_bytes("POST", "/v1/chat/completions", body=chat(stream=True)))
        wire.read_head()
        wire.read_until(b'"fo"')
        wire.abort()
    assert alpha.wait_for(1)[0].cancelled.wait(10)


def test_a_backend_that_is_down_and_comes_back(tmp_path: Path, ceremony: Ceremony, tls: Tls) -> None:
    backend = Upstream()
    port = backend.port
    with running_sidecar(tmp_path / "sidecar", backend, tls, ceremony.identity()) as sidecar:
        backend.script(reply(b"{}"))
        assert sidecar.ask("GET", "/v1/models").status == 200
        backend.stop()
        answer = sidecar.ask("POST", "/v1/chat/completions", body=chat())
        assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
        wait_until(lambda: sidecar.readiness()[0] == 503, "it is not ready")
        assert sidecar.readiness()[1]["checks"] == {"attestation": True, "backend": False}
        assert sidecar.ask("GET", "/healthz").status == 200
        with socket.create_server(("127.0.0.1", port)) as listener:
            threading.Thread(target=serve_once, args=(listener,), daemon=True).start()
            assert sidecar.ask("POST", "/v1/chat/completions", body=chat()).body == b"back"


def serve_once(listener: socket.socket) -> None:
    """Answer whatever comes on every connection with one and the same."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        with sock:
            if sock.recv(1 << 16):
                sock.sendall(head(200, "Content-Length: 4", "Connection: close") + b"back")


# What it proves of itself.


def test_it_is_what_its_release_says(sidecar: Sidecar, ceremony: Ceremony, tls: Tls, alpha: Upstream) -> None:
    line = [f"--url={sidecar.origin}", f"--release-root={ceremony.root_file}", f"--ca-file={tls.ca_file}", "--json"]
    bundle = f"--trust-bundle={ceremony.bundle_file}"
    done = tresor("attest", *line, bundle, "--workload=inference", "--allow-simulated", module="verify")
    report = msgspec.json.decode(done.out)
    assert (done.exit_code, report["result"]) == (0, "pass")
    as_router = tresor("attest", *line, bundle, "--allow-simulated", module="verify")
    assert (as_router.exit_code, "bundle_workload_mismatch" in as_router.out) == (1, True)
    assert report["tls_spki_sha256"] == spki_of(tls.certificate_file).hex()
    assert alpha.requests == []


def test_its_own_endpoints_are_not_the_backends(sidecar: Sidecar, ceremony: Ceremony, alpha: Upstream) -> None:
    envelope = sidecar.ask("GET", f"/attestation?nonce={NONCE}").json
    assert (envelope["workload"], envelope["tee"], envelope["nonce"]) == ("inference", "simulated", NONCE)
    assert "nonce" not in sidecar.ask("GET", "/attestation").json
    assert sidecar.ask("GET", "/%61ttestation").json["workload"] == "inference"
    bundle = sidecar.ask("GET", "/.well-known/tresor-trust-bundle")
    assert bundle.body == ceremony.bundle_file.read_bytes()
    assert sidecar.readiness() == (
        200,
        {"status": "ready", "checks": {"attestation": True, "backend": True}, "faults": {}},
    )
    refused = sidecar.ask("POST", "/attestation", body=b"{}")
    assert (refused.status, refused.error["code"]) == (405, "method_not_allowed")
    bad = sidecar.ask("GET", "/attestation?nonce=zz")
    assert (bad.status, bad.error["code"]) == (400, "invalid_field")
    assert alpha.requests == []


def test_without_evidence_nothing_is_forwarded(tmp_path: Path, ceremony: Ceremony, tls: Tls, alpha: Upstream) -> None:
    nothing = {"tee": "sev-snp", "tsm_path": str(tmp_path / "no-tsm"), "sev_guest_path": str(tmp_path / "no-device")}
    with running_sidecar(tmp_path / "sidecar", alpha, tls, ceremony.identity(**nothing), ready=False) as sidecar:
        for method, target in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("HEAD", "/")):
            with sidecar.connect() as wire:
                assert wire.ask(method, target, body=chat() if method == "POST" else b"").status == 503
        answer = sidecar.ask("POST", "/v1/chat/completions", body=chat())
        assert answer.error["code"] == "attestation_failed"
        assert int(answer.headers["retry-after"]) > 0
        assert sidecar.ask("GET", "/attestation").status == 503
        status, document = sidecar.readiness()
        assert (status, document["checks"]) == (503, {"attestation": False, "backend": True})
        assert document["faults"]["attestation"]
    assert alpha.requests == []


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("backend.base_url=http://10.0.0.1:8000", "is not on this machine"),
        ("backend.base_url=http://127.0.0.1:8000/v1", "is not an origin"),
        ("identity.tee=none", "a sidecar has nothing to do but to attest"),
        ("backend.unknown=1", "is not a setting"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, ceremony: Ceremony, tls: Tls, setting: str, fault: str) -> None:
    tree: dict[str, Any] = {
        "server": {"tls_certificate_file": str(tls.certificate_file), "tls_key_file": str(tls.key_file)},
        "identity": ceremony.identity(),
        "backend": {"base_url": "http://127.0.0.1:8000"},
    }
    name, _, value = setting.partition("=")
    table, member = name.split(".")
    tree[table][member] = value
    (tmp_path / "sidecar.toml").write_text("\n".join(toml((), tree)))
    done = tresor("sidecar", "--config", tmp_path / "sidecar.toml")
    assert done.exit_code == 1
    assert fault in done.err


# Its process.


def test_it_ends_what_runs_before_it_ends(tmp_path: Path, ceremony: Ceremony, tls: Tls, alpha: Upstream) -> None:
    step = threading.Event()
    alpha.script(stream(chunk("fo"), step, chunk("ur"), DONE))
    with running_sidecar(tmp_path / "sidecar", alpha, tls, ceremony.identity()) as sidecar, sidecar.connect() as wire:
        wire.send(request_bytes("POST", "/v1/chat/completions", body=chat(stream=True)))
        wire.read_head()
        got = wire.read_until(b'"fo"')
        sidecar.signal_stop()
        wait_until(lambda: refuses(sidecar), "it takes no more connections")
        step.set()
        got += wire.read_body()
        assert got == chunk("fo") + chunk("ur") + DONE
        assert sidecar.wait() == 0


def refuses(sidecar: Sidecar) -> bool:
    try:
        with Wire(sidecar.address, sidecar.tls):
            return False
    except OSError:
        return True


def test_it_does_not_outlive_its_parent(tmp_path: Path, ceremony: Ceremony, tls: Tls, alpha: Upstream) -> None:
    child_end, parent_end = os.pipe()
    with running_sidecar(tmp_path / "sidecar", alpha, tls, ceremony.identity(), lifeline=child_end) as sidecar:
        os.close(child_end)
        os.close(parent_end)
        assert sidecar.wait() == 0


# A router in front.


@contextlib.contextmanager
def routed(folder: Path, ceremony: Ceremony, tls: Tls, port: int, **settings: Any) -> Iterator[Router]:
    """Run a router, itself attested under the same release root, with a sidecar as its only upstream."""
    (folder / "own").mkdir()
    (folder / "router").mkdir()
    own = simulated_ceremony(folder / "own")
    entry = UpstreamEntry(
        f"https://localhost:{port}/v1",
        settings={
            "attestation": "tresor",
            "release_root_file": str(ceremony.root_file),
            "allow_simulated": True,
            "ca_file": str(tls.ca_file),
            **settings,
        },
    )
    with running_router(folder / "router", [entry], tls=tls, settings={"identity": own.identity()}) as router:
        yield router


def test_the_openai_sdk_through_router_and_sidecar(
    tmp_path: Path, sidecar: Sidecar, ceremony: Ceremony, tls: Tls, alpha: Upstream
) -> None:
    with routed(tmp_path, ceremony, tls, sidecar.address[1]) as router:
        http_client = openai.DefaultHttpxClient(verify=tls.client_context(), trust_env=False)
        with openai.OpenAI(
            base_url=router.base_url, api_key=router.key, max_retries=0, http_client=http_client
        ) as client:
            alpha.script(reply(completion("It is four.")))
            raw = client.chat.completions.with_raw_response.create(
                model="m", messages=[{"role": "user", "content": "2+2?"}]
            )
            assert raw.parse().choices[0].message.content == "It is four."
            alpha.script(stream(chunk("fo"), chunk("ur"), finish(), DONE))
            chunks = list(
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "2+2?"}], stream=True)
            )
            assert "".join(piece.choices[0].delta.content or "" for piece in chunks if piece.choices) == "four"
        receipt_id = raw.headers["x-tresor-receipt-id"]
        fetched = router.ask("GET", f"/v1/receipts/{receipt_id}?include=evidence", key=router.key)
        file = tmp_path / "receipt.json"
        file.write_bytes(fetched.body)
        done = tresor(
            "receipt",
            f"--release-root={tmp_path / 'own' / 'release-root.jwk'}",
            f"--inference-release-root={ceremony.root_file}",
            "--require=router,inference",
            "--allow-simulated",
            file,
            module="verify",
        )
        assert done.exit_code == 0, done
        assert "SIMULATED" in done.out
        claims = router.verify(receipt_id).claims
        assert claims.inference_attestation is not None
        assert claims.inference_attestation.channel_binding.spki_sha256 == spki_of(tls.certificate_file).hex()


def test_a_sidecar_that_comes_back_with_another_key(
    tmp_path: Path, ceremony: Ceremony, tls: Tls, alpha: Upstream
) -> None:
    """A new key is a new connection, new evidence and a new pin; a receipt names the key that served."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = make_tls(tmp_path / "first"), make_tls(tmp_path / "second")
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(first.ca_file.read_bytes() + second.ca_file.read_bytes())
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(running_sidecar(tmp_path / "sidecar", alpha, first, ceremony.identity()))
        port = running.address[1]
        router = stack.enter_context(routed(tmp_path, ceremony, tls, port, ca_file=str(authorities)))
        before = router.complete()
        assert running.stop() == 0
        settings = {"server": {"listen": f"127.0.0.1:{port}"}}
        shutil.rmtree(tmp_path / "sidecar")
        stack.enter_context(
            running_sidecar(tmp_path / "sidecar", alpha, second, ceremony.identity(), settings=settings)
        )
        canary = f"canary-{secrets.token_hex(8)}"
        alpha.reset()
        refused = router.complete(chat("m", canary))
        assert (refused.status, refused.error["attempts"][0]["reason"]) == (503, "pin_mismatch")
        assert not any(canary.encode() in request.body for request in alpha.requests)
        wait_until(lambda: router.complete().status == 200, "the new key is verified")
        keys = []
        for answer in (before, router.complete()):
            block = router.verify(answer.receipt_id).claims.inference_attestation
            assert block is not None
            keys.append(block.channel_binding.spki_sha256)
        assert keys == [spki_of(first.certificate_file).hex(), spki_of(second.certificate_file).hex()]
