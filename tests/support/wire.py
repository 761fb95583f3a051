"""A caller's end of a connection: any bytes out, HTTP/1.1 answers in, as slowly as the test likes."""

import contextlib
import socket
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec

__all__ = ["Answer", "Wire", "request_bytes"]

_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Answer:
    """An answer; `headers` by lower-case name, `raw_head` as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw_head: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The `error` member of the envelope."""
        error: dict[str, Any] = self.json["error"]
        return error

    @property
    def receipt_id(self) -> str:
        """The `X-Tresor-Receipt-Id`."""
        return self.headers["x-tresor-receipt-id"]


def request_bytes(
    method: str, target: str, *, key: str | None = None, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """Return a request; `Content-Length` and `Content-Type` stand before a body unless `headers` gives its own."""
    fields = {"Host": "router.test"}
    if key is not None:
        fields["Authorization"] = f"Bearer {key}"
    if body:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= headers or {}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Wire:
    """A connection; `with Wire(address, tls) as wire:`.

    Args:
        address: host and port.
        tls: a client-side context, or None for plain TCP.
    """

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None = None) -> None:
        sock = socket.create_connection(address, _TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock if tls is None else tls.wrap_socket(sock, server_hostname="localhost")
        self._data = b""
        self._left: int | None = 0  # bytes of the body still to come; None: until the connection ends
        self._chunked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.sock.sendall(data)

    def abort(self) -> None:
        """Leave with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def ask(
        self,
        method: str,
        target: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send a request and read the whole answer."""
        self.send(request_bytes(method, target, key=key, headers=headers, body=body))
        return self.read_answer(head_only=method == "HEAD")

    def read_answer(self, *, head_only: bool = False) -> Answer:
        """Read a whole answer."""
        answer = self.read_head()
        return answer if head_only else Answer(answer.status, answer.headers, self.read_body(), answer.raw_head)

    def read_head(self) -> Answer:
        """Read the head of an answer; its body is empty.  An interim one (1xx) counts."""
        while b"\r\n\r\n" not in self._data:
            self._receive()
        raw, _, self._data = self._data.partition(b"\r\n\r\n")
        status_line, *lines = raw.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"two fields {name}"
            headers[name.lower()] = value.strip()
        self._chunked = headers.get("transfer-encoding") == "chunked"
        status = int(status_line.split()[1])
        length = headers.get("content-length")
        self._left = 0 if status < 200 or self._chunked else None if length is None else int(length)
        return Answer(status, headers, b"", raw + b"\r\n\r\n")

    def read_piece(self) -> bytes:
        """Read a piece of the body as it was sent, transfer coding removed; nothing at its proper end.

        Raises:
            ConnectionError: the body was cut.
        """
        if self._chunked:
            while b"\r\n" not in self._data:
                self._receive()
            size_line, _, self._data = self._data.partition(b"\r\n")
            size = int(size_line, 16)
            while len(self._data) < size + 2:
                self._receive()
            piece, end, self._data = self._data[:size], self._data[size : size + 2], self._data[size + 2 :]
            assert end == b"\r\n"
            return piece
        if self._left is None:
            with contextlib.suppress(ConnectionError):
                if not self._data:
                    self._receive()
            piece, self._data = self._data, b""
            return piece
        if not self._left:
            return b""
        if not self._data:
            self._receive()
        piece, self._data = self._data[: self._left], self._data[self._left :]
        self._left -= len(piece)
        return piece

    def read_body(self) -> bytes:
        """Read the rest of the body."""
        parts: list[bytes] = []
        while piece := self.read_piece():
            parts.append(piece)
        return b"".join(parts)

    def read_until(self, wanted: bytes) -> bytes:
        """Read pieces of the body until `wanted` has come; return all that has."""
        got = b""
        while wanted not in got:
            piece = self.read_piece()
            assert piece, f"the body ended without {wanted!r}: {got!r}"
            got += piece
        return got

    def at_end(self) -> bool:
        """Wait for the other side to close; whether nothing came before that."""
        try:
            self._receive()
        except ConnectionError:
            return not self._data
        return False

    def _receive(self) -> None:
        data = self.sock.recv(1 << 18)
        if not data:
            raise ConnectionResetError("the connection was closed")
        self._data += data
