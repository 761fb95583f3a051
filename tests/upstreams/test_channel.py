"""The attested channel, by a clock that is given: when it asks, what it keeps, and when nothing may be sent."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.ceremony import Ceremony, amd_ceremony, fingerprint, simulated_ceremony
from support.fake_providers import ANCHORS, AT, COLLATERAL, OTHER, SPKI, aci, aci_keyset
from tresor.attestation import hop, node
from tresor.attestation.blocks import InferenceAttestation
from tresor.attestation.evidence import Collateral, Need
from tresor.attestation.hop import HopPolicy
from tresor.encodings import rfc3339
from tresor.errors import UpstreamError
from tresor.upstreams.channel import Asking, AttestedChannel, ChannelState, Standing, unattested

_T = TypeVar("_T")

MAX_AGE_S: Final = 600.0
LONG_S: Final = 20.0
"""A time out that no test reaches."""


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def alone() -> None:
            await test(*args, **kwargs)
            assert asyncio.all_tasks() == {asyncio.current_task()}, "a task outlives its test"

        asyncio.run(alone())

    return run


class Node:
    """An upstream of kind `aci` behind the channel's own interface, and the clock.

    Attributes:
        now: Unix seconds.
        spki_sha256: of its TLS key.
        asked: when it was asked, in seconds from the start.
        gate: what an answer waits for.
        fault: what is raised in the place of an answer.
        make: nonce to document.
        collateral: what is at hand.
        changes: how often connections were told to go.
    """

    def __init__(self) -> None:
        self.start = self.now = AT.timestamp()
        self.spki_sha256 = SPKI
        self.asked: list[float] = []
        self.gate: asyncio.Event | None = None
        self.fault: Exception | None = None
        self.make: Callable[[bytes], bytes] = self.report
        self.collateral = COLLATERAL
        self.changes = 0
        self.channel = AttestedChannel("acme", self.asking(), on_change=self.changed, clock=lambda: self.now)

    def asking(self, **changes: Any) -> Asking:
        usual: dict[str, Any] = {
            "kind": "aci",
            "policy": HopPolicy(),
            "trust_bundle": None,
            "max_age_s": MAX_AGE_S,
            "get": self.get,
            "endorse": self.endorse,
        }
        return Asking(**usual | changes)

    def report(self, nonce: bytes) -> bytes:
        tls = [{"spki_sha256": self.spki_sha256.hex()}]
        return aci(nonce=nonce, keyset=aci_keyset(tls_public_keys=tls, not_after=int(self.start) + 86_400))

    async def get(self, targets: tuple[str, ...]) -> tuple[bytes, tuple[bytes, ...]]:
        self.asked.append(self.now - self.start)
        spki = self.spki_sha256
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        nonce = bytes.fromhex(targets[0].partition("nonce=")[2][:64])
        return spki, (self.make(nonce),)

    def endorse(self, needs: Callable[[Collateral], tuple[Need, ...]], held: Collateral) -> Collateral:
        assert isinstance(needs(held), tuple)
        return self.collateral

    def changed(self) -> None:
        self.changes += 1

    async def settled(self) -> None:
        """Wait until no verification runs."""
        while self.channel._verification is not None:
            await asyncio.wait({self.channel._verification}, timeout=LONG_S)

    async def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, and do what is due then."""
        self.now += seconds
        self.channel.upkeep()
        await self.settled()


@pytest.fixture(autouse=True)
def _our_vendors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "vendor_anchors", lambda: ANCHORS)


def block_of(standing: Standing) -> InferenceAttestation:
    return msgspec.json.decode(standing.block.json, type=InferenceAttestation)


async def refusal(attempt: Awaitable[_T]) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await attempt
    return caught.value


# --- Verification


@in_loop
async def test_cold_start() -> None:
    upstream = Node()
    channel = upstream.channel
    assert (channel.state, channel.reason, channel.standing) == (ChannelState.UNVERIFIED, None, None)
    standing = await channel.ensure(LONG_S)
    assert (channel.state, channel.reason) == (ChannelState.VERIFIED, None)
    assert channel.standing is standing
    assert standing.pin == SPKI
    assert standing.proven == {"cpu_tee", "tcb"}
    assert set(standing.not_checked) >= {"gpu_tee", "workload"}
    assert upstream.asked == [0.0]


@in_loop
async def test_block_says_what_was_verified() -> None:
    upstream = Node()
    standing = await upstream.channel.ensure(LONG_S)
    block = block_of(standing)
    assert (block.provider, block.tee, block.status, block.origin) == ("acme", "tdx", "verified", "aci")
    assert (block.channel_binding.type, block.channel_binding.spki_sha256) == ("tls_spki_sha256", SPKI.hex())
    assert (block.verified_at, block.expires_at) == (rfc3339(upstream.now), rfc3339(upstream.now + MAX_AGE_S))
    assert [reference.type for reference in block.evidence] == ["answer", "collateral"]
    assert {f"sha256:{item.digest.hex()}" for item in standing.block.evidence} == {r.digest for r in block.evidence}
    assert f'"{block.nonce}"'.encode() not in standing.block.evidence[0].data  # an ACI report does not repeat it


@in_loop
async def test_every_question_has_a_nonce_of_its_own() -> None:
    upstream = Node()
    nonces: list[bytes] = []

    def noted(nonce: bytes) -> bytes:
        nonces.append(nonce)
        return upstream.report(nonce)

    upstream.make = noted
    await upstream.channel.ensure(LONG_S)
    await upstream.tick(300)
    assert len(set(nonces)) == 2


@in_loop
async def test_callers_share_one_verification() -> None:
    upstream = Node()
    standings = await asyncio.gather(*(upstream.channel.ensure(LONG_S) for _ in range(20)))
    assert len(set(map(id, standings))) == 1
    assert upstream.asked == [0.0]


@in_loop
async def test_verified_is_not_asked_again() -> None:
    upstream = Node()
    await upstream.channel.ensure(LONG_S)
    for _ in range(20):
        await upstream.channel.ensure(0)
    assert upstream.asked == [0.0]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("spki_mismatch", {"spki_sha256": OTHER, "make": lambda nonce: aci(nonce=nonce)}),
        ("report_data_mismatch", {"make": lambda _: aci()}),
        ("nonce_mismatch", {"make": lambda _: aci(nonce=None)}),
        ("evidence_malformed", {"make": lambda _: b"<!doctype html>"}),
        ("collateral_missing", {"collateral": Collateral()}),
        ("timeout", {"fault": UpstreamError("timeout", "the upstream did not answer in time")}),
        ("upstream_status", {"fault": UpstreamError("upstream_status", "404", status=404)}),
        ("internal_error", {"fault": RuntimeError("a body that nobody is to see")}),
    ],
)
@in_loop
async def test_refused(code: str, change: dict[str, Any]) -> None:
    upstream = Node()
    for name, value in change.items():
        setattr(upstream, name, value)
    error = await refusal(upstream.channel.ensure(LONG_S))
    assert (error.reason, upstream.channel.state, upstream.channel.reason) == (
        "attestation_failed",
        ChannelState.REFUSED,
        code,
    )
    assert code in str(error)
    assert "nobody is to see" not in str(error)
    assert upstream.channel.standing is None


@in_loop
async def test_endorsements_that_cannot_be_had() -> None:
    upstream = Node()

    def endorse(_needs: object, _held: object) -> Collateral:
        raise ValueError("a folder that is gone")

    channel = AttestedChannel("acme", upstream.asking(endorse=endorse), on_change=upstream.changed)
    await refusal(channel.ensure(LONG_S))
    assert (channel.state, channel.reason) == (ChannelState.REFUSED, "internal_error")


# --- How long it counts


@in_loop
async def test_it_counts_for_its_age_and_no_longer() -> None:
    upstream = Node()
    standing = await upstream.channel.ensure(LONG_S)
    assert (standing.renew_at - upstream.start, standing.expires_at - upstream.start) == (300.0, 600.0)
    upstream.now = upstream.start + 599.9
    assert await upstream.channel.ensure(0) is standing
    upstream.now = upstream.start + 600.0
    changes = upstream.changes
    assert upstream.channel.standing is None
    assert (upstream.channel.state, upstream.changes) == (ChannelState.UNVERIFIED, changes + 1)


@in_loop
async def test_it_counts_no_longer_than_the_evidence() -> None:
    upstream = Node()
    upstream.make = lambda nonce: aci(nonce=nonce, keyset=aci_keyset(not_after=int(upstream.start) + 100))
    standing = await upstream.channel.ensure(LONG_S)
    assert (standing.renew_at - upstream.start, standing.expires_at - upstream.start) == (50.0, 100.0)
    assert block_of(standing).expires_at == rfc3339(upstream.start + 100)


@in_loop
async def test_age_counts_from_the_question_and_not_from_the_verdict() -> None:
    upstream = Node()

    def slow(_needs: object, _held: object) -> Collateral:
        upstream.now += 30
        return COLLATERAL

    channel = AttestedChannel(
        "acme", upstream.asking(endorse=slow), on_change=upstream.changed, clock=lambda: upstream.now
    )
    assert (await channel.ensure(LONG_S)).expires_at - upstream.start == MAX_AGE_S


# --- Renewal


@in_loop
async def test_renewal_at_half_of_its_life() -> None:
    upstream = Node()
    first = await upstream.channel.ensure(LONG_S)
    changes = upstream.changes
    await upstream.tick(299.5)
    assert upstream.asked == [0.0]
    upstream.now += 0.5
    upstream.channel.upkeep()
    assert upstream.channel.standing is first  # nobody waits for it
    await upstream.settled()
    second = upstream.channel.standing
    assert second is not None
    assert (upstream.asked, second.expires_at - upstream.start) == ([0.0, 300.0], 900.0)
    assert upstream.changes == changes  # of the same key: connections stay


@in_loop
async def test_upkeep_begins_one_renewal() -> None:
    upstream = Node()
    await upstream.channel.ensure(LONG_S)
    upstream.gate, upstream.now = asyncio.Event(), upstream.start + 300
    for _ in range(5):
        upstream.channel.upkeep()
        await asyncio.sleep(0)
    assert upstream.asked == [0.0, 300.0]
    upstream.gate.set()
    await upstream.settled()


@in_loop
async def test_renewal_that_fails_is_survived_while_the_old_one_lasts() -> None:
    upstream = Node()
    first = await upstream.channel.ensure(LONG_S)
    upstream.make = lambda _: aci()
    await upstream.tick(300)
    assert (upstream.channel.state, upstream.channel.reason) == (ChannelState.VERIFIED, "report_data_mismatch")
    assert await upstream.channel.ensure(0) is first
    while upstream.now < upstream.start + 599:
        await upstream.tick(1)
    assert await upstream.channel.ensure(0) is first
    await upstream.tick(1)
    asked = len(upstream.asked)
    error = await refusal(upstream.channel.ensure(LONG_S))
    assert "report_data_mismatch" in str(error)
    await upstream.tick(60)
    assert upstream.channel.state is ChannelState.REFUSED
    assert len(upstream.asked) > asked


@in_loop
async def test_renewal_that_succeeds_again() -> None:
    upstream = Node()
    await upstream.channel.ensure(LONG_S)
    upstream.fault = UpstreamError("connect_failed", "the upstream cannot be reached")
    await upstream.tick(300)
    upstream.fault = None
    await upstream.tick(1)
    assert (upstream.channel.state, upstream.channel.reason) == (ChannelState.VERIFIED, None)
    assert upstream.channel.standing is not None
    assert upstream.channel.standing.expires_at - upstream.start == 901.0


@in_loop
async def test_renewal_over_another_key_closes_connections() -> None:
    upstream = Node()
    await upstream.channel.ensure(LONG_S)
    changes, upstream.spki_sha256 = upstream.changes, OTHER
    await upstream.tick(300)
    assert upstream.channel.standing is not None
    assert (upstream.channel.standing.pin, upstream.changes) == (OTHER, changes + 1)


# --- Another key


@in_loop
async def test_another_key_is_verified_at_once() -> None:
    upstream = Node()
    await upstream.channel.ensure(LONG_S)
    changes, upstream.spki_sha256 = upstream.changes, OTHER
    upstream.channel.key_changed()
    assert (upstream.channel.state, upstream.channel.standing) == (ChannelState.UNVERIFIED, None)
    assert upstream.changes == changes + 1
    standing = await upstream.channel.ensure(LONG_S)
    assert (standing.pin, upstream.asked) == (OTHER, [0.0, 0.0])


@in_loop
async def test_another_key_without_evidence_is_refused() -> None:
    upstream = Node()
    await upstream.channel.ensure(LONG_S)
    upstream.spki_sha256, upstream.make = OTHER, lambda nonce: aci(nonce=nonce)
    upstream.channel.key_changed()
    await refusal(upstream.channel.ensure(LONG_S))
    assert (upstream.channel.state, upstream.channel.reason) == (ChannelState.REFUSED, "spki_mismatch")


@in_loop
async def test_another_key_does_not_wait_for_the_next_attempt() -> None:
    upstream = Node()
    await upstream.channel.ensure(LONG_S)
    upstream.fault = UpstreamError("connect_failed", "the upstream cannot be reached")
    await upstream.tick(300)  # not before a second from now again
    upstream.fault = None
    upstream.channel.key_changed()
    assert (await upstream.channel.ensure(LONG_S)).pin == SPKI


# --- Upstreams that take their time


@in_loop
async def test_a_hanging_upstream_bounds_nobody_s_time() -> None:
    upstream = Node()
    upstream.gate = asyncio.Event()
    for _ in range(3):
        error = await refusal(upstream.channel.ensure(0.02))
        assert (error.reason, str(error)) == ("attestation_failed", "the upstream was not verified in time")
    assert (upstream.asked, upstream.channel.state) == ([0.0], ChannelState.UNVERIFIED)
    upstream.gate.set()
    standing = await upstream.channel.ensure(LONG_S)
    assert (standing.pin, upstream.asked) == (SPKI, [0.0])


@in_loop
async def test_a_caller_that_leaves_stops_nothing() -> None:
    upstream = Node()
    upstream.gate = asyncio.Event()
    leaving = asyncio.create_task(upstream.channel.ensure(LONG_S))
    staying = asyncio.create_task(upstream.channel.ensure(LONG_S))
    await asyncio.sleep(0.01)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    upstream.gate.set()
    assert (await staying).pin == SPKI
    assert upstream.asked == [0.0]


@in_loop
async def test_attempts_grow_rare() -> None:
    upstream = Node()
    upstream.fault = UpstreamError("connect_failed", "the upstream cannot be reached")
    await upstream.tick()
    for _ in range(240):
        await upstream.tick(1)
    assert upstream.asked == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    upstream.fault = None
    await upstream.tick(3)
    assert upstream.channel.state is ChannelState.VERIFIED
    upstream.fault = UpstreamError("connect_failed", "the upstream cannot be reached")
    upstream.asked.clear()
    at = upstream.now - upstream.start
    await upstream.tick(300)
    await upstream.tick(1)
    assert upstream.asked == [at + 300, at + 301]


@in_loop
async def test_callers_do_not_hurry_attempts() -> None:
    upstream = Node()
    upstream.make = lambda _: aci()
    for _ in range(100):
        error = await refusal(upstream.channel.ensure(LONG_S))
        assert "report_data_mismatch" in str(error)
    assert upstream.asked == [0.0]
    upstream.now += 1
    await refusal(upstream.channel.ensure(LONG_S))
    assert upstream.asked == [0.0, 1.0]


# --- Closing


@in_loop
async def test_closing_ends_a_verification_and_whoever_waits_for_it() -> None:
    upstream = Node()
    upstream.gate = asyncio.Event()
    waiting = asyncio.create_task(upstream.channel.ensure(LONG_S))
    await asyncio.sleep(0.01)
    await upstream.channel.close()
    assert (await refusal(waiting)).reason == "attestation_failed"


@in_loop
async def test_closed_is_closed() -> None:
    upstream = Node()
    await upstream.channel.ensure(LONG_S)
    await upstream.channel.close()
    upstream.channel.key_changed()
    upstream.channel.upkeep()
    await refusal(upstream.channel.ensure(LONG_S))
    upstream.now += MAX_AGE_S
    upstream.channel.upkeep()
    await upstream.channel.close()
    assert upstream.asked == [0.0]


# --- Tresor nodes

KEY: Final = ec.generate_private_key(ec.SECP256R1()).public_key()


class TresorNode(Node):
    """An upstream of kind `tresor`, which also serves a trust bundle; its clock starts now."""

    def __init__(self, ceremony: Ceremony, **policy: Any) -> None:
        super().__init__()
        self.ceremony = ceremony
        self.bundle = ceremony.bundle()
        self.start = self.now = datetime.now(UTC).timestamp()
        wanted = HopPolicy(release_root=ceremony.trust_key, **policy)
        asking = self.asking(kind="tresor", policy=wanted)
        self.channel = AttestedChannel("acme", asking, on_change=self.changed, clock=lambda: self.now)

    def report(self, nonce: bytes) -> bytes:
        issued_at = datetime.fromtimestamp(self.now, UTC)
        return self.ceremony.envelope(self.spki_sha256, KEY, nonce=nonce, issued_at=issued_at)

    async def get(self, targets: tuple[str, ...]) -> tuple[bytes, tuple[bytes, ...]]:
        assert targets[1:] == ("/.well-known/tresor-trust-bundle",)
        spki, (document,) = await super().get(targets)
        return spki, (document, f"{self.bundle}\n".encode())

    def endorse(self, needs: Callable[[Collateral], tuple[Need, ...]], held: Collateral) -> Collateral:
        assert not any(need.required for need in needs(held))
        return held


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ceremony:
    ceremony, host = amd_ceremony(tmp_path, "inference")
    monkeypatch.setitem(node._PINNED, "amd", frozenset({fingerprint(host.amd.ark)}))
    return ceremony


@in_loop
async def test_tresor_node(amd: Ceremony) -> None:
    upstream = TresorNode(amd)
    standing = await upstream.channel.ensure(LONG_S)
    assert upstream.channel.state is ChannelState.VERIFIED
    assert standing.proven == {"cpu_tee", "tcb", "workload"}
    assert [reference.type for reference in block_of(standing).evidence] == ["answer", "trust_bundle"]
    assert standing.block.evidence[1].data == upstream.bundle.encode()


@in_loop
async def test_bundle_in_the_operator_s_hands(amd: Ceremony) -> None:
    upstream = TresorNode(amd)
    asked: list[tuple[str, ...]] = []

    async def get(targets: tuple[str, ...]) -> tuple[bytes, tuple[bytes, ...]]:
        asked.append(targets)
        return SPKI, (upstream.report(bytes.fromhex(targets[0].partition("nonce=")[2])),)

    policy = HopPolicy(release_root=amd.trust_key)
    asking = upstream.asking(kind="tresor", policy=policy, trust_bundle=amd.bundle().encode(), get=get)
    channel = AttestedChannel("acme", asking, on_change=upstream.changed)
    await channel.ensure(LONG_S)
    assert [len(targets) for targets in asked] == [1]


@in_loop
async def test_a_bundle_that_was_seen_is_remembered(amd: Ceremony) -> None:
    upstream = TresorNode(amd)
    codes: list[str | None] = []
    for version in (5, 4, 5, 6, 5, 1, 6):
        upstream.bundle = amd.bundle(version=version)
        await upstream.tick(60 + MAX_AGE_S / 2)
        codes.append(upstream.channel.reason)
    rolled_back = "bundle_rolled_back"
    assert codes == [None, rolled_back, None, None, rolled_back, rolled_back, None]


@in_loop
async def test_a_simulation_is_used_where_it_is_allowed_and_proves_nothing(tmp_path: Path) -> None:
    upstream = TresorNode(simulated_ceremony(tmp_path, "inference"), allow_simulated=True)
    standing = await upstream.channel.ensure(LONG_S)
    assert upstream.channel.state is ChannelState.UNVERIFIED
    assert (standing.pin, standing.proven) == (SPKI, frozenset())
    assert set(standing.not_checked) >= {"cpu_tee", "gpu_tee", "tcb", "workload", "revocation"}
    block = block_of(standing)
    assert (block.tee, block.status) == ("simulated", "unverified")
    assert {claim.status for claim in msgspec.structs.astuple(block.claims)} == {"unknown"}
    await upstream.tick(300)
    assert (upstream.channel.state, len(upstream.asked)) == (ChannelState.UNVERIFIED, 2)


@in_loop
async def test_a_simulation_is_refused_where_it_is_not_allowed(tmp_path: Path) -> None:
    upstream = TresorNode(simulated_ceremony(tmp_path, "inference"))
    await refusal(upstream.channel.ensure(LONG_S))
    assert (upstream.channel.state, upstream.channel.reason) == (ChannelState.REFUSED, "simulated_not_allowed")


# --- None


def test_an_upstream_of_which_no_evidence_is_demanded() -> None:
    standing = unattested("acme")
    block = block_of(standing)
    assert (block.status, block.tee, block.required, block.channel_binding.type) == (
        "unverified",
        "none",
        False,
        "none",
    )
    assert (standing.pin, standing.proven) == (None, frozenset())
    assert "tls_binding" in standing.not_checked
