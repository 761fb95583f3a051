"""One connection of a caller: bytes to requests, one at a time, and every way a caller can misbehave.

Parsing is llhttp's (httptools), in its strict mode: two framings at once, bare CR, folded fields and the like are
refused.  What is ours are the limits and deadlines that the parser does not have, and what becomes of a request whose
caller left:

    head    `max_head_bytes`, `head_timeout_s`                                431 or 408, then closed
    body    `max_body_bytes`, `max_buffered_bytes`, `body_timeout_s`          413, 503 or 408, then closed
    framing `max_head_bytes` of chunk extensions, tiny chunks and trailers    431, then closed
    answer  `write_timeout_s` without a byte taken                            cut
    idle    `keep_alive_timeout_s`                                            closed

An answer sent before its request was read to the end is followed by a lingering close: what still comes is thrown away
for a while, so that the caller gets to see the answer (RFC 9112 section 9.6).
"""

import asyncio
import itertools
import logging
import os
import socket
import struct
import traceback
from collections import deque
from typing import Final, cast

import httptools

from tresor.errors import RequestError
from tresor.http1.fields import combine
from tresor.server.request import Request
from tresor.server.state import ServerState
from tresor.wire.envelope import encode_envelope

__all__ = ["HttpConnection"]

_log = logging.getLogger(__name__)

_LINGER_S: Final = 2.0  # without a byte
_MAX_LINGER_S: Final = 30.0
_GOODBYE_S: Final = 2.0
_CHUNK_OVERHEAD: Final = 16
_MAX_PIPELINED: Final = 16
_NEVER: Final = float("inf")
_TCP_INFO: Final = struct.Struct("=24xI92xQ16xI")  # tcpi_unacked, tcpi_bytes_acked, tcpi_notsent_bytes; linux/tcp.h
_WRITE_HIGH_WATER: Final = 256 * 1024
_LENGTH: Final = frozenset({"content-length", "transfer-encoding"})
_id_prefix: Final = f"req_{os.urandom(6).hex()}"
_id_counter: Final = itertools.count()


class HttpConnection(asyncio.Protocol):
    """Reads requests and runs the application's handler for each, in order.

    Args:
        server: what all connections share.
    """

    def __init__(self, server: ServerState) -> None:
        self._server = server
        self._limits = server.limits
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._reading: Request | None = None  # whose head or body is being parsed
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0  # fed since the last message ended; -1 while a body is read
        self._excess_bytes = 0  # of the body's framing, beyond what honest chunks need
        self._serving: Request | None = None
        self._queued: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None  # of all requests: one for each would cost more
        self._next: asyncio.Future[None] | None = None  # what it waits for between two of them
        self._responded = False
        self._broken = False  # what arrives is no HTTP any more
        self._lingering = False
        self._leaving = False  # to be closed once the caller has taken what waits
        self._writable: asyncio.Future[None] | None = None
        self._read_deadline = _NEVER
        self._write_deadline = _NEVER
        self._acknowledged = 0  # by the caller's system, when the write deadline was set
        self._linger_until = _NEVER
        self.closing = False

    def __repr__(self) -> str:
        return f"<HttpConnection serving={self._serving!r} queued={len(self._queued)} lingering={self._lingering}>"

    @property
    def date_header(self) -> str:
        """The `Date` line of this second."""
        return self._server.date_header

    @property
    def peer(self) -> str:
        """Address of the other end, without its port."""
        name = None if self._transport is None else self._transport.get_extra_info("peername")
        return str(name[0]) if name else ""

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; refuse where the process has as many connections as it may."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        self._server.connections.add(self)
        self._server.sweeper.add(self)
        self._read_deadline = self._server.loop.time() + self._limits.head_timeout_s
        if len(self._server.connections) > self._limits.max_connections:
            self._refuse(RequestError(503, "service_unavailable", "too many connections", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it was lost makes no difference
        """Cancel the handler: nobody listens any more."""
        self._server.connections.discard(self)
        self._server.sweeper.remove(self)
        self._transport = None
        for request in (*self._queued, self._reading):
            if request is not None and request is not self._serving:
                self._release(request)
        self._queued.clear()
        self.resume_writing()
        if self._serving is not None:
            self._serving.gone = True
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._lingering:
            self._read_deadline = min(self._server.loop.time() + _LINGER_S, self._linger_until)
            return
        if self._broken or self._leaving or self._transport is None:
            return
        if self._head_bytes >= 0:
            if self._head_bytes == 0:
                self._read_deadline = self._server.loop.time() + self._limits.head_timeout_s
            self._head_bytes += len(data)
        else:
            self._read_deadline = self._server.loop.time() + self._limits.body_timeout_s
            self._excess_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(RequestError(400, "invalid_field", "Upgrade is not offered: send HTTP/1.1 without it"))
        except httptools.HttpParserCallbackError as error:
            self._refuse(error.__context__ if isinstance(error.__context__, RequestError) else _not_http())
        except httptools.HttpParserError:
            self._refuse(_not_http())
        if max(self._head_bytes, self._excess_bytes) > self._limits.max_head_bytes and not self._lingering:
            self._refuse(self._head_too_large())

    def pause_writing(self) -> None:
        """Note that the caller takes less than it is sent."""
        self._writable = self._server.loop.create_future()
        if self._transport is not None:
            self._await_taking(self._transport)

    def resume_writing(self) -> None:
        """Note that the caller has taken most of it, or left."""
        self._write_deadline = _NEVER
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        if self._leaving and self._transport is not None:
            self._close(self._transport)

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Begin a request."""
        if len(self._queued) >= _MAX_PIPELINED:
            raise RequestError(400, "invalid_field", f"more than {_MAX_PIPELINED} requests ahead of their answers")
        self._reading = Request(self, f"{_id_prefix}{next(_id_counter):x}")
        self._target = b""
        self._fields = []
        # Once more than in `data_received`: this one may have begun in the bytes that ended the one before.
        self._read_deadline = self._server.loop.time() + self._limits.head_timeout_s

    def on_url(self, url: bytes) -> None:
        """Take a part of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field.  Trailers are none: what stands behind the body was not there when it was looked at."""
        if self._head_bytes >= 0:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Start the handler, or queue the request behind the one that runs."""
        request = self._reading
        if request is None:
            return
        request.method = self._parser.get_method().decode("latin-1")
        request.version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive()
        request.set_target(self._target)
        request.headers = combine(self._fields)
        if request.version not in ("1.0", "1.1"):
            raise RequestError(400, "invalid_field", "HTTP version is neither 1.0 nor 1.1")
        if request.version == "1.1" and "host" not in request.headers:
            raise RequestError(400, "missing_field", "Host is missing (RFC 9112, 3.2)", param="Host")
        if "," in request.headers.get("host", ""):
            raise RequestError(400, "invalid_field", "Host is not one host (RFC 9112, 3.2)", param="Host")
        if self._parser.should_upgrade() and (_LENGTH & request.headers.keys()):  # the parser would skip the body
            raise RequestError(
                400, "invalid_field", "Upgrade is not offered: send HTTP/1.1 without it", param="Upgrade"
            )
        if request.headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise RequestError(
                400,
                "invalid_field",
                "Transfer-Encoding is not chunked alone (RFC 9112, 6.1)",
                param="Transfer-Encoding",
            )
        if len(self._target) + sum(map(len, request.headers.values())) > self._limits.max_head_bytes:
            raise self._head_too_large()
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._limits.max_body_bytes:
            request.incoming.fail(self._body_too_large())
        self._head_bytes = -1
        self._excess_bytes = 0
        self._read_deadline = self._server.loop.time() + self._limits.body_timeout_s
        if self._serving is None:
            self._serve(request)
        else:
            self._queued.append(request)

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body, within the limits."""
        size = len(data)
        self._excess_bytes = max(0, self._excess_bytes - 3 * size - _CHUNK_OVERHEAD)
        if self._reading is None or self._reading.incoming.failed:
            return
        body = self._reading.incoming
        if body.size + size > self._limits.max_body_bytes:
            self._fail_body(self._reading, self._body_too_large())
        elif self._server.buffered_bytes + size > self._limits.max_buffered_bytes:
            self._fail_body(
                self._reading, RequestError(503, "service_unavailable", "too many bodies at once", retry_after_s=1)
            )
        else:
            self._server.buffered_bytes += size
            body.feed(data)

    def on_message_complete(self) -> None:
        """Hand the body over."""
        self._head_bytes = self._excess_bytes = 0
        self._read_deadline = _NEVER
        if self._reading is not None:
            self._reading.incoming.finish()
            self._reading = None

    # Called by the request, and by whoever drains the process.

    def write(self, data: bytes) -> None:
        """Send bytes; dropped where the caller has left."""
        if self._transport is not None:
            self._transport.write(data)

    @property
    def congested(self) -> bool:
        """Whether the caller takes less than it is sent."""
        return self._writable is not None

    async def drain(self) -> None:
        """Wait until most of what was written has been taken."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def response_complete(self) -> None:
        """End the connection where it does not outlive this response."""
        self._responded = True
        if self._serving is not None and not self._serving.keep_alive:
            self._close_lingering()

    def close_when_idle(self) -> None:
        """Take no further request; close at once where none is being served."""
        self.closing = True
        if self._serving is None and self._reading is None and self._head_bytes == 0 and self._transport is not None:
            self._close(self._transport)

    def cancel(self) -> None:
        """Cancel what is being served; the process must end."""
        if self._serving is not None and self._task is not None:
            self._task.cancel()

    def sweep(self, now: float) -> None:
        """Act on deadlines that have passed."""
        if self._transport is None:
            return
        if now > self._write_deadline:
            self._look_at_writing(self._transport)
        elif now > self._read_deadline:
            self._read_deadline = _NEVER
            if self._lingering or (self._reading is None and self._head_bytes == 0):
                self._close(self._transport)
            elif self._head_bytes >= 0:
                self._refuse(RequestError(408, "request_timeout", "the request's head did not arrive in time"))
            elif self._reading is not None:
                self._fail_body(
                    self._reading, RequestError(408, "request_timeout", "the request's body stopped arriving")
                )

    def _await_taking(self, transport: asyncio.Transport) -> None:
        """Give the caller time to take something of what was sent."""
        self._acknowledged, _ = _taken(transport)
        self._write_deadline = self._server.loop.time() + self._limits.write_timeout_s

    def _look_at_writing(self, transport: asyncio.Transport) -> None:
        """Cut a caller who takes nothing; one who is slow gets as much time again."""
        if _taken(transport)[0] == self._acknowledged:
            transport.abort()
        self._await_taking(transport)

    # Serving.

    def _serve(self, request: Request) -> None:
        self._begin(request)
        if self._next is not None:
            self._next.set_result(None)
        elif self._task is None:
            self._task = self._server.loop.create_task(self._run())
            self._task.add_done_callback(self._ended)

    def _begin(self, request: Request) -> None:
        self._serving = request
        self._responded = False
        self._server.serving += 1

    async def _run(self) -> None:
        """Serve one request after another, until the connection is lost."""
        while self._transport is not None:
            if self._serving is None:
                self._next = self._server.loop.create_future()
                await self._next
                self._next = None
            else:
                try:
                    await self._server.handler(self._serving)
                except asyncio.CancelledError:
                    pass  # the caller left, or the process ends; the handler has done its duty
                except Exception as error:  # noqa: BLE001 - a request must not take the process with it
                    _fail(self._serving, error)
                self._served()

    def _served(self) -> None:
        request, self._serving = self._serving, None
        if request is None:
            raise RuntimeError("what ended served nothing")
        self._server.serving -= 1
        self._release(request)
        if self._transport is None or self._lingering or self._leaving or self._transport.is_closing():
            return
        if not self._responded:
            self._transport.abort()  # a response that never ended must not look like one that did
        elif self._queued:
            self._begin(self._queued.popleft())
        elif self.closing:
            self._close(self._transport)
        elif self._reading is None and self._head_bytes == 0:
            self._read_deadline = self._server.loop.time() + self._limits.keep_alive_timeout_s

    def _ended(self, _task: "asyncio.Task[None]") -> None:
        """Take note of a request that was cancelled before its handler began."""
        if self._serving is not None:
            self._served()

    def _release(self, request: Request) -> None:
        self._server.buffered_bytes -= request.incoming.size
        request.incoming.size = 0

    def _fail_body(self, request: Request, error: RequestError) -> None:
        self._release(request)
        request.incoming.fail(error)

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request, unless an answer is already on its way, and end the connection."""
        self.closing = self._broken = True
        if self._serving is not None:
            if self._reading is not None:  # the one that is served, or one that waits behind it
                self._fail_body(self._reading, error)
            return
        request = self._reading or Request(self, f"{_id_prefix}{next(_id_counter):x}")
        request.keep_alive = False
        retry = f"Retry-After: {error.retry_after_s}\r\n" if error.retry_after_s else ""
        request.respond(error.status, encode_envelope(error, request.id), headers=retry)
        self._close_lingering()

    def _close(self, transport: asyncio.Transport) -> None:
        """Close once the caller has taken what waits."""
        self._leaving = True
        if self._writable is None:
            transport.close()
            self._await_taking(transport)  # closed, it says no more whether the caller takes anything
            if self._server.draining:
                self._server.loop.call_later(_GOODBYE_S, self._end_goodbye, transport)

    def _end_goodbye(self, transport: asyncio.Transport) -> None:
        """End a connection of a process that is to end, once the caller has taken everything.

        TLS ends with a goodbye and waits for the caller's; one who is idle does not give it.
        """
        if self._transport is None:
            return
        if _taken(transport)[1]:
            self._server.loop.call_later(_GOODBYE_S, self._end_goodbye, transport)
        else:
            transport.abort()

    def _close_lingering(self) -> None:
        """Close once the caller has, or after a while; until then throw away what it still sends."""
        if self._transport is None or self._lingering:
            return
        unread = self._reading is not None or self._head_bytes > 0
        if not unread:
            self._close(self._transport)
            return
        self._lingering = True
        self._read_deadline = self._server.loop.time() + _LINGER_S
        self._linger_until = self._server.loop.time() + _MAX_LINGER_S
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _head_too_large(self) -> RequestError:
        return RequestError(431, "head_too_large", f"the head is larger than {self._limits.max_head_bytes} bytes")

    def _body_too_large(self) -> RequestError:
        return RequestError(413, "payload_too_large", f"the body is larger than {self._limits.max_body_bytes} bytes")


def _taken(transport: asyncio.Transport) -> tuple[int, bool]:
    """Return how many bytes the caller's system has acknowledged, and whether there are others.

    Buffers of this process do not tell: below TLS there is one that cannot be asked, and the system says only rarely
    that there is room in its own (tcp(7), `TCP_INFO`).  A transport that is closed may have let its socket go.
    """
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except (AttributeError, OSError):
        return 0, False
    unacked, bytes_acked, unsent = _TCP_INFO.unpack(info)
    return bytes_acked, bool(unacked or unsent or transport.get_write_buffer_size())


def _fail(request: Request, error: Exception) -> None:
    """Log what a handler did not handle: its type and the way to it, for a message could quote what a caller sent."""
    trace = "".join(traceback.format_tb(error.__traceback__))
    _log.error("handler failed", extra={"request": request.id, "fault": type(error).__name__, "trace": trace})
    if request.status is None:
        fault = RequestError(500, "internal_error", "something went wrong here, not with your request")
        request.respond(fault.status, encode_envelope(fault, request.id))


def _not_http() -> RequestError:
    return RequestError(400, "invalid_field", "the bytes received are not an HTTP/1.1 request")
