"""One connection to an upstream: HTTP/1.1 with the exact bytes of every body, and cancellation at once.

General clients hide what the router must know: the bytes as received, the moment the first of them left or came, and
the peer's certificate before anything is sent.  Parsing is llhttp's (httptools); the rest is this file.

Sequence: `send`, `read_head`, `read` until it returns nothing; then the connection may be used again if `reusable`
says so.
"""

import asyncio
import hashlib
import select
from collections.abc import Callable
from typing import Final, cast

import httptools
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tresor.errors import AttemptReason, UpstreamError
from tresor.http1.fields import combine, field_name
from tresor.http1.sweeper import Sweeper
from tresor.limits import Limits
from tresor.upstreams.channel import Standing

__all__ = ["ResponseHead", "UpstreamConnection"]

_NEVER: Final = float("inf")
_READ_HIGH_WATER: Final = 1 << 20


class ResponseHead:
    """Status and header fields of an answer.

    Args:
        status: HTTP status.
        fields: the header fields, as they came.

    Attributes:
        headers: by lower-case name; values of a repeated field joined by `, `.
    """

    __slots__ = ("_fields", "headers", "status")

    def __init__(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self._fields = fields
        self.headers = combine(fields)

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status}>"

    @property
    def fields(self) -> list[tuple[str, str]]:
        """All header fields with lower-case names, in order."""
        return [(field_name(name), value.decode("latin-1")) for name, value in self._fields]

    @property
    def media_type(self) -> str:
        """The `Content-Type` without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class UpstreamConnection(asyncio.Protocol):
    """Carries one exchange after another.

    Args:
        limits: sizes.
        sweeper: looks at deadlines.

    Attributes:
        deadline: `loop.time()` at which the exchange is given up.
        silence_s: how long a read may wait before the exchange is given up.
        on_silence: called when a read has waited for `comment_after_s`, and again after as long.
        idle_since: `loop.time()` at which it came back to the pool.
        peer_spki_sha256: SHA-256 of the SubjectPublicKeyInfo of the peer's certificate, 32 bytes; None without TLS.
        standing: what was known of the upstream when the connection was given out.
        end_unproven: whether the body ended with the connection and TLS does not show who ended that (RFC 9112, 9.8):
            an answer that does not say itself that it is whole may have been cut.
    """

    def __init__(self, limits: Limits, sweeper: Sweeper) -> None:
        self._limits = limits
        self._sweeper = sweeper
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._fields: list[tuple[bytes, bytes]] = []
        self._head: ResponseHead | None = None
        self._head_bytes = 0
        self._body: list[bytes] = []
        self.on_body = self._body.append  # called by the parser for every chunk of a stream
        self._parser = httptools.HttpResponseParser(self)
        self._body_bytes = 0
        self._message_complete = True
        self._head_only = False
        self._paused = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_since = _NEVER
        self._silence_noted_at = 0.0
        self.on_silence: Callable[[], None] | None = None
        self.comment_after_s = _NEVER
        self.deadline = _NEVER
        self.silence_s = _NEVER
        self._keep_alive = True
        self.idle_since = 0.0
        self.peer_spki_sha256: bytes | None = None
        self.standing: Standing | None = None
        self.end_unproven = False

    def __repr__(self) -> str:
        return f"<UpstreamConnection head={self._head} complete={self._message_complete} {self._error!r}>"

    # Called by whoever has an exchange.

    def send(self, head: bytes, body: bytes, *, head_only: bool = False) -> None:
        """Send a request; the connection must be fresh or `reusable`.

        With `head_only`, the answer has no body whatever its head says: that to HEAD (RFC 9112, 6.3).
        """
        if self._transport is None:
            raise self._error or UpstreamError("connection_lost", "the connection was closed")
        self._fields = []
        self._head = None
        self._head_bytes = 0
        self._message_complete = False
        self._head_only = head_only
        self.on_silence = None
        self._transport.write(head + body)

    async def read_head(self) -> ResponseHead:
        """Return the head of the answer.

        Raises:
            UpstreamError: it did not come, not in time, or is no HTTP.
        """
        while self._head is None:
            await self._wait()
        return self._head

    async def read(self) -> bytes:
        """Return the bytes of the body that are there by now, at least one; none at its proper end.

        Raises:
            UpstreamError: the body was cut, or may have been (`end_unproven`), fell silent or is no HTTP.
        """
        while not self._body:
            self.require_proven_end()
            if self._message_complete:
                return b""
            await self._wait()
        return self._take()

    def require_proven_end(self) -> None:
        """Raise `UpstreamError` where the answer may have been cut (`end_unproven`)."""
        if self.end_unproven:
            raise UpstreamError("connection_lost", "the connection ended, and nothing shows that the answer did")

    async def read_whole(self, most: int) -> bytes:
        """Return the whole body; where its end is not proven, whoever reads it must see that it is whole.

        Raises:
            UpstreamError: as `read`, or it is longer than `most` bytes.
        """
        parts: list[bytes] = []
        size = 0
        while self._body or not self._message_complete:
            if not self._body:
                await self._wait()
                continue
            data = self._take()
            parts.append(data)
            size += len(data)
            if size > most:
                raise UpstreamError("invalid_response", f"the answer is longer than {most} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take(self) -> bytes:
        """Return what of the body is there."""
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._body_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def reusable(self) -> bool:
        """Whether a further exchange may go over this connection: the last one is whole, and nothing came behind it."""
        if self._transport is None or self._transport.is_closing() or self._error is not None:
            return False
        return self._message_complete and not self._body and self._keep_alive

    @property
    def finished(self) -> bool:
        """Whether the answer has been read to its end."""
        return self._message_complete and not self._body

    @property
    def quiet(self) -> bool:
        """Whether nothing lies in the socket that has not been read yet: a FIN, or bytes nobody asked for."""
        return not self._poll.poll(0)

    def abort(self) -> None:
        """Close at once, whatever goes on."""
        if self._transport is not None:
            self._transport.abort()

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            key = x509.load_der_x509_certificate(tls.getpeercert(True)).public_key()
            spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            self.peer_spki_sha256 = hashlib.sha256(spki).digest()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._sweeper.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: properly, where the body lasts until the connection ends; otherwise something was cut."""
        self._sweeper.remove(self)
        self._transport = None
        if self._head is not None and not self._message_complete and exc is None and _ends_with_connection(self._head):
            self._keep_alive = False
            self._message_complete = True
            self.end_unproven = self.peer_spki_sha256 is not None
            self._wake()
        elif not self._message_complete:
            self._fail("connection_lost", "the connection was closed before the end of the answer")

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._message_complete:  # nobody asked: the connection is of no further use
            self.abort()
            return
        head = self._head
        if head is not None:
            self._body_bytes += len(data)  # framing included: a bound for what is held, no count
        else:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("invalid_response", "what was received is not an HTTP/1.1 response")
            self.abort()
            return
        if self._head is None and self._head_bytes > self._limits.max_head_bytes:
            self._fail("invalid_response", f"the head of the answer is larger than {self._limits.max_head_bytes} bytes")
            self.abort()
        elif self._body or self.finished or self._head is not head:
            self._wake()
        if self._body_bytes <= _READ_HIGH_WATER or self._message_complete:
            return
        if not self._body:  # nobody will take it
            self._fail("invalid_response", f"more than {_READ_HIGH_WATER} bytes of framing hold no content")
            self.abort()
        elif not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Take no second answer to one request: it could be taken for that to the next."""
        if self._message_complete:
            raise ValueError("an answer behind the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field.  Trailers are none: what stands behind the body was not there when it was looked at."""
        if self._head is None:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Take the head; one of status 1xx announces another (RFC 9110, 15.2)."""
        status = self._parser.get_status_code()
        if not 100 <= status <= 599:  # noqa: PLR2004 - the five classes of RFC 9110, 15
            raise ValueError("a status of no class")
        if status >= 200:  # noqa: PLR2004 - the first status that is final
            head = ResponseHead(status, self._fields)
            if head.headers.get("transfer-encoding", "chunked").lower() != "chunked":
                raise ValueError("a transfer coding that is not undone here")
            self._head = head
            if self._head_only:  # the parser waits for a body all the same: the connection is not used again
                self._keep_alive = False
                self._message_complete = True
        else:
            self._fields = []

    def on_message_complete(self) -> None:
        """Take note of the body's end."""
        if self._head is not None:
            self._keep_alive = self._parser.should_keep_alive()
            self._message_complete = True

    # Deadlines.

    def sweep(self, now: float) -> None:
        """Give up what has lasted too long."""
        if self._waiter is None:
            return
        if now > self.deadline or now - self._waiting_since > self.silence_s:
            self._fail("timeout", "the upstream did not answer in time")
            self.abort()
        elif (
            self.on_silence is not None
            and now - max(self._waiting_since, self._silence_noted_at) > self.comment_after_s
        ):
            self._silence_noted_at = now
            self.on_silence()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        self._waiting_since = self._loop.time()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, reason: AttemptReason, message: str) -> None:
        if self._error is None and not self._message_complete:  # an answer that is whole can fail no more
            self._error = UpstreamError(reason, message)
        self._wake()


def _ends_with_connection(head: ResponseHead) -> bool:
    headers = head.headers
    return "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", "").lower()
