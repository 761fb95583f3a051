"""A scripted OpenAI-compatible server: answers as told, records what it got, and can misbehave in every way.

Each connection has a thread and a blocking socket, so a script is a plain function that sends, waits for the test or
tears the connection down:

    upstream.script(reply(completion("four")))  # a JSON answer
    upstream.script(stream(chunk("fo"), step, chunk("ur"), finish(), DONE))  # `step` is an Event of the test's
    upstream.script(reply_error(500), reply(completion()))  # one script per request; the last one stays

A script is told nothing about the test; what the router sent stands in `upstream.requests`.
"""

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias

__all__ = [
    "DONE",
    "Call",
    "ReceivedRequest",
    "Script",
    "Upstream",
    "chunk",
    "chunked",
    "completion",
    "embedding",
    "finish",
    "hang_up",
    "head",
    "reply",
    "reply_error",
    "send_raw",
    "silent",
    "sse",
    "stream",
    "usage_chunk",
]

DONE: Final = b"data: [DONE]\n\n"
_EVENT_STREAM: Final = "text/event-stream"
_WAIT_S: Final = 30.0


@dataclass
class ReceivedRequest:
    """A request as it came, and what became of its connection.

    Attributes:
        head: everything up to and with the blank line.
        body: the bytes behind it.
        cancelled: set once a script that waits for it has seen the router close the connection.
        connection: number of the connection it came on, from 1.
    """

    head: bytes
    body: bytes
    connection: int
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def target(self) -> str:
        """Method and path."""
        return self.head.split(b" HTTP/1.1\r\n")[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        """Header fields by lower-case name."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def json(self) -> Any:
        """The body as JSON, lone surrogates and all."""
        return json.JSONDecoder().decode(self.body.decode())


class Call:
    """One request that a script answers."""

    def __init__(self, sock: socket.socket, request: ReceivedRequest) -> None:
        self._sock = sock
        self.request = request
        self.open = True

    def send(self, data: bytes) -> None:
        """Send bytes as they are.

        Raises:
            OSError: the router has closed the connection.
        """
        self._sock.sendall(data)

    def close(self) -> None:
        """Close the connection in order (FIN)."""
        self.open = False
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._sock.close()

    def reset(self) -> None:
        """Close the connection with a RST."""
        self.open = False
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def wait_cancelled(self, timeout_s: float = _WAIT_S) -> bool:
        """Wait until the router closes the connection, and note it on the request."""
        self._sock.settimeout(timeout_s)
        try:
            gone = self._sock.recv(1) == b""
        except TimeoutError:
            gone = False
        except OSError:
            gone = True
        if gone:
            self.open = False
            self.request.cancelled.set()
        return gone


Script: TypeAlias = Callable[[Call], None]
Part: TypeAlias = "bytes | threading.Event | Callable[[], object]"


class Upstream:
    """The server; `with Upstream() as upstream:`.

    Args:
        tls: a server-side context, where it is to speak TLS.

    Attributes:
        requests: what came, in order.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._changed = threading.Condition()
        self._scripts: list[Script] = []
        self._connections: set[socket.socket] = set()
        self._accepted = 0
        self._stopped = False
        self.requests: list[ReceivedRequest] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """What stands in the router's settings."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/v1"

    @property
    def last(self) -> ReceivedRequest:
        """The request that came last."""
        return self.requests[-1]

    def script(self, *scripts: Script) -> None:
        """Answer the next requests with these, one each, and all later ones with the last."""
        with self._changed:
            self._scripts = list(scripts)

    def reset(self) -> None:
        """Forget scripts and requests; answer like a well-behaved model."""
        with self._changed:
            self.requests = []
            self._scripts = [_behave]

    def wait_for(self, count: int) -> Sequence[ReceivedRequest]:
        """Wait until that many requests have come since the last reset, and return them."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, _WAIT_S):
                raise AssertionError(f"{len(self.requests)} requests came, want {count}")
            return list(self.requests)

    @property
    def connections(self) -> int:
        """How many connections were ever accepted."""
        return self._accepted

    @property
    def is_connected(self) -> bool:
        """Whether a connection is open now."""
        with self._changed:
            return bool(self._connections)

    def drop_connections(self) -> None:
        """Close every open connection, idle ones included."""
        with self._changed:
            open_now = list(self._connections)
        for sock in open_now:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Stop listening and close everything."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()

    def _accept(self) -> None:
        while not self._stopped:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self._changed:
            self._accepted += 1
            number = self._accepted
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with self._changed:
                self._connections.add(sock)
            for request in _requests(sock, number):
                call = Call(sock, request)
                self._next_script(request)(call)
                if not call.open:
                    return
        except OSError:
            pass  # the router left; a script that cares has waited for it
        finally:
            with self._changed:
                self._connections.discard(sock)
            sock.close()

    def _next_script(self, request: ReceivedRequest) -> Script:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            return self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]


def _requests(sock: socket.socket, number: int) -> Iterator[ReceivedRequest]:
    data = b""
    while True:
        sock.settimeout(None)
        while b"\r\n\r\n" not in data:
            more = sock.recv(1 << 16)
            if not more:
                return
            data += more
        head_bytes, _, rest = data.partition(b"\r\n\r\n")
        request = ReceivedRequest(head_bytes + b"\r\n\r\n", b"", number)
        length = int(request.headers.get("content-length", "0"))
        parts, size = [rest], len(rest)
        while size < length:
            more = sock.recv(1 << 16)
            if not more:
                return
            parts.append(more)
            size += len(more)
        body = b"".join(parts)
        request.body, data = body[:length], body[length:]
        yield request


# Bodies.


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def completion(text: str = "four", **members: Any) -> bytes:
    """Return the body of a chat completion; `members` are added or take the place of its own."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "upstream-name"}
    return _json({**whole, "choices": [choice], "usage": usage, **members})


def embedding() -> bytes:
    """Return the body of an embeddings answer."""
    data = [{"object": "embedding", "index": 0, "embedding": [0.25, -1.0]}]
    return _json({"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 2, "total_tokens": 2}})


def sse(value: object, end: bytes = b"\n") -> bytes:
    """Return one event; `value` is JSON, or the data itself if it is bytes."""
    return b"data: " + (value if isinstance(value, bytes) else _json(value)) + end + end


def _chunk(**members: Any) -> bytes:
    return sse(
        {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "upstream-name", **members}
    )


def chunk(text: str = "x", *, index: int = 0, **members: Any) -> bytes:
    """Return a content chunk as an event."""
    choice = {"index": index, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return _chunk(choices=[choice], **members)


def finish(reason: str = "stop", *, index: int = 0, **members: Any) -> bytes:
    """Return a finish chunk as an event."""
    return _chunk(choices=[{"index": index, "delta": {}, "finish_reason": reason}], **members)


def usage_chunk(prompt: int = 11, completion: int = 3) -> bytes:
    """Return the usage chunk as an event."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return _chunk(choices=[], usage=usage)


# Scripts.


def head(status: int = 200, *fields: str, content_type: str | None = "application/json", version: str = "1.1") -> bytes:
    """Return the head of an answer; `fields` are further lines."""
    lines = [f"HTTP/{version} {status} Whatever", *fields]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunked(data: bytes) -> bytes:
    """Return one chunk of the chunked transfer coding; the last one for no data."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def reply(body: bytes, *fields: str, status: int = 200, content_type: str | None = "application/json") -> Script:
    """Answer with a whole body."""

    def script(call: Call) -> None:
        call.send(head(status, *fields, f"Content-Length: {len(body)}", content_type=content_type) + body)

    return script


def reply_error(status: int, message: str = "no", **members: Any) -> Script:
    """Answer with an error as OpenAI words it."""
    error = {"message": message, "type": "some_error", "code": "some_code", "param": None, **members}
    return reply(_json({"error": error}), status=status)


def send_raw(*parts: Part, close: bool = True) -> Script:
    """Send bytes as they are, wait for events, call functions; then close the connection, or leave it open."""

    def script(call: Call) -> None:
        _send_parts(call, parts, lambda data: data)
        if close:
            call.close()

    return script


def stream(*parts: Part, end: bool = True, status: int = 200, content_type: str = _EVENT_STREAM) -> Script:
    """Answer with a stream, a transfer-coding chunk per part; `end=False` leaves it open until the router leaves."""

    def script(call: Call) -> None:
        call.send(head(status, "Transfer-Encoding: chunked", content_type=content_type))
        try:
            _send_parts(call, parts, chunked)
            if end:
                call.send(chunked(b""))
        except OSError:
            call.request.cancelled.set()
            raise
        if not end:
            call.wait_cancelled()

    return script


def hang_up(*, reset: bool = False) -> Script:
    """Answer nothing and close the connection."""

    def script(call: Call) -> None:
        if reset:
            call.reset()
        else:
            call.close()

    return script


def silent(call: Call) -> None:
    """Answer nothing and wait until the router gives up."""
    call.wait_cancelled()


def _send_parts(call: Call, parts: Sequence[Part], coded: Callable[[bytes], bytes]) -> None:
    for part in parts:
        if isinstance(part, bytes):
            call.send(coded(part))
        elif isinstance(part, threading.Event):
            _wait_or_leave(call, part)
        else:
            part()


def _wait_or_leave(call: Call, event: threading.Event) -> None:
    """Wait for the test; a test that failed and never says go must not hold this thread for long."""
    deadline = time.monotonic() + _WAIT_S
    if not event.wait(deadline - time.monotonic()):
        call.reset()
        raise ConnectionAbortedError("the test never came")


def _behave(call: Call) -> None:
    path = call.request.target.rpartition("/")[2]
    if path == "embeddings":
        reply(embedding())(call)
    elif path == "transcriptions":
        reply(_json({"text": "spoken words"}))(call)
    elif call.request.json.get("stream"):
        stream(chunk("fo"), chunk("ur"), finish(), usage_chunk(), DONE)(call)
    else:
        reply(completion())(call)
