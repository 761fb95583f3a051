"""Callers who send too much, too slowly, or nothing: an envelope or a clean close, bounded memory, the router alive."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from conftest import StartRouter
from support.router import Router, UpstreamEntry, chat, running_router, wait_until
from support.upstream import DONE, Upstream, completion, reply
from support.wire import Answer, Wire, request_bytes

CHAT = "/v1/chat/completions"
LIMITS = {
    "max_head_bytes": 8192,
    "max_body_bytes": 1 << 20,
    "max_buffered_bytes": 3 << 20,
    "max_connections": 60,
    "head_timeout_s": 1.0,
    "body_timeout_s": 1.0,
    "keep_alive_timeout_s": 1.0,
    "write_timeout_s": 0.75,
}
ENOUGH = 64 << 20


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as scripted:
        yield scripted


@pytest.fixture(scope="module")
def _strict(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with running_router(
        tmp_path_factory.mktemp("router"), [UpstreamEntry(upstream)], settings={"limits": LIMITS}
    ) as router:
        router.complete()
        yield router


@pytest.fixture
def strict(_strict: Router, upstream: Upstream) -> Iterator[Router]:
    """A router with small limits; behind each test it must serve, have its worker, and be no larger than before."""
    upstream.reset()
    (worker,) = _strict.workers()
    before = _strict.rss_bytes()
    yield _strict
    upstream.reset()
    assert _strict.complete().status == 200
    assert [w.pid for w in _strict.workers()] == [worker.pid]
    assert _strict.rss_bytes() - before < 24 << 20
    assert all(line["event"] != "handler failed" for line in _strict.log_lines())


def check(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["connection"] == "close"


def head(router: Router, *fields: str, method: str = "POST", target: str = CHAT) -> bytes:
    """Return a head with a key, without the blank line."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Authorization: Bearer {router.key}", *fields]
    if method == "POST":
        lines.append("Content-Type: application/json")
    return "".join(f"{line}\r\n" for line in lines).encode()


def pour(wire: Wire, block: bytes, most: int = ENOUGH) -> int:
    """Send the same block again and again until nobody takes it, or it is enough; return how much was sent."""
    sent = 0
    wire.sock.settimeout(5)
    with contextlib.suppress(OSError):
        while sent < most:
            wire.send(block)
            sent += len(block)
    return sent


# Too large.


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param([b"GET /", b"x" * 4096], id="target"),
        pytest.param([b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"y" * 4096], id="value"),
        pytest.param([b"GET / HTTP/1.1\r\nHost: x\r\n", b"x" * 4096], id="name"),
        pytest.param([b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 512], id="fields"),
    ],
)
def test_a_head_without_end(strict: Router, flood: list[bytes]) -> None:
    with strict.connect() as wire:
        wire.send(flood[0])
        assert pour(wire, flood[1], 64 << 10) > 0
        check(wire.read_answer(), 431, "head_too_large")


def test_a_head_that_comes_at_once_and_is_too_large(strict: Router) -> None:
    check(strict.ask("GET", "/healthz", headers={"X": "y" * 9000}), 431, "head_too_large")
    assert strict.ask("GET", "/healthz", headers={"X": "y" * 7000}).status == 200


def test_line_ends_without_end(strict: Router) -> None:
    with strict.connect() as wire:
        pour(wire, b"\r\n" * 4096)
        check(wire.read_answer(), 431, "head_too_large")


def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(strict: Router) -> None:
    with strict.connect() as wire:
        wire.send(head(strict, f"Content-Length: {100 << 20}") + b"\r\n")
        check(wire.read_answer(), 413, "payload_too_large")


def test_a_body_that_is_declared_too_large_and_comes(strict: Router) -> None:
    with strict.connect() as wire:
        wire.send(head(strict, f"Content-Length: {100 << 20}") + b"\r\n")
        assert pour(wire, b"x" * (1 << 20), 100 << 20) == 100 << 20
        check(wire.read_answer(), 413, "payload_too_large")


def test_a_chunked_body_that_is_too_large(strict: Router) -> None:
    with strict.connect() as wire:
        wire.send(head(strict, "Transfer-Encoding: chunked") + b"\r\n")
        assert pour(wire, b"%x\r\n%b\r\n" % (1 << 20, b"x" * (1 << 20)), 100 << 20) >= 100 << 20
        check(wire.read_answer(), 413, "payload_too_large")


def test_a_body_that_just_fits(strict: Router) -> None:
    frame = len(chat(prompt=""))
    assert strict.complete(chat(prompt="x" * ((1 << 20) - frame))).status == 200
    check(strict.complete(chat(prompt="x" * ((1 << 20) - frame + 1))), 413, "payload_too_large")


def test_an_expectation_is_not_met_for_a_body_that_is_too_large(strict: Router) -> None:
    with strict.connect() as wire:
        wire.send(head(strict, f"Content-Length: {100 << 20}", "Expect: 100-continue") + b"\r\n")
        check(wire.read_answer(), 413, "payload_too_large")


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"".join(b"X-%d: %b\r\n" % (n, b"y" * 1000) for n in range(64)), id="many-trailers"),
        pytest.param(b"y" * 65536, id="one-trailer"),
    ],
)
def test_trailers_without_end(strict: Router, block: bytes) -> None:
    body = chat()
    with strict.connect() as wire:
        wire.send(head(strict, "Transfer-Encoding: chunked") + b"\r\n%x\r\n%b\r\n0\r\nX: " % (len(body), body))
        pour(wire, block)
        check(wire.read_answer(), 431, "head_too_large")


def test_a_chunk_extension_without_end(strict: Router) -> None:
    with strict.connect() as wire:
        wire.send(head(strict, "Transfer-Encoding: chunked") + b"\r\n5;")
        pour(wire, b"x" * 65536)
        check(wire.read_answer(), 431, "head_too_large")


def test_many_bodies_at_once_are_bounded(strict: Router) -> None:
    part = b"x" * ((1 << 20) - 2000)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(strict.connect()) for _ in range(6)]
        for wire in wires:
            wire.send(head(strict, f"Content-Length: {1 << 20}") + b"\r\n" + part)
        answers = [wire.read_answer() for wire in wires]
    outcomes = [(answer.status, answer.error["code"]) for answer in answers]
    assert set(outcomes) == {(503, "service_unavailable"), (408, "request_timeout")}
    assert outcomes.count((408, "request_timeout")) == 3


def test_too_many_connections(strict: Router) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(strict.connect()) for _ in range(60)]
        assert wires[0].ask("GET", "/healthz").status == 200  # all have been accepted before this one was
        with strict.connect() as one_more:
            check(one_more.read_answer(), 503, "service_unavailable")
            assert one_more.at_end()


# Too slow.


def test_a_head_that_comes_too_slowly(strict: Router) -> None:
    with strict.connect() as wire:
        wire.sock.settimeout(0.1)
        for byte in b"GET /healthz HTTP/1.1\r\nHost: " + b"x" * 100:
            with contextlib.suppress(OSError):
                wire.send(bytes([byte]))
            try:
                wire.read_head()
            except TimeoutError:
                continue
            break
        else:
            pytest.fail("the router waited for ever")
    with strict.connect() as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\n")
        check(wire.read_answer(), 408, "request_timeout")
        assert wire.at_end()


def test_a_body_that_stops_coming(strict: Router) -> None:
    with strict.connect() as wire:
        wire.send(head(strict, "Content-Length: 100") + b"\r\n" + b'{"model"')
        check(wire.read_answer(), 408, "request_timeout")


def test_a_connection_on_which_nothing_comes_is_closed(strict: Router) -> None:
    with strict.connect() as fresh, strict.connect() as used:
        used.ask("GET", "/healthz")
        assert fresh.at_end()
        assert used.at_end()


def test_a_caller_who_takes_nothing_is_cut(strict: Router, upstream: Upstream) -> None:
    upstream.script(reply(completion("x" * (8 << 20))))
    with small_window(strict) as wire:
        wire.send(request_bytes("POST", CHAT, key=strict.key, body=chat()))
        wire.read_head()
        wait_until(lambda: connections_of(strict) == 0, "the caller is cut")
        with pytest.raises(ConnectionError):
            wire.read_body()


@pytest.mark.parametrize("mebibytes", [1, 2, 3, 4])
def test_a_caller_who_leaves_the_end_of_an_answer_is_cut(strict: Router, upstream: Upstream, mebibytes: int) -> None:
    """What the system does not take waits here, and is less than would stop the router from writing."""
    upstream.script(reply(completion("x" * (mebibytes << 20))))
    with small_window(strict) as wire:
        wire.send(request_bytes("POST", CHAT, key=strict.key, headers={"Connection": "close"}, body=chat()))
        wire.read_head()
        wait_until(lambda: connections_of(strict) == 0, "the caller is cut")


def test_a_caller_who_is_slow_gets_everything(strict: Router, upstream: Upstream) -> None:
    upstream.script(reply(completion("x" * (12 << 20))))
    take_slowly(strict)


def test_a_caller_who_is_slow_gets_everything_over_tls_before_it_is_closed(router: Router, alpha: Upstream) -> None:
    alpha.script(reply(completion("x" * (4 << 20))))
    take_slowly(router, {"Connection": "close"})


def test_a_caller_who_is_slow_gets_everything_from_a_router_that_is_to_end(
    start_router: StartRouter, alpha: Upstream
) -> None:
    router = start_router([UpstreamEntry(alpha)])
    alpha.script(reply(completion("x" * (4 << 20))))
    take_slowly(router, behind_head=router.process.terminate, pause_s=0.1)
    assert router.process.wait(20) == 0


def take_slowly(
    router: Router,
    headers: dict[str, str] | None = None,
    behind_head: Callable[[], object] = lambda: None,
    pause_s: float = 0.012,
) -> None:
    """Take an answer slower than the router sends it, over several times as long as it waits for one who stops."""
    tick = threading.Event()
    with small_window(router) as wire:
        wire.send(request_bytes("POST", CHAT, key=router.key, headers=headers, body=chat("m")))
        left = int(wire.read_head().headers["content-length"]) - len(wire.read_piece())
        behind_head()
        while left:
            tick.wait(pause_s)
            piece = wire.sock.recv(64 << 10)
            assert piece, f"cut {left} bytes before the end"
            left -= len(piece)


@contextlib.contextmanager
def small_window(router: Router) -> Iterator[Wire]:
    wire = router.connect()
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    with wire:
        yield wire


def connections_of(router: Router) -> int:
    """How many callers the worker has."""
    (worker,) = router.workers()
    port = router.address[1]
    return sum(c.laddr.port == port and c.status == "ESTABLISHED" for c in worker.net_connections("tcp"))


# Gone.


def test_a_caller_who_resets_in_the_middle_of_a_body(strict: Router) -> None:
    for _ in range(50):
        wire = strict.connect()
        wire.send(head(strict, "Content-Length: 1000000") + b"\r\n" + b"x" * 500_000)
        wire.abort()
    wait_until(lambda: connections_of(strict) == 0, "all are gone")


def test_a_caller_who_resets_in_the_middle_of_an_answer(strict: Router, upstream: Upstream) -> None:
    upstream.script(reply(completion("x" * (4 << 20))))
    for _ in range(10):
        wire = strict.connect()
        wire.send(request_bytes("POST", CHAT, key=strict.key, body=chat()))
        wire.read_head()
        wire.abort()
    wait_until(lambda: connections_of(strict) == 0, "all are gone")


# Others than callers of an API.


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0" * 100,
        b"GET /\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"{}",
        bytes(range(256)) * 8,
    ],
)
def test_what_is_no_http_gets_one_400(strict: Router, garbage: bytes) -> None:
    with strict.connect() as wire:
        wire.send(garbage)
        check(wire.read_answer(), 400, "invalid_field")
        assert wire.at_end()


def test_the_first_answer_of_a_default_router_to_100_mib(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    before = router.rss_bytes()
    with router.connect() as wire:
        wire.send(head(router, "Transfer-Encoding: chunked") + b"\r\n")
        pour(wire, b"%x\r\n%b\r\n" % (1 << 20, b"x" * (1 << 20)), 100 << 20)
        check(wire.read_answer(), 413, "payload_too_large")
    assert router.rss_bytes() - before < 80 << 20
    assert router.complete(chat(stream=True)).body.endswith(DONE)
