"""One connection over a transport in memory: however the bytes come, the answers are the same; whatever comes, nothing
breaks; and every deadline and limit, by a clock that is given."""

import asyncio
import json
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tresor.errors import RequestError
from tresor.http1.sweeper import Sweeper
from tresor.limits import Limits
from tresor.server.connection import HttpConnection
from tresor.server.request import Request
from tresor.server.state import ServerState
from tresor.wire.envelope import encode_envelope

LIMITS = Limits(max_head_bytes=600, max_body_bytes=1000, max_buffered_bytes=2500, max_connections=3)

_T = TypeVar("_T")


class MemorySocket:
    """A socket of which nothing can be asked but what its peer has acknowledged (linux/tcp.h, `struct tcp_info`)."""

    acknowledged = 0

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return struct.pack("=120xQ20x", self.acknowledged)[:size]


class MemoryTransport(asyncio.Transport):
    """What a caller would get, and what the connection did."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = b""
        self.unsent_bytes = 0
        self.socket = MemorySocket()
        self.closed = self.aborted = self.eof = False

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        assert data
        assert not self.eof
        if not self.closed:
            self.sent += data

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.socket if name == "socket" and not self.closed else default

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()


@dataclass
class Server:
    """A server whose application echoes, and its loop's complaints."""

    limits: Limits = LIMITS
    complaints: list[dict[str, Any]] = field(default_factory=list)
    handled: list[Request] = field(default_factory=list)
    cancelled: list[Request] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: self.complaints.append(context))
        self.state = ServerState(self.handle, self.limits, Sweeper())
        self.hold.set()

    def connect(self) -> tuple[HttpConnection, MemoryTransport]:
        connection = HttpConnection(self.state)
        transport = MemoryTransport(connection)
        connection.connection_made(transport)
        return connection, transport

    async def handle(self, request: Request) -> None:
        self.handled.append(request)
        try:
            await self.hold.wait()
            await self.answer(request)
        except RequestError as error:
            request.respond(error.status, encode_envelope(error, request.id))
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise

    async def answer(self, request: Request) -> None:
        match request.path:
            case "/early":
                request.respond(200, b"early")
            case "/stream":
                body = await request.body()
                request.start_stream(200, "text/plain")
                for piece in (b"one", b"two"):
                    request.write(piece)
                    await request.drain()
                request.finish_stream(b"three" + body)
            case "/broken":
                raise ZeroDivisionError
            case "/nothing":
                pass
            case "/half":
                request.start_stream(200, "text/plain")
                request.write(b"half")
                raise ZeroDivisionError
            case _:
                body = await request.body()
                echo = [request.method, request.path, dict(request.query), request.headers, body.decode("latin-1")]
                request.respond(200, json.dumps(echo).encode())


async def settle() -> None:
    """Let everything happen that needs no further bytes: none of it waits for anything but turns of the loop."""
    for _ in range(100):
        await asyncio.sleep(0)


def is_over(transport: MemoryTransport) -> bool:
    """Whether the caller is told that nothing more comes."""
    return transport.closed or transport.eof


def run(scenario: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    return asyncio.run(scenario())


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


RESPONSE_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]+\r\n((?:[!-9;-~]+: [ -~]*\r\n)+)\r\n")


def responses(sent: bytes, methods: Sequence[str] = ()) -> list[Response]:
    """Parse what was sent: whole responses and nothing else, of which the last may end with the connection."""
    found: list[Response] = []
    while sent:
        head = RESPONSE_HEAD.match(sent)
        assert head is not None, sent
        lines = [line.split(b": ", 1) for line in head[2].splitlines()]
        headers = {name.decode().lower(): value.decode() for name, value in lines}
        assert len(headers) == len(lines)
        sent = sent[head.end() :]
        body = b""
        if len(found) < len(methods) and methods[len(found)] == "HEAD":
            pass
        elif "content-length" in headers:
            size = int(headers["content-length"])
            assert len(sent) >= size
            body, sent = sent[:size], sent[size:]
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                size_line, _, sent = sent.partition(b"\r\n")
                size = int(size_line, 16)
                assert sent[size : size + 2] == b"\r\n"
                body += sent[:size]
                sent = sent[size + 2 :]
                if not size:
                    break
        elif int(head[1]) >= 200:
            body, sent = sent, b""
        found.append(Response(int(head[1]), headers, body))
    return found


# However the bytes come.

tokens = st.text("abXY-", min_size=1, max_size=5)
field_values = st.text("abc ,;=\t\xe4", max_size=8).map(str.strip)
bodies = st.binary(max_size=40)


@dataclass(frozen=True)
class Sent:
    """A request as bytes, and what the application must see of it."""

    data: bytes
    method: str
    echo: list[Any] | None
    streamed: bytes | None = None


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "DELETE", "PATCH"]))
    path, streamed = draw(st.sampled_from([("/x", False), ("/x/y%20z", False), ("/stream", True)]))
    method = "POST" if streamed else method  # no application streams an answer to HEAD
    query = draw(st.sampled_from(["", "?", "?a=b&c=%20", "?a=1&a=2"]))
    body = draw(bodies)
    fields = {"host": "x"} | {f"x-{name.lower()}": draw(field_values) for name in draw(st.lists(tokens, max_size=3))}
    coding = b""
    match draw(st.integers(0, 2)):
        case 0:
            body = b""
        case 1:
            fields["content-length"] = str(len(body))
            coding = body
        case _:
            fields["transfer-encoding"] = "chunked"
            at = draw(st.integers(0, len(body)))
            parts = [part for part in (body[:at], body[at:]) if part]
            coding = b"".join(b"%x%b\r\n%b\r\n" % (len(part), draw(extensions), part) for part in parts)
            coding += b"0\r\n" + draw(st.sampled_from([b"", b"X-Trailer: y\r\nHost: z\r\n"])) + b"\r\n"
    lines = [
        f"{method} {path}{query} HTTP/1.1",
        *(f"{name.title()}: {value}" for name, value in fields.items()),
        "",
        "",
    ]
    data = draw(st.sampled_from([b"", b"", b"\r\n"])) + "\r\n".join(lines).encode("latin-1") + coding
    if streamed:
        return Sent(data, method, None, b"onetwothree" + body)
    members = {"": {}, "?": {}, "?a=b&c=%20": {"a": "b", "c": " "}, "?a=1&a=2": {"a": "2"}}[query]
    return Sent(data, method, [method, path.replace("%20", " "), members, fields, body.decode("latin-1")])


extensions = st.sampled_from([b"", b";x", b';a="b c"'])


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[list[Sent], list[bytes]]:
    sent = [request for request in draw(st.lists(requests(), min_size=1, max_size=5)) if len(request.data) < 500]
    stream = b"".join(request.data for request in sent)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    return sent, [piece for piece in pieces if piece]


async def answers_to(pieces: Sequence[bytes], pauses: Sequence[bool] = (), *, end: bool = True) -> tuple[bytes, bool]:
    """Send pieces, some of them at once; return what came back and whether the connection is over."""
    server = Server()
    connection, transport = server.connect()
    for n, piece in enumerate(pieces):
        if not transport.closed:
            connection.data_received(piece)
        if n < len(pauses) and pauses[n]:
            await settle()
    await settle()
    over = is_over(transport)
    if end and not transport.closed:
        transport.close()
    await settle()
    assert server.complaints == []
    assert (server.state.connections, server.state.serving, server.state.buffered_bytes) == (set(), 0, 0)
    return transport.sent, over


@given(pipeline=pipelines(), pauses=st.lists(st.booleans(), max_size=10))
@settings(deadline=None, max_examples=100)
def test_the_answers_do_not_depend_on_how_the_bytes_come(
    pipeline: tuple[list[Sent], list[bytes]], pauses: list[bool]
) -> None:
    sent, pieces = pipeline
    received, over = run(lambda: answers_to(pieces, pauses))
    assert not over
    answers = responses(received, [request.method for request in sent])
    assert [answer.status for answer in answers] == [200] * len(sent)
    for request, answer in zip(sent, answers, strict=True):
        assert "connection" not in answer.headers
        if request.method == "HEAD":
            continue
        if request.streamed is not None:
            assert answer.body == request.streamed
        else:
            assert json.JSONDecoder().decode(answer.body.decode()) == request.echo


@given(requests())
@settings(deadline=None, max_examples=60)
def test_a_request_byte_by_byte_is_the_same(request: Sent) -> None:
    whole, _ = run(lambda: answers_to([request.data]))
    bytewise, _ = run(lambda: answers_to([bytes([byte]) for byte in request.data]))
    varying = re.compile(rb"(X-Request-Id|Date): [^\r]*")
    assert varying.sub(b"", bytewise) == varying.sub(b"", whole)


# Whatever comes.

debris = st.lists(
    st.sampled_from(
        [
            b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
            b"POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
            b"GET /broken HTTP/1.0\r\n\r\n",
            b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
            b"Connection: close\r\n",
            b"Expect: 100-continue\r\n",
            b"GET ",
            b"/",
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\r\n",
            b"Host: x\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\r\n",
            b"\n",
            b"\r",
            b"0\r\n",
            b"5\r\nabcde\r\n",
            b"ffff\r\n",
            b"x" * 300,
            b"\0",
            b"\xff",
            b": ",
        ]
    )
    | st.binary(max_size=20),
    max_size=25,
)


@given(pieces=debris, pauses=st.lists(st.booleans(), max_size=25))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_answered_in_whole_or_cut(pieces: list[bytes], pauses: list[bool]) -> None:
    received, over = run(lambda: answers_to([piece for piece in pieces if piece], pauses))
    if received.endswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
        received = received.removesuffix(b"HTTP/1.1 100 Continue\r\n\r\n")
    answers = responses(received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))
    closing = [answer.headers.get("connection") == "close" for answer in answers]
    assert not any(closing[:-1])
    if closing and closing[-1]:
        assert over
    for answer in answers:
        if answer.status >= 400:
            error = json.JSONDecoder().decode(answer.body.decode())
            assert error["request_id"] == answer.headers["x-request-id"]


@given(request=requests(), position=st.floats(0, 1), put=st.binary(max_size=3))
@settings(deadline=None, max_examples=200)
def test_a_damaged_request_is_answered_in_whole_or_waited_for(request: Sent, position: float, put: bytes) -> None:
    at = int(position * len(request.data))
    damaged = request.data[:at] + put + request.data[at + 1 :]
    received, _ = run(lambda: answers_to([damaged]))
    if not damaged.lstrip(b"\r\n").startswith(b"HEAD "):
        assert all(answer.status in (200, 400, 431) for answer in responses(received))


# One behaviour each.

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


def post(size: int, path: str = "/x") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


def check(scenario: Callable[[Server], Awaitable[None]], limits: Limits = LIMITS) -> None:
    """Run a scenario; behind it nothing may be left over and the loop has nothing to complain about."""

    async def whole() -> None:
        server = Server(limits)
        await scenario(server)
        for connection in tuple(server.state.connections):
            assert connection._transport is not None
            connection._transport.abort()
        await settle()
        assert server.complaints == []
        assert (server.state.connections, server.state.serving, server.state.buffered_bytes) == (set(), 0, 0)

    run(whole)


def later(server: Server, seconds: float) -> float:
    return server.state.loop.time() + seconds


def only(transport: MemoryTransport) -> tuple[int, str]:
    """Return status and code of the one answer, an error."""
    (answer,) = responses(transport.sent)
    assert answer.headers["connection"] == "close"
    return answer.status, json.JSONDecoder().decode(answer.body.decode())["error"]["code"]


def test_a_head_that_does_not_end() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(GET[:9])
        connection.sweep(later(server, LIMITS.head_timeout_s - 1))
        assert transport.sent == b""
        connection.sweep(later(server, LIMITS.head_timeout_s + 1))
        assert only(transport) == (408, "request_timeout")
        assert transport.eof
        connection.sweep(later(server, 3))
        assert transport.closed

    check(scenario)


def test_a_head_that_begins_in_the_bytes_of_the_request_before_has_its_time_too() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(GET + b"G")
        await settle()
        assert [answer.status for answer in responses(transport.sent)] == [200]
        connection.sweep(later(server, LIMITS.head_timeout_s + 1))
        assert [answer.status for answer in responses(transport.sent)] == [200, 408]

    check(scenario)


def test_a_body_that_stops_coming() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(post(5) + b"ab")
        await settle()
        connection.sweep(later(server, LIMITS.body_timeout_s - 1))
        connection.data_received(b"c")
        await settle()
        assert transport.sent == b""
        connection.sweep(later(server, LIMITS.body_timeout_s + 1))
        await settle()
        assert only(transport) == (408, "request_timeout")

    check(scenario)


def test_a_connection_without_requests_is_closed() -> None:
    async def scenario(server: Server) -> None:
        fresh, fresh_transport = server.connect()
        fresh.sweep(later(server, LIMITS.head_timeout_s + 1))
        assert (fresh_transport.closed, fresh_transport.sent) == (True, b"")
        used, used_transport = server.connect()
        used.data_received(GET)
        await settle()
        used.sweep(later(server, LIMITS.keep_alive_timeout_s - 1))
        assert not used_transport.closed
        used.sweep(later(server, LIMITS.keep_alive_timeout_s + 1))
        assert used_transport.closed

    check(scenario)


def test_a_long_answer_has_no_deadline_of_the_reader() -> None:
    async def scenario(server: Server) -> None:
        server.hold.clear()
        connection, transport = server.connect()
        connection.data_received(GET)
        await settle()
        connection.sweep(later(server, 1e6))
        assert not transport.closed
        server.hold.set()
        await settle()
        assert [answer.status for answer in responses(transport.sent)] == [200]

    check(scenario)


def test_a_caller_who_takes_nothing_is_cut_and_one_who_is_slow_is_not() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.pause_writing()
        for acknowledged, cut in ((500, False), (501, False), (501, True)):
            transport.socket.acknowledged = acknowledged
            connection.sweep(later(server, (LIMITS.write_timeout_s + 1) * 10**6))
            connection._write_deadline = later(server, 0)
            assert transport.aborted is cut

    check(scenario)


def test_whoever_writes_waits_for_a_slow_caller() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.pause_writing()
        connection.data_received(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await settle()
        assert transport.sent.endswith(b"one\r\n")
        connection.resume_writing()
        await settle()
        assert responses(transport.sent)[0].body == b"onetwothree"

    check(scenario)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET /x HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 600 + b"\r\n\r\n", 431, "head_too_large"),
        (b"GET /x HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 600, 431, "head_too_large"),
        (b"GET /" + b"x" * 600, 431, "head_too_large"),
        (b"\r\n" * 301, 431, "head_too_large"),
        (post(1001), 413, "payload_too_large"),
        (post(10**15), 413, "payload_too_large"),
        (
            b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001,
            413,
            "payload_too_large",
        ),
        (GET.replace(b"Host: x\r\n", b""), 400, "missing_field"),
        (GET.replace(b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"), 400, "invalid_field"),
        (GET.replace(b"1.1", b"1.2"), 400, "invalid_field"),
        (b"nonsense\r\n", 400, "invalid_field"),
    ],
)
def test_what_is_too_much_or_none_gets_one_envelope(data: bytes, status: int, code: str) -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(data)
        await settle()
        assert only(transport) == (status, code)
        assert is_over(transport)
        for _ in range(100):
            connection.data_received(GET)
        await settle()
        assert only(transport) == (status, code)

    check(scenario)


def test_framing_without_end_is_too_much() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        for _ in range(7):
            connection.data_received(b"x" * 100)
        await settle()
        assert only(transport) == (431, "head_too_large")

    check(scenario)


def test_bodies_at_one_time_are_bounded_over_all_connections() -> None:
    async def scenario(server: Server) -> None:
        pairs = [server.connect() for _ in range(3)]
        for connection, _ in pairs:
            connection.data_received(post(1000) + b"x" * 999)
        await settle()
        assert [transport.sent == b"" for _, transport in pairs] == [True, True, False]
        assert only(pairs[2][1]) == (503, "service_unavailable")
        assert server.state.buffered_bytes == 1998
        for connection, _ in pairs[:2]:
            connection.data_received(b"x")
        await settle()
        assert [responses(transport.sent)[0].status for _, transport in pairs] == [200, 200, 503]
        assert server.state.buffered_bytes == 0

    check(scenario)


def test_connections_at_one_time_are_bounded() -> None:
    async def scenario(server: Server) -> None:
        pairs = [server.connect() for _ in range(4)]
        (answer,) = responses(pairs[3][1].sent)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert pairs[3][1].closed
        pairs[0][1].close()
        await settle()
        assert server.connect()[1].sent == b""

    check(scenario)


def test_so_many_requests_may_come_ahead_of_their_answers() -> None:
    async def scenario(server: Server) -> None:
        server.hold.clear()
        connection, transport = server.connect()
        connection.data_received(GET * 17)
        await settle()
        connection.data_received(GET)
        server.hold.set()
        await settle()
        answers = responses(transport.sent)
        assert [answer.status for answer in answers] == [200]
        assert answers[0].headers["connection"] == "close"
        assert is_over(transport)

    check(scenario)


def test_a_fault_behind_requests_that_wait_does_not_cost_the_answer_that_is_due() -> None:
    async def scenario(server: Server) -> None:
        server.hold.clear()
        connection, transport = server.connect()
        connection.data_received(GET + b"nonsense")
        await settle()
        assert not transport.closed
        server.hold.set()
        await settle()
        (answer,) = responses(transport.sent)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert is_over(transport)

    check(scenario)


def test_a_body_that_breaks_while_its_request_waits_is_no_request_that_waits_for_ever() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        server.hold.clear()
        connection.data_received(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await settle()
        connection.data_received(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        assert connection._queued
        second = connection._queued[0]
        connection.data_received(b"no size\r\n")
        assert second.incoming.failed
        assert server.state.buffered_bytes == 0
        server.hold.set()
        await settle()
        assert responses(transport.sent)[0].body == b"onetwothree"
        assert is_over(transport)

    check(scenario)


def test_an_answer_before_the_body_ended_is_seen_before_the_connection_ends() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(post(900, "/early") + b"x" * 100)
        await settle()
        (answer,) = responses(transport.sent)
        assert (answer.body, answer.headers["connection"]) == (b"early", "close")
        assert transport.eof
        assert not transport.closed
        for _ in range(5):
            connection.data_received(b"x" * 100)
            connection.sweep(later(server, 1.9))
            assert not transport.closed
        assert server.state.buffered_bytes == 0
        connection.sweep(later(server, 2.1))
        assert transport.closed

    check(scenario)


@pytest.mark.parametrize(
    ("data", "status", "cut"),
    [
        (b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n", 500, False),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", None, True),
        (b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n", None, True),
    ],
)
def test_a_handler_that_fails_takes_nothing_else_with_it(data: bytes, status: int | None, cut: bool) -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(data)
        await settle()
        assert transport.aborted is cut
        if status is not None:
            (answer,) = responses(transport.sent)
            assert answer.status == status
            assert b"ZeroDivision" not in answer.body
        assert not transport.sent.endswith(b"0\r\n\r\n")  # what did not end must not look as if it had
        other, other_transport = server.connect()
        other.data_received(GET)
        await settle()
        assert [answer.status for answer in responses(other_transport.sent)] == [200]

    check(scenario)


def test_a_caller_who_leaves_cancels_the_handler_and_what_waits_behind_it() -> None:
    async def scenario(server: Server) -> None:
        server.hold.clear()
        connection, transport = server.connect()
        connection.data_received(post(4) + b"body" + post(9) + b"body")
        await settle()
        assert server.state.buffered_bytes == 8
        transport.close()
        await settle()
        assert [(request.gone, request.status) for request in server.cancelled] == [(True, None)]
        assert server.cancelled == server.handled

    check(scenario)


def test_a_caller_who_leaves_while_the_handler_waits_for_room_or_for_the_body() -> None:
    async def scenario(server: Server) -> None:
        for data in (b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n", post(5) + b"ab"):
            connection, transport = server.connect()
            connection.pause_writing()
            connection.data_received(data)
            await settle()
            transport.close()
            await settle()
            assert server.cancelled[-1].gone

    check(scenario)


def test_draining_ends_idle_connections_at_once_and_others_behind_their_answer() -> None:
    async def scenario(server: Server) -> None:
        idle, idle_transport = server.connect()
        server.hold.clear()
        busy, busy_transport = server.connect()
        busy.data_received(GET)
        partial, partial_transport = server.connect()
        partial.data_received(GET[:10])
        await settle()
        for connection in (idle, busy, partial):
            connection.close_when_idle()
        assert (idle_transport.closed, busy_transport.closed, partial_transport.closed) == (True, False, False)
        server.hold.set()
        partial.data_received(GET[10:])
        await settle()
        for transport in (busy_transport, partial_transport):
            (answer,) = responses(transport.sent)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert transport.closed

    check(scenario)


def test_a_process_that_must_end_cancels_what_runs() -> None:
    async def scenario(server: Server) -> None:
        server.hold.clear()
        connection, transport = server.connect()
        connection.data_received(GET)
        await settle()
        connection.cancel()
        await settle()
        assert [request.gone for request in server.cancelled] == [False]
        assert transport.aborted

    check(scenario)


@pytest.mark.parametrize(
    ("version", "fields", "kept", "said"),
    [
        ("1.1", "", True, None),
        ("1.1", "Connection: close\r\n", False, "close"),
        ("1.1", "Connection: Keep-Alive\r\n", True, None),
        ("1.0", "", False, "close"),
        ("1.0", "Connection: keep-alive\r\n", True, "keep-alive"),
    ],
)
def test_a_connection_is_kept_as_it_was_asked_for(version: str, fields: str, kept: bool, said: str | None) -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(f"GET /x HTTP/{version}\r\nHost: x\r\n{fields}\r\n".encode())
        await settle()
        (answer,) = responses(transport.sent)
        assert answer.headers.get("connection") == said
        assert transport.closed is not kept

    check(scenario)


def test_a_stream_for_http_1_0_ends_with_the_connection() -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        connection.data_received(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        await settle()
        (answer,) = responses(transport.sent)
        assert (answer.body, answer.headers["connection"]) == (b"onetwothree", "close")
        assert "transfer-encoding" not in answer.headers
        assert transport.closed

    check(scenario)


@pytest.mark.parametrize(("version", "interim"), [("1.1", 1), ("1.0", 0)])
def test_the_body_is_asked_for_once_it_is_wanted(version: str, interim: int) -> None:
    async def scenario(server: Server) -> None:
        connection, transport = server.connect()
        head = post(2).replace(b"1.1", version.encode()).replace(b"Host", b"Expect: 100-Continue\r\nHost")
        connection.data_received(head)
        assert transport.sent == b""
        await settle()
        assert transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n" * interim
        connection.data_received(b"ab")
        await settle()
        assert transport.sent.count(b"100 Continue") == interim
        assert transport.sent.count(b"HTTP/1.1 200 OK") == 1
        connection.data_received(head + b"ab")
        await settle()
        assert transport.sent.count(b"100 Continue") == interim  # it had come by then

    check(scenario)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a?b=c", "/a", {"b": "c"}),
        ("/a%2Fb%00", "/a/b\0", {}),
        ("/a%", "/a%", {}),
        ("/%ff", "/\ufffd", {}),
        ("http://other.test/a?b", "/a", {"b": ""}),
        ("http://other.test", "/", {}),
        ("http://other.test?x=/a", "/", {"x": "/a"}),
        ("http://other.test?b=/c/d?e", "/", {"b": "/c/d?e"}),
        ("//other/a", "//other/a", {}),
        ("/a?x=1&x=2&y", "/a", {"x": "2", "y": ""}),
        ("*", "*", {}),
    ],
)
def test_targets(target: str, path: str, query: dict[str, str]) -> None:
    async def scenario(server: Server) -> None:
        connection, _ = server.connect()
        connection.data_received(f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await settle()
        (request,) = server.handled
        assert (request.path, request.query) == (path, query)

    check(scenario)


def test_nothing_shows_what_was_sent() -> None:
    async def scenario(server: Server) -> None:
        connection, _ = server.connect()
        server.hold.clear()
        connection.data_received(post(6).replace(b"Host", b"Authorization: tr-secret\r\nHost") + b"secret")
        await settle()
        assert "secret" not in repr(connection) + repr(server.handled[0])

    check(scenario)
