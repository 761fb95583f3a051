"""Connections to an attested upstream over real TLS on loopback: what an upstream's own log shows before and after.

Every byte that a connection brings is recorded by the upstream; where the router refuses it, no prompt is among them.
"""

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec

from support.ceremony import Ceremony, amd_ceremony, fingerprint, simulated_ceremony, spki_of
from tresor.attestation import node
from tresor.attestation.hop import HopPolicy
from tresor.errors import UpstreamError
from tresor.http1.sweeper import Sweeper
from tresor.limits import Limits
from tresor.settings.load import Secret
from tresor.settings.model import UpstreamSettings
from tresor.upstreams import pool as pool_module
from tresor.upstreams.channel import AttestedChannel, ChannelState
from tresor.upstreams.connection import UpstreamConnection
from tresor.upstreams.pool import Attestation, UpstreamPool

_T = TypeVar("_T")

KEY: Final = ec.generate_private_key(ec.SECP256R1()).public_key()
PROMPT: Final = b'{"prompt":"canary-7f3a"}'
LONG_S: Final = 20.0
MAX_BYTES: Final = 4 << 20
ASKED: Final = ["/attestation", "/.well-known/tresor-trust-bundle"]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@dataclass(frozen=True)
class Certificates:
    """An authority, and two certificates for localhost with keys of their own."""

    ca_file: Path
    files: tuple[Path, Path]

    def spki_sha256(self, number: int) -> bytes:
        return spki_of(self.files[number])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    files = (folder / "0.pem", folder / "1.pem")
    for file in files:
        issued = authority.issue_cert("localhost", "127.0.0.1")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(file, append=True)
        issued.private_key_pem.write_to_path(file, append=True)
    return Certificates(folder / "ca.pem", files)


Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Nonce and connection to an answer of the attestation endpoint."""


def reply(body: bytes, status: str = "200 OK", fields: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Node:
    """A Tresor node.

    Attributes:
        received: everything that each connection brought, in the order of their handshakes.
        keys: the number of the key that each of them ended at.
        gone: how many have ended.
        greeting: what is sent before anything has come.
        attested: number of the key that its evidence binds; None for the one that new connections end at.
        answer: answers the question for evidence, in the place of an envelope.
    """

    def __init__(self, ceremony: Ceremony, certificates: Certificates, *, tls: bool = True) -> None:
        self.ceremony, self.certificates = ceremony, certificates
        self.received: list[bytearray] = []
        self.keys: list[int] = []
        self.gone = 0
        self.greeting = b""
        self.key = 0
        self.attested: int | None = None
        self.answer: Answer | None = None
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if tls else None
        self.present(0)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def present(self, number: int) -> None:
        """Have new connections end at key `number`."""
        self.key = number
        if self._tls is not None:
            self._tls.load_cert_chain(self.certificates.files[number])

    @property
    def requests(self) -> list[list[str]]:
        """The paths that each connection asked for."""
        return [
            [
                line.split()[-2].partition(b"?")[0].decode()
                for line in bytes(data).split(b"\r\n")
                if b" HTTP/1.1" in line
            ]
            for data in self.received
        ]

    def everything(self) -> bytes:
        return b"".join(self.received)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Serve, on the port that is returned."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        try:
            yield self._server.sockets[0].getsockname()[1]
        finally:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        record = bytearray()
        self.received.append(record)
        self.keys.append(self.key)
        writer.write(self.greeting)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, ssl.SSLError):
                while True:
                    await self._exchange(record, reader, writer)
        finally:
            self.gone += 1
            writer.transport.abort()
            self._tasks.discard(task)

    async def _exchange(self, record: bytearray, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = len(record)
        while not record[start:].endswith(b"\r\n\r\n"):
            record += await reader.readexactly(1)
        line, _, fields = bytes(record[start:]).partition(b"\r\n")
        url = urlsplit(line.split()[1].decode())
        if b"Content-Length: " in fields:
            record += await reader.readexactly(int(fields.partition(b"Content-Length: ")[2].split(b"\r\n")[0]))
        match url.path:
            case "/attestation":
                nonce = bytes.fromhex(parse_qs(url.query)["nonce"][0])
                await (self.answer or self.envelope)(nonce, writer)
            case "/.well-known/tresor-trust-bundle":
                writer.write(reply(self.ceremony.bundle().encode()))
            case _:
                writer.write(reply(b"{}"))
        await writer.drain()

    async def envelope(self, nonce: bytes, writer: asyncio.StreamWriter) -> None:
        """Answer with evidence."""
        spki = self.certificates.spki_sha256(self.key if self.attested is None else self.attested)
        writer.write(reply(self.ceremony.envelope(spki, KEY, nonce=nonce)))


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ceremony:
    ceremony, host = amd_ceremony(tmp_path, "inference")
    monkeypatch.setitem(node._PINNED, "amd", frozenset({fingerprint(host.amd.ark)}))
    return ceremony


@pytest.fixture
def upstream(amd: Ceremony, certificates: Certificates) -> Node:
    return Node(amd, certificates)


@asynccontextmanager
async def pooled(
    upstream: Node, *, scheme: str = "https", ca_file: Path | None = None, **changes: Any
) -> AsyncIterator[UpstreamPool]:
    """Run an upstream, and a pool of connections to it."""
    policy = HopPolicy(release_root=upstream.ceremony.trust_key, **changes.pop("policy", {}))
    async with upstream.running() as port:
        usual = {
            "provider": "acme",
            "region": "eu",
            "base_url": f"{scheme}://127.0.0.1:{port}/v1",
            "attestation": "tresor",
            "models": [{"key": "m", "upstream_name": "m"}],
        }
        sweeper = Sweeper()
        sweeper.start()
        pool = UpstreamPool(
            msgspec.convert(usual | changes, UpstreamSettings),
            api_key=Secret("sk-canary-91c2", "a test"),
            ca_file=ca_file or upstream.certificates.ca_file,
            limits=Limits(),
            sweeper=sweeper,
            attestation=Attestation(kind="tresor", policy=policy, trust_bundle=None, endorse=lambda _, held: held),
        )
        try:
            yield pool
        finally:
            await pool.close()
            sweeper.stop()
            await asyncio.sleep(0.02)  # until the last connection has seen that it is closed
    assert len(asyncio.all_tasks()) == 1, "a task outlives its test"


def channel_of(pool: UpstreamPool) -> AttestedChannel:
    assert pool.channel is not None
    return pool.channel


def deadline(seconds: float = LONG_S) -> float:
    return asyncio.get_running_loop().time() + seconds


async def prompted(pool: UpstreamPool, connection: UpstreamConnection) -> None:
    """Send a prompt, read the answer and give the connection back."""
    head = pool.request_head("/chat/completions", "application/json", "application/json", len(PROMPT))
    connection.send(head, PROMPT)
    assert (await connection.read_head()).status == 200
    assert await connection.read_whole(100) == b"{}"
    pool.release(connection)


async def refusal(attempt: Awaitable[_T]) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await attempt
    return caught.value


async def settled(pool: UpstreamPool) -> None:
    while (running := channel_of(pool)._verification) is not None:
        await asyncio.wait({running}, timeout=LONG_S)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not holds():  # noqa: ASYNC110 - what happens at the other end sets no event
            await asyncio.sleep(0.005)


# --- Verified first


@in_loop
async def test_evidence_comes_first_and_over_a_connection_of_its_own(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        usable = [pool.usable]
        await pool.prepare()
        usable.append(pool.usable)
        assert usable == [False, True]
        assert channel_of(pool).state is ChannelState.VERIFIED
        connection = await pool.acquire(deadline())
        assert connection.standing is pool.standing
        await eventually(lambda: len(upstream.received) == 2)
        assert upstream.requests == [ASKED, []]
        await prompted(pool, connection)
        assert upstream.requests == [ASKED, ["/v1/chat/completions"]]


@in_loop
async def test_the_question_carries_no_key(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        await pool.prepare()
        assert b"sk-canary" not in upstream.everything()
        await prompted(pool, await pool.acquire(deadline()))
        assert b"sk-canary" in upstream.received[1]


@in_loop
async def test_nobody_waits_where_it_is_verified(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        for _ in range(3):
            await prompted(pool, await pool.acquire(deadline()))
        assert upstream.requests == [ASKED, ["/v1/chat/completions"] * 3]


@in_loop
async def test_requests_of_a_cold_start_share_one_verification(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        connections = await asyncio.gather(*(pool.acquire(deadline()) for _ in range(8)))
        await asyncio.gather(*(prompted(pool, connection) for connection in connections))
        assert upstream.requests.count(ASKED) == 1
        assert len(upstream.requests) == 9


# --- Held against the pin


@in_loop
async def test_new_connection_that_ends_at_another_key(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        await pool.prepare()
        upstream.present(1)
        error = await refusal(pool.acquire(deadline()))
        assert error.reason == "pin_mismatch"
        await settled(pool)
        assert upstream.requests == [ASKED, [], ASKED]  # not a byte over the connection that was refused
        connection = await pool.acquire(deadline())
        assert connection.peer_spki_sha256 == upstream.certificates.spki_sha256(1)
        await prompted(pool, connection)


@in_loop
async def test_new_connection_that_ends_at_a_key_without_evidence(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        await pool.prepare()
        upstream.present(1)
        upstream.attested = 0
        assert (await refusal(pool.acquire(deadline()))).reason == "pin_mismatch"
        for _ in range(3):
            assert (await refusal(pool.acquire(deadline()))).reason == "attestation_failed"
        assert (channel_of(pool).state, pool.usable) == (ChannelState.REFUSED, False)
        assert b"canary" not in upstream.everything()


@in_loop
async def test_idle_connections_go_with_their_key(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        first, second = [await pool.acquire(deadline()) for _ in range(2)]
        await prompted(pool, first)
        upstream.present(1)
        await prompted(pool, second)
        assert len(pool._idle) == 2
        channel_of(pool).key_changed()
        assert not pool._idle
        assert (await pool.acquire(deadline())).peer_spki_sha256 == upstream.certificates.spki_sha256(1)
        await eventually(lambda: upstream.gone >= 4)
        assert sum(requests == ["/v1/chat/completions"] for requests in upstream.requests) == 2


@in_loop
async def test_connection_of_an_old_key_is_not_taken_back(upstream: Node) -> None:
    """It comes back after the key has changed: that is no news, and the new key stays verified."""
    async with pooled(upstream) as pool:
        old = await pool.acquire(deadline())
        upstream.present(1)
        channel_of(pool).key_changed()
        await settled(pool)
        standing = pool.standing
        await prompted(pool, old)
        assert not pool._idle
        await prompted(pool, await pool.acquire(deadline()))
        assert pool.standing is standing


@in_loop
async def test_pooled_connection_is_held_against_the_pin(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        old = await pool.acquire(deadline())
        upstream.present(1)
        channel_of(pool).key_changed()
        await settled(pool)
        pool._idle.append(old)  # which `release` would not do
        before = len(upstream.everything())
        assert (await refusal(pool.acquire(deadline()))).reason == "pin_mismatch"
        await settled(pool)
        assert b"canary" not in upstream.everything()[before:]


@in_loop
async def test_reconnection_is_held_against_the_pin(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        connection = await pool.acquire(deadline())
        await prompted(pool, connection)
        connection.abort()  # as if the upstream had
        upstream.present(1)
        upstream.attested = 0
        assert (await refusal(pool.acquire(deadline()))).reason == "pin_mismatch"
        assert upstream.everything().count(PROMPT) == 1
        await settled(pool)


@in_loop
async def test_nothing_is_sent_on_evidence_that_has_expired(upstream: Node) -> None:
    async with pooled(upstream, attestation_max_age_s=0.2) as pool:
        await prompted(pool, await pool.acquire(deadline()))
        upstream.attested = 1
        await asyncio.sleep(0.25)
        assert not pool.usable
        assert not pool._idle
        assert (await refusal(pool.acquire(deadline()))).reason == "attestation_failed"
        assert upstream.everything().count(PROMPT) == 1


@in_loop
async def test_key_that_changes_under_load(upstream: Node) -> None:
    """While there is no evidence for the new key, not one of many callers sends a prompt to it."""
    served = 0

    async def caller(pool: UpstreamPool) -> None:
        nonlocal served
        while True:
            with suppress(UpstreamError):
                await prompted(pool, await pool.acquire(deadline()))
                served += 1
            await asyncio.sleep(0.001)

    async with pooled(upstream) as pool:

        def noticed() -> bool:
            pool._drop_idle()  # as when a balancer moves on
            return channel_of(pool).state is ChannelState.REFUSED

        await pool.prepare()
        callers = [asyncio.create_task(caller(pool)) for _ in range(16)]
        await eventually(lambda: served > 100)
        upstream.attested = 0
        upstream.present(1)
        await eventually(noticed)
        await asyncio.sleep(0.1)
        to_new_key = [data for data, key in zip(upstream.received, upstream.keys, strict=True) if key == 1]
        assert len(to_new_key) > 1
        assert not any(b"canary" in data for data in to_new_key)
        before, upstream.attested = served, None
        channel_of(pool).key_changed()
        await eventually(lambda: served > before + 100)
        for running in callers:
            running.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


@in_loop
async def test_evidence_that_expires_during_a_handshake(upstream: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(upstream) as pool:
        await pool.prepare()
        connect = pool._connect

        async def slow(until: float) -> UpstreamConnection:
            monkeypatch.setattr(pool, "_connect", connect)
            connection = await connect(until)
            channel_of(pool)._standing = None
            return connection

        monkeypatch.setattr(pool, "_connect", slow)
        connection = await pool.acquire(deadline())
        assert connection.standing is pool.standing
        await eventually(lambda: len(upstream.received) == 4)
        assert upstream.requests == [ASKED, [], ASKED, []]


# --- Attestation endpoints that misbehave


def answering(data: bytes) -> Answer:
    async def answer(_nonce: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


async def chunked_for_ever(_nonce: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(2000):
        writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        await writer.drain()


async def drip(_nonce: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def silence(_nonce: bytes, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(LONG_S)


async def hang_up(_nonce: bytes, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


ELSEWHERE: Final = "Location: /elsewhere\r\n"


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("upstream_status", answering(reply(b"", "301 Moved Permanently", ELSEWHERE))),
        ("upstream_status", answering(reply(b"", "302 Found", ELSEWHERE))),
        (
            "upstream_status",
            answering(reply(b"", "308 Permanent Redirect", "Location: http://127.0.0.1/attestation\r\n")),
        ),
        ("upstream_status", answering(reply(b"{}", "404 Not Found"))),
        ("upstream_status", answering(reply(b"{}", "500 Internal Server Error"))),
        ("upstream_status", answering(b"HTTP/1.1 204 No Content\r\n\r\n")),
        ("invalid_response", answering(reply(bytes(MAX_BYTES + 1)))),
        ("evidence_too_large", answering(reply(bytes(MAX_BYTES)))),
        ("invalid_response", chunked_for_ever),
        ("invalid_response", answering(b"SSH-2.0-OpenSSH_9.2\r\n" * 9)),
        ("invalid_response", answering(bytes(range(256)) * 40)),
        ("invalid_response", answering(b"HTTP/1.1 200 OK\r\nX: " + bytes(1 << 16))),
        ("evidence_malformed", answering(reply(b""))),
        ("evidence_malformed", answering(reply(b"\xff\xfe garbage"))),
        ("connection_lost", hang_up),
        ("connection_lost", answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")),
    ],
)
@in_loop
async def test_no_prompt_leaves_for(upstream: Node, code: str, answer: Answer) -> None:
    upstream.answer = answer
    async with pooled(upstream) as pool:
        assert (await refusal(pool.acquire(deadline()))).reason == "attestation_failed"
        assert (channel_of(pool).state, channel_of(pool).reason) == (ChannelState.REFUSED, code)
        assert not pool.usable
        assert upstream.requests in ([ASKED], [ASKED[:1]])
        assert b"canary" not in upstream.everything()


@pytest.mark.parametrize("answer", [drip, silence], ids=["slow drip", "silence"])
@in_loop
async def test_an_endpoint_that_takes_for_ever(upstream: Node, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_ASK_TIMEOUT_S", 0.6)
    upstream.answer = answer
    async with pooled(upstream) as pool:
        before = asyncio.get_running_loop().time()
        error = await refusal(pool.acquire(deadline(0.1)))
        assert asyncio.get_running_loop().time() - before < 0.5
        assert "in time" in str(error)
        assert channel_of(pool).state is ChannelState.UNVERIFIED  # it goes on
        await settled(pool)
        assert (channel_of(pool).state, channel_of(pool).reason) == (ChannelState.REFUSED, "timeout")
        assert b"canary" not in upstream.everything()


# --- Without TLS, or with somebody else's


@in_loop
async def test_plaintext_has_nothing_to_bind(amd: Ceremony, certificates: Certificates) -> None:
    upstream = Node(amd, certificates, tls=False)
    async with pooled(upstream, scheme="http") as pool:
        await refusal(pool.acquire(deadline()))
        assert channel_of(pool).reason == "tls_failed"
        assert upstream.everything() == b""


@in_loop
async def test_downgrade_to_plaintext(amd: Ceremony, certificates: Certificates) -> None:
    upstream = Node(amd, certificates, tls=False)
    upstream.greeting = reply(b"{}", "400 Bad Request")
    async with pooled(upstream) as pool:
        await refusal(pool.acquire(deadline()))
        assert channel_of(pool).reason == "tls_failed"
        assert b"HTTP/1.1" not in upstream.everything()  # nothing but the beginning of a handshake


@in_loop
async def test_certificate_of_another_authority(upstream: Node, tmp_path: Path) -> None:
    other = tmp_path / "other-ca.pem"
    trustme.CA().cert_pem.write_to_path(other)
    async with pooled(upstream, ca_file=other) as pool:
        await refusal(pool.acquire(deadline()))
        assert (channel_of(pool).reason, pool.reachable) == ("tls_failed", False)
        assert upstream.everything() == b""


# --- Simulated


@in_loop
async def test_simulation(tmp_path: Path, certificates: Certificates) -> None:
    upstream = Node(simulated_ceremony(tmp_path, "inference"), certificates)
    async with pooled(upstream, policy={"allow_simulated": True}) as pool:
        connection = await pool.acquire(deadline())
        assert channel_of(pool).state is ChannelState.UNVERIFIED
        assert pool.usable
        assert connection.standing is not None
        assert connection.standing.proven == frozenset()
        await prompted(pool, connection)
        upstream.present(1)
        channel_of(pool).key_changed()
        assert not pool._idle
        await settled(pool)


@in_loop
async def test_simulation_that_is_not_allowed(tmp_path: Path, certificates: Certificates) -> None:
    upstream = Node(simulated_ceremony(tmp_path, "inference"), certificates)
    async with pooled(upstream) as pool:
        await refusal(pool.acquire(deadline()))
        assert (channel_of(pool).reason, pool.usable) == ("simulated_not_allowed", False)
        assert b"canary" not in upstream.everything()


# --- Reachable


@in_loop
async def test_a_caller_without_time_does_not_take_an_upstream_away(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        await pool.prepare()
        assert (await refusal(pool.acquire(deadline(0)))).reason == "timeout"
        await pool.probe()
        assert pool.usable
        await prompted(pool, await pool.acquire(deadline()))


@in_loop
async def test_closed_pool_asks_nobody(upstream: Node) -> None:
    async with pooled(upstream) as pool:
        await pool.prepare()
        await prompted(pool, await pool.acquire(deadline()))
        await pool.close()
        await eventually(lambda: upstream.gone == 2)
        channel_of(pool).upkeep()
        assert len(upstream.received) == 2
