"""The connections to one upstream.

`acquire` gives a connection that is ready for a request: an idle one that is still whole, or a new one.  Where the
upstream is attested, every connection is held against the pin of its channel before it is given out, pooled or new.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tresor import __version__
from tresor.attestation.hop import HopKind, HopPolicy
from tresor.errors import UpstreamError
from tresor.http1.sweeper import Sweeper
from tresor.limits import Limits
from tresor.routing.gate import ConcurrencyGate
from tresor.routing.health import UpstreamHealth
from tresor.routing.view import UpstreamView
from tresor.settings.load import Secret
from tresor.settings.model import UpstreamSettings
from tresor.upstreams.channel import Asking, AttestedChannel, Endorse, Standing, unattested
from tresor.upstreams.connection import UpstreamConnection

__all__ = ["Attestation", "UpstreamPool"]

_PORTS = {"http": 80, "https": 443}
_OK = 200
_ASK_TIMEOUT_S = 30.0
"""From the question to the whole answer; a vendor's quoting service may take seconds."""
_MAX_ANSWER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What is demanded of an upstream, and by which protocol it is asked.

    Attributes:
        kind: the protocol.
        policy: what is demanded.
        trust_bundle: of a Tresor node: the bundle to use; None to take the one it serves.
        endorse: gets endorsements.
    """

    kind: HopKind
    policy: HopPolicy
    trust_bundle: bytes | None
    endorse: Endorse


class UpstreamPool:
    """Connections to one upstream.

    Args:
        settings: the upstream's settings.
        api_key: its key, sent as a bearer token.
        ca_file: certificates to trust in place of the system's.
        limits: sizes and counts.
        sweeper: looks at deadlines.
        attestation: what is demanded of the upstream; None where the operator asks for no evidence.

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
        attestation: Attestation | None = None,
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
            self._tls.options |= ssl.OP_NO_RENEGOTIATION  # the key is looked at once
            # SSLKEYLOGFILE, whoever sets it, would open every prompt to a reader.
            self._tls.keylog_filename = None  # type: ignore[assignment]  # None is its default
            self._tls.set_alpn_protocols(["http/1.1"])
        self._idle: deque[UpstreamConnection] = deque()
        self._loop = asyncio.get_running_loop()
        host = f"[{self._host}]" if ":" in self._host else self._host
        authority = host if url.port is None else f"{host}:{url.port}"
        origin_headers = f"Host: {authority}\r\nUser-Agent: tresor/{__version__}\r\nAccept-Encoding: identity\r\n"
        credentials = "" if api_key is None else f"Authorization: Bearer {api_key.reveal()}\r\n"
        self._common_headers = (
            f"{origin_headers}{credentials}{'' if settings.keep_alive else 'Connection: close' + chr(13) + chr(10)}"
        )
        self._question_headers = origin_headers + (credentials if settings.attestation_with_api_key else "")
        self.reachable = True
        self.health = UpstreamHealth()
        self.gate = ConcurrencyGate(
            settings.max_concurrent_requests, settings.max_queued_requests, settings.queue_timeout_s
        )
        self._unattested = unattested(settings.provider)
        self.channel = None if attestation is None else self._make_channel(attestation)
        sweeper.add(self)

    def __repr__(self) -> str:
        return f"<UpstreamPool {self.settings.region}/{self.settings.provider} idle={len(self._idle)}>"

    def request_head(self, path: str, content_type: str, accept: str, body_bytes: int) -> bytes:
        """Return the head of a `POST` to `path` below the upstream's base URL."""
        return (
            f"POST {self._path}{path} HTTP/1.1\r\n{self._common_headers}Content-Type: {content_type}\r\n"
            f"Accept: {accept}\r\nContent-Length: {body_bytes}\r\n\r\n"
        ).encode("latin-1")

    @property
    def standing(self) -> Standing | None:
        """What is known of the upstream now; None where it must be verified and is not."""
        return self._unattested if self.channel is None else self.channel.standing

    @property
    def usable(self) -> bool:
        """Whether a prompt could be sent now: the upstream is reachable, and verified where it must be."""
        return self.reachable and self.standing is not None

    def view(self) -> UpstreamView:
        """Return what routing is to know of the upstream now."""
        at, standing, channel = self._loop.time(), self.standing, self.channel
        return UpstreamView(
            available=self.health.available(at),
            attested=channel is not None,
            attestation="unverified" if channel is None else channel.state.value,
            claims=frozenset() if standing is None else standing.proven,
            fresh_until=0.0 if standing is None else standing.expires_at,
            latency_s=self.health.latency_s(at),
            weight=self.settings.weight,
            in_flight=self.gate.in_flight,
            limit=self.gate.limit,
        )

    def take(self) -> UpstreamConnection | None:
        """Return an idle connection ready for a request, its `standing` set; None where there is none.

        Raises:
            UpstreamError: what is behind it is not what was verified; nothing was sent.
        """
        standing = self.standing
        if standing is None or (connection := self._idle_connection()) is None:
            return None
        self._check_pin(connection, standing)
        connection.standing = standing
        return connection

    async def acquire(self, deadline: float) -> UpstreamConnection:
        """Return a connection ready for a request, its `standing` set.

        Args:
            deadline: `loop.time()` by which it must be there.

        Raises:
            UpstreamError: it cannot be had, or what is behind it is not what was verified; nothing was sent.
        """
        while True:
            standing = self.standing
            if standing is None and self.channel is not None:
                standing = await self.channel.ensure(self._time_left(deadline))
            connection = self._idle_connection() or await self._connect(deadline)
            if standing is self.standing and standing is not None:  # else it expired or was renewed meanwhile
                self._check_pin(connection, standing)
                connection.standing = standing
                return connection
            connection.abort()

    def _idle_connection(self) -> UpstreamConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.quiet:
                return connection
            connection.abort()
        return None

    def _check_pin(self, connection: UpstreamConnection, standing: Standing) -> None:
        if standing.pin is None or connection.peer_spki_sha256 == standing.pin:
            return
        connection.abort()
        if self.channel is not None:
            self.channel.key_changed()
        raise UpstreamError("pin_mismatch", "the connection ends at another key than the one that was attested")

    def release(self, connection: UpstreamConnection) -> None:
        """Take a connection back; one that is not whole is closed at once, which cancels what runs on it."""
        keep = self.settings.keep_alive and len(self._idle) < self._limits.max_idle_upstream_connections
        standing = self.standing  # by now perhaps of another key: no news, and no reason to verify anew
        if keep and connection.reusable and standing and standing.pin in (None, connection.peer_spki_sha256):
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        else:
            connection.abort()

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long."""
        while self._idle and now - self._idle[0].idle_since > self._limits.upstream_keep_alive_s:
            self._idle.popleft().abort()

    async def close(self) -> None:
        """Close every idle connection, and verify no more."""
        self._sweeper.remove(self)
        self._drop_idle()
        if self.channel is not None:
            await self.channel.close()

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().abort()

    async def prepare(self) -> None:
        """Verify the upstream, or see whether it can be reached, before the first caller comes."""
        if self.channel is None:
            await self.probe()
            return
        with contextlib.suppress(UpstreamError):  # tried again, and said in readiness
            await self.channel.ensure(self.settings.connect_timeout_s)

    async def probe(self) -> None:
        """Note whether the upstream can be reached, and keep the connection that showed it."""
        if self.channel is not None and self.reachable:  # whose verification shows it
            return
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

    def _make_channel(self, attestation: Attestation) -> AttestedChannel:
        asking = Asking(
            kind=attestation.kind,
            policy=attestation.policy,
            trust_bundle=attestation.trust_bundle,
            max_age_s=self.settings.attestation_max_age_s,
            get=self._get,
            endorse=attestation.endorse,
        )
        return AttestedChannel(self.settings.provider, asking, on_change=self._drop_idle)

    async def _get(self, targets: tuple[str, ...]) -> tuple[bytes, tuple[bytes, ...]]:
        """Fetch paths of the upstream's origin over one new connection; see `Asking.get`."""
        connection = await self._connect(self._loop.time() + self.settings.connect_timeout_s)
        spki, bodies = connection.peer_spki_sha256, []
        try:
            if spki is None:
                raise UpstreamError("tls_failed", "the connection has no TLS, so nothing can be bound to it")
            connection.deadline = self._loop.time() + _ASK_TIMEOUT_S
            for target in targets:
                connection.send(f"GET {target} HTTP/1.1\r\n{self._question_headers}\r\n".encode("latin-1"), b"")
                head = await connection.read_head()
                if head.status != _OK:
                    path = target.partition("?")[0]
                    raise UpstreamError(
                        "upstream_status", f"{path} was answered with {head.status}", status=head.status
                    )
                bodies.append(await connection.read_whole(_MAX_ANSWER_BYTES))
                if not connection.reusable and target != targets[-1]:
                    raise UpstreamError("connection_lost", "the upstream closed the connection between two questions")
        finally:
            connection.abort()
        return spki, tuple(bodies)

    def _time_left(self, deadline: float) -> float:
        return min(self.settings.connect_timeout_s, max(0.0, deadline - self._loop.time()))

    async def _connect(self, deadline: float) -> UpstreamConnection:
        try:
            async with asyncio.timeout(self._time_left(deadline)):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self._limits, self._sweeper),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except OSError as error:  # TimeoutError and SSLError are kinds of it
            if self.channel is not None:  # which no probe watches over, but for whether it is back
                self.reachable = False
            raise _connect_error(error) from error
        self.reachable = True
        return connection


def _connect_error(error: OSError) -> UpstreamError:
    if isinstance(error, TimeoutError):
        return UpstreamError("timeout", "the upstream did not accept a connection in time")
    if isinstance(error, ssl.SSLError):
        return UpstreamError("tls_failed", "the TLS handshake with the upstream failed")
    return UpstreamError("connect_failed", "the upstream cannot be reached")
