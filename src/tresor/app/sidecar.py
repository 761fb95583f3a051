"""`tresor sidecar`: an attested reverse proxy in front of a local inference server.

It makes an attested inference node out of any confidential virtual machine: callers verify `GET /attestation` and pin
the TLS key, and every other request goes to the backend, bytes untouched in both directions.  It signs nothing but its
own attestation, keeps nothing, and knows no customers: who may call is for the backend, or the router in front, to say.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import ssl
import sys
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from tresor.app.attesting import Attesting
from tresor.app.identity import attested_keys, trust_bundle_file
from tresor.app.lifeline import when_cut
from tresor.app.supervisor import bind
from tresor.collateral.endorse import endorser
from tresor.errors import KeyNotAttestedError, RequestError, UpstreamError
from tresor.http1.sweeper import Sweeper
from tresor.identity.attested_keys import AttestedKeys
from tresor.issuer.keys import KeyAttestation
from tresor.server.listener import Listener, server_tls_context
from tresor.server.request import Request
from tresor.server.state import ServerState
from tresor.settings.load import LoadedNode
from tresor.settings.model import BackendSettings, ModelSettings, SidecarSettings, UpstreamSettings
from tresor.upstreams.connection import ResponseHead, UpstreamConnection
from tresor.upstreams.pool import UpstreamPool
from tresor.wire.envelope import encode_envelope

__all__ = ["run_sidecar"]

_log = logging.getLogger(__name__)

_UPKEEP_S: Final = 1.0
_PROBE_EVERY: Final = 5
_NEVER: Final = float("inf")
# RFC 9110, 7.6.1; framing and these are each hop's own.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_NO_CONTENT: Final = 204
_BODILESS: Final = frozenset({_NO_CONTENT, 304})


def run_sidecar(loaded: LoadedNode[SidecarSettings], lifeline_fd: int | None) -> int:
    """Run a sidecar until SIGTERM, SIGINT or the end of whoever holds the lifeline; return its exit code.

    Raises:
        SettingsError: the address is taken.
        KeyNotAttestedError: manifest or certificate cannot be used.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # prompts in memory never reach a disk
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(loaded, lifeline_fd))
    return 0


class _HeldKey:
    """The key that the sidecar's evidence binds in the place of a receipt key; it signs nothing."""

    def __init__(self, keys: AttestedKeys) -> None:
        self._keys = keys
        self.signing_key: ec.EllipticCurvePrivateKey = keys.make()
        self.attestation: KeyAttestation | None = None
        self.attestation_fault: str | None = None

    @property
    def may_sign(self) -> bool:
        """Whether evidence binds the key now."""
        return self.attestation is not None and time.time() < self.attestation.expires_at

    async def renew_attestation(self) -> None:
        """Have the key bound anew."""
        try:
            self.attestation = await asyncio.to_thread(self._keys.attest, self.signing_key)
        except KeyNotAttestedError as error:
            self.attestation_fault = f"{error.code}: {error}"
            _log.error("evidence not renewed", extra={"code": error.code, "fault": str(error)})
        else:
            self.attestation_fault = None


class _Sidecar:
    """Answers every request of the sidecar."""

    def __init__(self, attesting: Attesting, key: _HeldKey, pool: UpstreamPool, backend: BackendSettings) -> None:
        self._attesting = attesting
        self._key = key
        self._pool = pool
        self._idle_timeout_s = backend.idle_timeout_s
        self._host = urlsplit(backend.base_url).netloc
        self._own = {
            "/attestation": attesting.attestation,
            "/.well-known/tresor-trust-bundle": attesting.trust_bundle,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    async def __call__(self, request: Request) -> None:
        try:
            own = self._own.get(request.path)
            if own is None:
                await self._forward(request)
            elif request.method in ("GET", "HEAD"):
                await own(request)
            else:
                raise RequestError(405, "method_not_allowed", "want GET, HEAD", allow="GET, HEAD")
        except RequestError as error:
            _respond_error(request, error)

    async def _healthz(self, request: Request) -> None:
        request.respond(200, b'{"status":"ok"}')

    async def _readyz(self, request: Request) -> None:
        checks = {"attestation": self._key.may_sign, "backend": self._pool.reachable}
        fault = self._key.attestation_fault
        ready = all(checks.values())
        document = {
            "status": "ready" if ready else "not_ready",
            "checks": checks,
            "faults": {} if fault is None else {"attestation": fault.partition(":")[0]},
        }
        request.respond(200 if ready else 503, msgspec.json.encode(document))

    async def _forward(self, request: Request) -> None:
        if request.method == "CONNECT":
            raise RequestError(400, "invalid_field", "CONNECT is not offered: there is one server behind this")
        if not self._key.may_sign:
            raise self._attesting.unavailable()
        body = await request.body()
        try:
            connection = await self._pool.acquire(_NEVER)
        except UpstreamError as error:
            raise RequestError(503, "service_unavailable", "the inference server cannot be reached") from error
        try:
            connection.deadline = _NEVER
            connection.silence_s = self._idle_timeout_s
            connection.send(self._head(request, len(body)), body, head_only=request.method == "HEAD")
            head = await connection.read_head()
            await self._relay(request, connection, head)
        except UpstreamError as error:
            if request.status is not None:  # the answer has begun; unended, it is cut and does not look whole
                return
            if error.reason == "timeout":
                raise RequestError(504, "upstream_timeout", "the inference server did not answer in time") from error
            raise RequestError(502, "upstream_error", "the inference server gave no usable answer") from error
        finally:
            self._pool.release(connection)

    def _head(self, request: Request, body_bytes: int) -> bytes:
        fields = _end_to_end(request.headers.items(), request.headers.get("connection", ""))
        length = f"content-length: {body_bytes}\r\n" if body_bytes or request.method in _WITH_BODY else ""
        return f"{request.method} {request.target} HTTP/1.1\r\nhost: {self._host}\r\n{fields}{length}\r\n".encode(
            "latin-1"
        )

    async def _relay(self, request: Request, connection: UpstreamConnection, head: ResponseHead) -> None:
        fields = (field for field in head.fields if field[0] != "date")  # every response of the sidecar's has its own
        headers = _end_to_end(fields, head.headers.get("connection", ""))
        if "x-request-id" in head.headers:
            request.extra_headers = ""
        if request.method == "HEAD" or head.status in _BODILESS:
            length = head.headers.get("content-length")
            stated = length is not None and head.status != _NO_CONTENT
            request.respond_bodiless(head.status, headers + (f"content-length: {length}\r\n" if stated else ""))
            return
        first = await connection.read()
        if not first or (connection.finished and not connection.end_unproven):
            request.respond(head.status, first, None, headers)
            return
        request.start_stream(head.status, None, headers)
        while first:
            request.write(first)
            await request.drain()
            first = await connection.read()
        request.end_stream()


def _end_to_end(fields: Iterable[tuple[str, str]], connection: str) -> str:
    """Return the header lines that are for the other end, given the value of `Connection`, which names more of them."""
    hop_by_hop = _HOP_BY_HOP | {name.strip().lower() for name in connection.split(",")}
    return "".join(f"{name}: {value}\r\n" for name, value in fields if name not in hop_by_hop)


def _respond_error(request: Request, error: RequestError) -> None:
    headers = "" if error.retry_after_s is None else f"Retry-After: {error.retry_after_s}\r\n"
    if error.allow is not None:
        headers += f"Allow: {error.allow}\r\n"
    request.respond(error.status, encode_envelope(error, request.id), headers=headers)


async def _serve(loaded: LoadedNode[SidecarSettings], lifeline_fd: int | None) -> None:
    settings = loaded.settings
    server, identity, backend = settings.server, settings.identity, settings.backend
    endorse = endorser(loaded.path(identity.collateral_directory), online=identity.fetch_collateral)
    keys = attested_keys(loaded, endorse, loaded.path("tresor-identity.lock"))
    key, sweeper, stop = _HeldKey(keys), Sweeper(), asyncio.Event()
    attesting = Attesting(key, keys, trust_bundle_file(loaded), nonces_per_minute=identity.nonces_per_minute)
    pool = UpstreamPool(
        UpstreamSettings(
            provider="backend",
            region="local",
            base_url=backend.base_url,
            attestation="none",
            connect_timeout_s=backend.connect_timeout_s,
            keep_alive=backend.keep_alive,
            models=(ModelSettings(key="any", upstream_name="any"),),
        ),
        api_key=None,
        ca_file=None,
        limits=settings.limits,
        sweeper=sweeper,
    )
    listener = Listener(ServerState(_Sidecar(attesting, key, pool, backend), settings.limits, sweeper))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if lifeline_fd is not None:
        when_cut(lifeline_fd, stop.set)
    sweeper.start()
    sock = bind(server.listen, "server.listen")
    host, port = sock.getsockname()[:2]
    await attesting.upkeep()
    await pool.probe()
    await listener.start(sock, _tls(loaded))
    sys.stdout.write(f"tresor sidecar: listening on {loaded.public_origin} ({host} port {port})\n")
    sys.stdout.flush()
    upkeep = asyncio.create_task(_upkeep(attesting, pool))
    await stop.wait()
    await listener.drain(server.drain_timeout_s)
    upkeep.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await upkeep
    await pool.close()
    sweeper.stop()


def _tls(loaded: LoadedNode[SidecarSettings]) -> ssl.SSLContext:
    server = loaded.settings.server
    if server.tls_certificate_file is None or server.tls_key_file is None:
        raise RuntimeError("settings without certificate were let through")
    return server_tls_context(str(loaded.path(server.tls_certificate_file)), str(loaded.path(server.tls_key_file)))


async def _upkeep(attesting: Attesting, pool: UpstreamPool) -> None:
    turn = 0
    while True:
        await asyncio.sleep(_UPKEEP_S)
        turn += 1
        await attesting.upkeep()
        if turn % _PROBE_EVERY == 0:
            await pool.probe()
