"""What all connections of one process share."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

from tresor.http1.sweeper import Sweeper
from tresor.limits import Limits

if TYPE_CHECKING:
    from tresor.server.connection import HttpConnection
    from tresor.server.request import Request

__all__ = ["Handler", "ServerState"]


class Handler(Protocol):
    """The application: answers one request, whatever happens."""

    def __call__(self, request: "Request", /) -> Awaitable[None]:
        """Answer `request`; cancelled when its caller has left (`request.gone`) or the process must end."""


class ServerState:
    """Shared by the connections of one listener.

    Args:
        handler: the application.
        limits: sizes and times.
        sweeper: looks at deadlines.

    Attributes:
        connections: those open now.
        serving: requests whose handler runs; it may outlive the connection.
        buffered_bytes: bytes of request bodies held now.
        draining: whether no further request is taken.
        date_header: the `Date` line of this second.
    """

    def __init__(self, handler: Handler, limits: Limits, sweeper: Sweeper) -> None:
        self.handler: Callable[[Request], Awaitable[None]] = handler
        self.limits = limits
        self.sweeper = sweeper
        self.loop = asyncio.get_running_loop()
        self.connections: set[HttpConnection] = set()
        self.serving = 0
        self.buffered_bytes = 0
        self.draining = False
        self.date_header = ""
        self._dated = 0
        self.sweep(0.0)
        sweeper.add(self)

    def sweep(self, _now: float) -> None:
        """Renew the `Date` line (RFC 9110, 6.6.1)."""
        if (second := int(time.time())) != self._dated:
            self._dated = second
            self.date_header = f"Date: {formatdate(second, usegmt=True)}\r\n"
