"""The connections to one upstream.

`acquire` gives a connection that is ready for a request: an idle one that is still whole, or a new one.  The check of
an upstream's identity belongs between the handshake and the first byte, that is into `_connect`.
"""

import asyncio
import ssl
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

from tresor import __version__
from tresor.errors import UpstreamError
from tresor.http1.sweeper import Sweeper
from tresor.limits import Limits
from tresor.settings.load import Secret
from tresor.settings.model import UpstreamSettings
from tresor.upstreams.connection import UpstreamConnection

__all__ = ["UpstreamPool"]

_PORTS = {"http": 80, "https": 443}


class UpstreamPool:
    """Connections to one upstream.

    Args:
        settings: the upstream's settings.
        api_key: its key, sent as a bearer token.
        ca_file: certificates to trust in place of the system's.
        limits: sizes and counts.
        sweeper: looks at deadlines.

    Raises:
        OSError, ssl.SSLError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        api_key: Secret | None,
        ca_file: Path | None,
        limits: Limits,
        sweeper: Sweeper,
    ) -> None:
        url = urlsplit(settings.base_url)
        self.settings = settings
        self._host = url.hostname or ""
        self._port = url.port or _PORTS[url.scheme]
        self._path = url.path.rstrip("/")
        self._limits = limits
        self._sweeper = sweeper
        self._tls = ssl.create_default_context(cafile=ca_file) if url.scheme == "https" else None
        if self._tls is not None:
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
            self._tls.set_alpn_protocols(["http/1.1"])
        self._idle: deque[UpstreamConnection] = deque()
        self._loop = asyncio.get_running_loop()
        host = f"[{self._host}]" if ":" in self._host else self._host
        authority = host if url.port is None else f"{host}:{url.port}"
        credentials = "" if api_key is None else f"Authorization: Bearer {api_key.reveal()}\r\n"
        self._common_headers = (
            f"Host: {authority}\r\nUser-Agent: tresor/{__version__}\r\nAccept-Encoding: identity\r\n{credentials}"
            f"{'' if settings.keep_alive else 'Connection: close' + chr(13) + chr(10)}"
        )
        self.reachable = True
        sweeper.add(self)

    def __repr__(self) -> str:
        return f"<UpstreamPool {self.settings.region}/{self.settings.provider} idle={len(self._idle)}>"

    def request_head(self, path: str, content_type: str, accept: str, body_bytes: int) -> bytes:
        """Return the head of a `POST` to `path` below the upstream's base URL."""
        return (
            f"POST {self._path}{path} HTTP/1.1\r\n{self._common_headers}Content-Type: {content_type}\r\n"
            f"Accept: {accept}\r\nContent-Length: {body_bytes}\r\n\r\n"
        ).encode("latin-1")

    async def acquire(self, deadline: float) -> UpstreamConnection:
        """Return a connection ready for a request.

        Args:
            deadline: `loop.time()` by which it must be there.

        Raises:
            UpstreamError: it cannot be had.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.quiet:
                return connection
            connection.abort()
        return await self._connect(deadline)

    def release(self, connection: UpstreamConnection) -> None:
        """Take a connection back; one that is not whole is closed at once, which cancels what runs on it."""
        keep = self.settings.keep_alive and len(self._idle) < self._limits.max_idle_upstream_connections
        if keep and connection.reusable:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        else:
            connection.abort()

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long."""
        while self._idle and now - self._idle[0].idle_since > self._limits.upstream_keep_alive_s:
            self._idle.popleft().abort()

    def close(self) -> None:
        """Close every idle connection."""
        self._sweeper.remove(self)
        while self._idle:
            self._idle.pop().abort()

    async def probe(self) -> None:
        """Note whether the upstream can be reached, and keep the connection that showed it."""
        if any(connection.reusable for connection in self._idle):  # those whose peer has gone stay until they are swept
            self.reachable = True
            return
        try:
            connection = await self._connect(self._loop.time() + self.settings.connect_timeout_s)
        except UpstreamError:
            self.reachable = False  # said here alone: an exchange gives up for reasons of its caller's, too
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)

    async def _connect(self, deadline: float) -> UpstreamConnection:
        timeout_s = min(self.settings.connect_timeout_s, max(0.0, deadline - self._loop.time()))
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self._limits, self._sweeper),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except OSError as error:  # TimeoutError and SSLError are kinds of it
            raise _connect_error(error) from error
        self.reachable = True
        return connection


def _connect_error(error: OSError) -> UpstreamError:
    if isinstance(error, TimeoutError):
        return UpstreamError("timeout", "the upstream did not accept a connection in time")
    if isinstance(error, ssl.SSLError):
        return UpstreamError("tls_failed", "the TLS handshake with the upstream failed")
    return UpstreamError("connect_failed", "the upstream cannot be reached")
