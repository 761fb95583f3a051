"""A listener: accepts connections on a socket that is already bound, and lets them go in order."""

import asyncio
import socket
import ssl
from typing import Final

from tresor.errors import SettingsError
from tresor.server.connection import HttpConnection
from tresor.server.state import ServerState

__all__ = ["Listener", "server_tls_context"]

_BACKLOG: Final = 1024
_SHUTDOWN_S: Final = 86_400.0  # a connection knows better when to give a caller up
_CANCEL_GRACE_S: Final = 5.0


class Listener:
    """Serves HTTP/1.1 on one socket.

    Args:
        state: what its connections share.
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._server: asyncio.Server | None = None

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept connections."""
        self._server = await self._state.loop.create_server(
            lambda: HttpConnection(self._state),
            sock=sock,
            ssl=tls,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if tls is None else self._state.limits.head_timeout_s,
            ssl_shutdown_timeout=None if tls is None else _SHUTDOWN_S,
        )

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, let what runs end within `timeout_s`, cancel the rest and let it say so."""
        if self._server is not None:
            self._server.close()
        self._state.draining = True
        for connection in tuple(self._state.connections):
            connection.close_when_idle()
        if not await self._empty_within(timeout_s):
            for connection in tuple(self._state.connections):
                connection.cancel()
            await self._empty_within(_CANCEL_GRACE_S)

    async def _empty_within(self, timeout_s: float) -> bool:
        deadline = self._state.loop.time() + timeout_s
        while self._state.connections or self._state.serving:
            if self._state.loop.time() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True


def server_tls_context(certificate_file: str, key_file: str) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and 1.3 with HTTP/1.1 as the only protocol.

    Raises:
        SettingsError: the files cannot be read, or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # SSLKEYLOGFILE, whoever sets it, would open every prompt to a reader.
    context.keylog_filename = None  # type: ignore[assignment]  # None is its default
    try:
        context.load_cert_chain(certificate_file, key_file)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(f"{certificate_file} and {key_file} cannot be used together: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context
