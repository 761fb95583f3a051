"""One request and its response, as the application sees them."""

import asyncio
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qsl, unquote

from tresor.errors import RequestError

__all__ = ["JSON", "IncomingBody", "Request", "ResponseSink"]

JSON: Final = "application/json"
_AUTHORITY: Final = re.compile(r"[^/?#]*")
_STATUS_LINE: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


class ResponseSink(Protocol):
    """Where a response goes: the connection the request came on."""

    closing: bool
    """Whether the connection ends behind this response."""

    @property
    def congested(self) -> bool:
        """Whether so much of what was written has not been taken that it is time to `drain`."""

    @property
    def date_header(self) -> str:
        """The `Date` line of this second."""

    @property
    def peer(self) -> str:
        """Address of the other end of the connection, without its port."""

    def write(self, data: bytes) -> None:
        """Send bytes; dropped where the caller has left."""

    async def drain(self) -> None:
        """Wait until most of what was written has been taken."""

    def response_complete(self) -> None:
        """Take note that the response has been written to its end."""


class IncomingBody:
    """The body of a request while it arrives."""

    __slots__ = ("_error", "_parts", "_waiter", "complete", "size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.complete = False
        self.size = 0

    @property
    def failed(self) -> bool:
        """Whether no more of it is taken."""
        return self._error is not None

    def feed(self, data: bytes) -> None:
        """Take a piece."""
        self._parts.append(data)
        self.size += len(data)

    def finish(self) -> None:
        """Take note that it is whole."""
        self.complete = True
        self._wake()

    def fail(self, error: RequestError) -> None:
        """Give up on it; whoever reads it gets `error`."""
        self._error = error
        self._parts.clear()
        self._wake()

    async def read(self) -> bytes:
        """Return all of it, once it is there."""
        if not self.complete and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Request:
    """A request whose head has been read.  Its body is read when asked for; one response is sent for it.

    Attributes:
        method: as sent.
        target: as sent, path and query (RFC 9112, 3.2).
        path: percent-decoded, without the query.
        headers: by lower-case name; values of a repeated field joined by `, ` (RFC 9110 section 5.3).
        id: the `X-Request-Id` of the response.
        extra_headers: header lines that the response gets whoever sends it, each ended by CRLF.
        incoming: the body while it arrives.
        keep_alive: whether the connection outlives the response.
        gone: whether the caller closed the connection; the task that handles the request is then cancelled.
        status: status of the response, once it has begun.
    """

    __slots__ = (
        "_query",
        "_sink",
        "_unsent_head",
        "extra_headers",
        "gone",
        "headers",
        "id",
        "incoming",
        "keep_alive",
        "method",
        "path",
        "status",
        "target",
        "version",
    )

    def __init__(self, sink: ResponseSink, request_id: str) -> None:
        self._sink = sink
        self._query = ""
        self._unsent_head = b""
        self.id = request_id
        self.method = ""
        self.path = ""
        self.target = ""
        self.version = "1.1"
        self.headers: dict[str, str] = {}
        self.extra_headers = f"X-Request-Id: {request_id}\r\n"
        self.incoming = IncomingBody()
        self.keep_alive = True
        self.gone = False
        self.status: int | None = None

    def __repr__(self) -> str:
        return f"<Request {self.id} {self.method} body={self.incoming.size} status={self.status}>"

    @property
    def query(self) -> Mapping[str, str]:
        """Members of the query, the last one of a name."""
        return dict(parse_qsl(self._query, keep_blank_values=True))

    @property
    def peer(self) -> str:
        """Address of the caller, or of the proxy in front."""
        return self._sink.peer

    async def body(self) -> bytes:
        """Read the whole body.

        Raises:
            RequestError: 413 beyond the limit, 408 when it stops coming, 503 when too much is held already.
        """
        expected = self.version == "1.1" and self.headers.get("expect", "").lower() == "100-continue"
        if expected and not self.incoming.complete and not self.incoming.failed:
            self._sink.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await self.incoming.read()

    def respond(self, status: int, body: bytes, content_type: str | None = JSON, headers: str = "") -> None:
        """Send a whole response.

        Args:
            status: HTTP status.
            body: its bytes.
            content_type: its media type; None where `headers` says it, or nothing does.
            headers: further header lines, each ended by CRLF.
        """
        length = "" if status == HTTPStatus.NO_CONTENT else f"Content-Length: {len(body)}\r\n"  # RFC 9110, 8.6
        head = self._head(status, f"{_typed(content_type)}{length}{headers}")
        self._sink.write(head if self.method == "HEAD" else head + body)
        self._sink.response_complete()

    def respond_bodiless(self, status: int, headers: str) -> None:
        """Send a response that has no body whatever its header lines say: one to HEAD, or of status 204 or 304."""
        self._sink.write(self._head(status, headers))
        self._sink.response_complete()

    def start_stream(self, status: int, content_type: str | None, headers: str = "") -> None:
        """Begin a response whose body follows in pieces; its head leaves with the first of them."""
        coding = "Transfer-Encoding: chunked\r\n"
        if self.version == "1.0":  # which knows no chunks: the end of the connection ends the body
            coding = ""
            self.keep_alive = False
        self._unsent_head = self._head(status, f"{_typed(content_type)}{coding}{headers}")

    def write(self, data: bytes) -> None:
        """Send a piece of the body, not empty."""
        head, self._unsent_head = self._unsent_head, b""
        self._sink.write(head + data if self.version == "1.0" else b"%b%x\r\n%b\r\n" % (head, len(data), data))

    @property
    def congested(self) -> bool:
        """Whether the caller takes less than it is sent; then it is time to `drain`."""
        return self._sink.congested

    async def drain(self) -> None:
        """Wait until the caller has taken most of what was sent."""
        await self._sink.drain()

    def finish_stream(self, data: bytes) -> None:
        """Send the last piece of the body, not empty, and its end."""
        head, self._unsent_head = self._unsent_head, b""
        framed = head + data if self.version == "1.0" else b"%b%x\r\n%b\r\n0\r\n\r\n" % (head, len(data), data)
        self._sink.write(framed)
        self._sink.response_complete()

    def end_stream(self) -> None:
        """Send the end of a body all of which has been sent."""
        head, self._unsent_head = self._unsent_head, b""
        self._sink.write(head if self.version == "1.0" else head + b"0\r\n\r\n")
        self._sink.response_complete()

    def set_target(self, target: bytes) -> None:
        """Take the request target; of an absolute one the path counts (RFC 9112, 3.2.2)."""
        text = target.decode("latin-1")
        if not text.startswith("/") and "://" in text:
            rest = _AUTHORITY.sub("", text.partition("://")[2], count=1)
            text = rest if rest.startswith("/") else f"/{rest}"
        self.target = text
        path, _, self._query = text.partition("?")
        self.path = unquote(path) if "%" in path else path

    def _head(self, status: int, headers: str) -> bytes:
        self.status = status
        if self._sink.closing or not self.incoming.complete:
            self.keep_alive = False
        if not self.keep_alive:
            headers += "Connection: close\r\n"
        elif self.version == "1.0":
            headers += "Connection: keep-alive\r\n"
        line = _STATUS_LINE.get(status) or f"HTTP/1.1 {status} Unknown\r\n"
        return f"{line}{self._sink.date_header}{headers}{self.extra_headers}\r\n".encode("latin-1")


def _typed(content_type: str | None) -> str:
    return "" if content_type is None else f"Content-Type: {content_type}\r\n"
