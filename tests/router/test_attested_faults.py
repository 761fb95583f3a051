"""Upstreams that do not prove what they are: no byte of a prompt reaches them, and everybody is told why.

The upstreams are a process apart (`support.provider_network`) whose log holds every byte that came out of TLS.  The
faults are those of the issue's threat list, section "hops, channel, routing".
"""

import contextlib
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.provider_network import Balancer, Kind, Provider, ProviderNetwork, provider_network
from support.router import Router, UpstreamEntry, chat, running_router, tresor, wait_until, write_config
from support.wire import Answer
from tresor.encodings import rfc3339
from tresor.errors import SettingsError
from tresor.receipts.claims import ReceiptClaims
from tresor.settings.load import load_settings

OTHER = bytes(range(32))
HOUR = timedelta(hours=1)


def in_time(delta: timedelta) -> str:
    return rfc3339((datetime.now(UTC) + delta).timestamp())


@dataclass(frozen=True)
class Case:
    """A fault that an upstream has from the beginning, and the code that says so.

    Attributes:
        behaviour: of the upstream; `asks` and `redirects` name the good upstream that is meant.
        settings: of its entry.
    """

    name: str
    kind: Kind
    code: str
    behaviour: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def case(name: str, kind: Kind, code: str, /, settings: Mapping[str, Any] | None = None, **behaviour: Any) -> Case:
    return Case(f"{name}-{kind}", kind, code, behaviour, settings or {})


TDX: tuple[Kind, ...] = ("tinfoil", "dstack", "aci")
OLD_MODULE = bytes([4, 1, 3]) + bytes(13)
FLOOR = {"bl": 4, "tee": 0, "snp": 24, "ucode": 219}
NOT_OURS = {"allowed_hw_measurements": ["11" * 48]}
POLICY = f'[tdx]\nskip_mrtd = false\nallowed_mrtds = ["{"11" * 48}"]\n'
CASES = (
    # Whose evidence.  The first of these is also a proxy that ends TLS in front of an honest upstream: it passes the
    # challenge on, so the evidence is fresh, genuine and of another connection.
    *(case("of-another-upstream", kind, "spki_mismatch", asks="good") for kind in ("simulated", "amd")),
    *(case("of-another-upstream", kind, "spki_mismatch", asks="good") for kind in ("tinfoil", "dstack")),
    case("of-another-upstream", "aci", "spki_mismatch", asks="good"),
    *(case("about-another-tls-key", kind, "spki_mismatch", spki=OTHER) for kind in ("amd", *TDX)),
    *(case("for-another-challenge", kind, "nonce_mismatch", nonce=OTHER) for kind in ("amd", "tinfoil", "dstack")),
    case("for-another-challenge", "aci", "report_data_mismatch", nonce=OTHER),
    case("an-hour-old", "amd", "issued_at_stale", age_s=3600),
    # The software is the router's, or another model's; the root is the same.
    case("of-a-router", "amd", "bundle_workload_mismatch", workload="router"),
    case("said-to-be-a-router", "amd", "workload_mismatch", members={"workload": "router"}),
    case("of-inference-where-a-router-is-wanted", "amd", "bundle_workload_mismatch", {"workload": "router"}),
    case(
        "of-another-model", "amd", "tag_not_allowed", bundle={"allowed_workload_identity_tags": [f"sha256:{'1' * 64}"]}
    ),
    # The machine.
    case("in-debug-mode", "amd", "debug_enabled", hardware={"policy": 0x30000 | 1 << 19}),
    *(case("in-debug-mode", kind, "debug_enabled", hardware={"attributes": 1 << 28 | 1}) for kind in TDX),
    case("below-the-floor", "amd", "tcb_below_floor", bundle={"min_tcb": {"Milan": {**FLOOR, "snp": 25}}}),
    *(case("below-the-floor", kind, "tcb_status_not_allowed", hardware={"tee_tcb_svn": OLD_MODULE}) for kind in TDX),
    case("measured-otherwise", "amd", "measurement_not_allowed", hardware={"measurement": b"\x12" * 48}),
    case("measurement-not-in-bundle", "simulated", "measurement_not_allowed", bundle=NOT_OURS),
    *(case("measurement-not-in-policy", kind, "measurement_not_allowed", {"policy_file": POLICY}) for kind in TDX),
    case("simulated-without-leave", "simulated", "simulated_not_allowed", {"allow_simulated": None}),
    # The trust bundle.
    case("bundle-expired", "amd", "bundle_expired", bundle={"valid_until": in_time(-HOUR)}),
    case("bundle-of-another-root", "amd", "bundle_signature_invalid", bundle_of_other_root=True),
    case("bundle-allows-nothing", "amd", "measurements_empty", bundle={"allowed_hw_measurements": []}),
    # The answer.
    *(case("no-json", kind, "evidence_malformed", answer=b"<!doctype html>") for kind in ("amd", *TDX)),
    case("empty", "dstack", "evidence_malformed", answer=b""),
    case("nested-for-ever", "dstack", "evidence_malformed", answer=b"[" * (1 << 20)),
    case("too-large", "amd", "evidence_too_large", answer=b" " * ((1 << 20) + 1)),
    case("without-end", "aci", "invalid_response", manner="endless"),
    case("gzip-bomb", "tinfoil", "evidence_malformed", manner="gzip_bomb"),
    case("not-found", "dstack", "upstream_status", status=404, answer=b"{}"),
    case("server-error", "amd", "upstream_status", status=500),
    case("redirected", "amd", "upstream_status", status=302, fields=("Location: {good}",)),
    case("redirected-to-http", "tinfoil", "upstream_status", status=307, fields=("Location: http://127.0.0.1:9/",)),
    case("hangs-up", "dstack", "connection_lost", manner="hang_up"),
    case("silent", "amd", "timeout", manner="silent"),
    case("dripping", "dstack", "timeout", manner="drip"),
    # The connection.
    case("down", "amd", "connect_failed", {"base_url": "https://localhost:{free}/v1"}),
    case("certificate-of-nobody", "amd", "tls_failed", {"ca_file": None}),
)


@dataclass(frozen=True)
class World:
    router: Router
    network: ProviderNetwork
    providers: Mapping[str, Provider]

    def state(self, name: str) -> str:
        answer = self.router.ask("GET", f"/v1/models/eu%2F{name}%2F{name}")
        return str(answer.json["tresor"]["attestation"])

    def faults(self) -> dict[str, str]:
        faults: dict[str, str] = self.router.ask("GET", "/readyz").json["faults"]
        return faults

    def claims(self, answer: Answer, request: bytes) -> ReceiptClaims:
        return self.router.verify(answer.receipt_id, request=request, response=answer.body).claims

    def await_state(self, name: str, state: str, timeout_s: float = 20.0) -> None:
        wait_until(lambda: self.state(name) == state, f"{name} is {state}", timeout_s)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running_world(
    folder: Path,
    network: ProviderNetwork,
    entries: list[UpstreamEntry],
    providers: Mapping[str, Provider],
    environment: Mapping[str, str] | None = None,
) -> Iterator[World]:
    folder.mkdir()
    with running_router(
        folder,
        entries,
        settings={"identity": network.identity},
        environment={**network.environment, **(environment or {})},
    ) as router:
        yield World(router, network, providers)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderNetwork]:
    with provider_network(tmp_path_factory.mktemp("network")) as it:
        yield it


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, network: ProviderNetwork) -> Iterator[World]:
    """A router with an upstream for each case, a good one of each kind, and one of which no evidence is demanded."""
    folder = tmp_path_factory.mktemp("faults")
    kinds: tuple[Kind, ...] = ("simulated", "amd", *TDX)
    providers = {f"good-{kind}": network.open(f"good-{kind}", kind) for kind in kinds}
    entries = [provider.entry() for provider in providers.values()]
    for fault in CASES:
        behaviour, settings = dict(fault.behaviour), dict(fault.settings)
        good = providers[f"good-{fault.kind}"].port
        if behaviour.get("asks") == "good":
            behaviour["asks"] = good
        if "fields" in behaviour:
            target = f"https://localhost:{good}/attestation"
            behaviour["fields"] = tuple(text.format(good=target) for text in behaviour["fields"])
        if "policy_file" in settings:
            file = folder / f"{fault.name}.toml"
            file.write_text(settings["policy_file"])
            settings["policy_file"] = str(file)
        if "base_url" in settings:
            settings["base_url"] = settings["base_url"].format(free=free_port())
        providers[fault.name] = network.open(fault.name, fault.kind, **behaviour)
        entries.append(providers[fault.name].entry(**settings))
    providers["plain"] = network.open("plain", "amd")
    entries.append(providers["plain"].entry(attestation="none", release_root_file=None))
    with running_world(folder / "router", network, entries, providers) as it:
        yield it


def assert_told_why(world: World, name: str, answer: Answer, request: bytes, reason: str) -> None:
    """Check error and receipt of a request that nobody was to see."""
    (attempt,) = answer.error["attempts"]
    assert attempt == {"route": f"eu/{name}/{name}", "reason": reason, "status": None}
    claims = world.claims(answer, request)
    assert (claims.outcome, claims.routed_model, claims.inference_attestation) == ("refused", None, None)
    assert [(a.route, a.outcome, a.reason, a.status, a.prompt_sent) for a in claims.attempts] == [
        (f"eu/{name}/{name}", "failed", reason, None, False)
    ]
    assert (claims.upstream_request_digest, claims.upstream_response_digest) == (None, None)


# Faults that are there from the beginning.


@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.name)
def test_no_prompt_reaches(world: World, fault: Case) -> None:
    provider = world.providers[fault.name]
    canary = f"canary-{secrets.token_hex(8)}"
    request = chat(fault.name, canary)
    answer = world.router.complete(request)
    assert (answer.status, answer.error["code"]) == (503, "attestation_failed")
    assert int(answer.headers["retry-after"]) > 0
    assert str(provider.port) not in answer.body.decode()
    assert_told_why(world, fault.name, answer, request, "attestation_failed")
    demanding = world.router.complete(request, X_Tresor_Require_Attestation="cpu_tee")
    assert (demanding.status, demanding.error["code"]) == (412, "attestation_requirements_not_met")
    world.await_state(fault.name, "refused")
    assert world.faults()[f"eu/{fault.name}"] == fault.code
    streamed = world.router.complete(chat(fault.name, canary, stream=True))
    assert (streamed.status, streamed.error["code"]) == (503, "attestation_failed")
    received = provider.received()
    for secret in (canary, "POST", "operators-secret"):
        assert secret.encode() not in received


def test_the_good_ones_are_not_bothered(world: World) -> None:
    for kind in ("simulated", "amd", *TDX):
        assert world.router.complete(chat(f"good-{kind}")).status == 200
        assert f"eu/good-{kind}" not in world.faults()
        assert world.state(f"good-{kind}") == ("unverified" if kind == "simulated" else "verified")


def test_an_answer_is_never_fetched_from_where_a_redirect_points(world: World) -> None:
    def challenges(name: str) -> set[bytes]:
        return set(re.findall(rb"GET /attestation\?nonce=([0-9a-f]{64})", world.providers[name].received()))

    redirected, relayed = challenges("redirected-amd"), challenges("of-another-upstream-amd")
    assert redirected
    assert relayed & challenges("good-amd")
    assert not redirected & challenges("good-amd")


def test_who_demands_nothing_may_be_served_without_evidence_and_is_told(world: World) -> None:
    request = chat("plain")
    answer = world.router.complete(request)
    block = world.claims(answer, request).inference_attestation
    assert block is not None
    assert (block.status, block.origin, block.required) == ("unverified", "none", False)
    assert block.channel_binding.type == "none"
    assert world.state("plain") == "unverified"


@pytest.mark.parametrize("model", ["plain", "eu/plain/any"])
@pytest.mark.parametrize("demand", ["cpu_tee", "tcb", "workload"])
def test_attestation_none_is_never_chosen_for_who_demands_it(world: World, model: str, demand: str) -> None:
    canary = f"canary-{secrets.token_hex(8)}"
    answer = world.router.complete(chat(model, canary), X_Tresor_Require_Attestation=demand)
    assert (answer.status, answer.error["code"]) == (412, "attestation_requirements_not_met")
    assert canary.encode() not in world.providers["plain"].received()


@pytest.mark.parametrize("name", ["for-another-challenge-amd", "down-amd", "silent-amd", "in-debug-mode-aci"])
def test_no_failover_to_an_unverified_upstream_for_who_demands_one(world: World, name: str) -> None:
    canary = f"canary-{secrets.token_hex(8)}"
    request = chat(name, canary, failover=["eu/plain/any", "eu/measured-otherwise-amd/any"])
    answer = world.router.complete(request, X_Tresor_Require_Attestation="cpu_tee")
    assert (answer.status, answer.error["code"]) == (412, "attestation_requirements_not_met")
    assert not any(attempt.prompt_sent for attempt in world.claims(answer, request).attempts)
    for other in (name, "plain", "measured-otherwise-amd"):
        assert canary.encode() not in world.providers[other].received()
    answer = world.router.complete(
        chat(name, canary, failover=["eu/plain/any", "eu/good-amd/any"]), X_Tresor_Require_Attestation="cpu_tee"
    )
    assert (answer.status, answer.json["tresor"]["routed_model"]) == (200, "eu/good-amd/any")
    assert canary.encode() not in world.providers["plain"].received()


def test_failover_of_who_demands_nothing_tells_the_truth(world: World) -> None:
    name = "in-debug-mode-dstack"
    world.await_state(name, "refused")
    request = chat(name, failover=["eu/plain/any"])
    answer = world.router.complete(request)
    claims = world.claims(answer, request)
    assert (answer.status, claims.routed_model) == (200, "eu/plain/any")
    assert claims.failover or claims.requested_route != claims.routed_model
    assert claims.inference_attestation is not None
    assert claims.inference_attestation.status == "unverified"
    assert [attempt.route for attempt in claims.attempts if attempt.prompt_sent] == ["eu/plain/any"]


# Faults that come later.

MAX_AGE_S = 4.0
LONGER = {"lapsing": 6.0, "pausing": 8.0, **dict.fromkeys(("stolen", "moved", "redirecting", "hesitant"), 600.0)}


@dataclass(frozen=True)
class Live:
    """A router whose upstreams' evidence is short-lived."""

    world: World
    balancer: Balancer
    behind: list[int]
    secrets_file: Path


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, network: ProviderNetwork) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    kinds: dict[str, Kind] = {
        "lapsing": "amd",
        "pausing": "dstack",
        "replaying": "amd",
        "rolling": "amd",
        "rotating": "dstack",
        "stolen": "amd",
        "moved": "aci",
        "redirecting": "amd",
        "front": "amd",
        "intruder": "amd",
        "hesitant": "amd",
    }
    behaviours: dict[str, dict[str, Any]] = {
        "replaying": {"replayed": True},
        "rolling": {"bundle": {"version": 5}},
        "intruder": {"spki": OTHER},
    }
    providers = {name: network.open(name, kind, **behaviours.get(name, {})) for name, kind in kinds.items()}
    front = providers["front"]
    behind = [front.port]
    turn = iter(range(1 << 30))
    secrets_file = folder / "tls-secrets.log"
    with Balancer(lambda: behind[next(turn) % len(behind)]) as balancer:
        entries = [
            provider.entry(
                port=balancer.port if name == "front" else None,
                keep_alive=name != "front",
                # Of these the evidence stays good: what changes is the connection.
                attestation_max_age_s=LONGER.get(name, MAX_AGE_S),
            )
            for name, provider in providers.items()
            if name != "intruder"
        ]
        environment = {"SSLKEYLOGFILE": str(secrets_file)}
        with running_world(folder / "router", network, entries, providers, environment) as world:
            yield Live(world, balancer, behind, secrets_file)


@contextlib.contextmanager
def under_load(world: World, name: str, canary: str) -> Iterator[list[tuple[float, bytes, Answer]]]:
    """Have callers ask all the time; yields what came of it: when it was asked, the request, the answer."""
    stop, seen = threading.Event(), list[tuple[float, bytes, Answer]]()

    def ask(caller: int) -> None:
        number = 0
        while not stop.wait(0.02):
            number += 1
            request = chat(name, f"{canary}-{caller}-{number}")
            began = time.time()
            seen.append((began, request, world.router.complete(request)))

    with ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(ask, caller) for caller in range(3)]
        try:
            yield seen
        finally:
            stop.set()
        for caller in callers:
            caller.result()


def check_served_while_fresh(world: World, seen: list[tuple[float, bytes, Answer]]) -> None:
    """Check each answer against its receipt: a prompt left only while evidence counted, for the key it is about."""
    for _, request, answer in seen:
        claims = world.claims(answer, request)
        block = claims.inference_attestation
        if answer.status != 200:
            assert answer.error["code"] == "attestation_failed", answer
            assert not any(attempt.prompt_sent for attempt in claims.attempts)
            continue
        assert block is not None
        assert block.expires_at is not None
        assert claims.attempts[-1].started_at < block.expires_at


def test_a_lease_that_ends_under_load(live: Live) -> None:
    world, canary = live.world, f"canary-{secrets.token_hex(8)}"
    provider = world.providers["lapsing"]
    with under_load(world, "lapsing", canary) as seen:
        wait_until(lambda: len(seen) >= 20, "callers are served")
        provider.behave(manner="hang_up")
        began = time.time()
        wait_until(lambda: "eu/lapsing" in world.faults(), "a renewal has failed")
        # What was verified outlives the renewal that failed.
        assert world.state("lapsing") == "verified"
        world.await_state("lapsing", "refused")
        ended = time.time()
        last = len(provider.received())
        wait_until(lambda: seen[-1][0] > ended + 0.5, "callers are refused")
        assert b"POST" not in provider.received()[last:]
        provider.behave()
        world.await_state("lapsing", "verified", 40)
        wait_until(lambda: seen[-1][2].status == 200, "callers are served again")
    assert ended - began < LONGER["lapsing"] + 10
    check_served_while_fresh(world, seen)
    assert {answer.status for _, _, answer in seen} == {200, 503}
    assert {answer.status for at, _, answer in seen if at < began} == {200}
    for at, request, answer in seen:
        if answer.status == 503:
            assert at > began
            prompt = msgspec.json.decode(request)["messages"][0]["content"]
            assert f'"{prompt}"'.encode() not in provider.received()


def test_a_renewal_that_fails_for_a_while_is_survived(live: Live) -> None:
    world, canary = live.world, f"canary-{secrets.token_hex(8)}"
    provider = world.providers["pausing"]
    with under_load(world, "pausing", canary) as seen:
        provider.behave(status=503)
        wait_until(lambda: world.faults().get("eu/pausing") == "upstream_status", "a renewal has failed")
        provider.behave()
        wait_until(lambda: "eu/pausing" not in world.faults(), "it is renewed")
    assert {answer.status for _, _, answer in seen} == {200}
    check_served_while_fresh(world, seen)


@pytest.mark.parametrize(
    ("name", "code", "behaviour"),
    [
        ("replaying", "nonce_mismatch", {"replayed": True}),
        ("rolling", "bundle_rolled_back", {"bundle": {"version": 4}}),
    ],
)
def test_what_was_good_once_is_not_taken_again(live: Live, name: str, code: str, behaviour: Mapping[str, Any]) -> None:
    world, provider = live.world, live.world.providers[name]
    provider.behave(**behaviour)
    world.await_state(name, "refused")
    assert world.faults()[f"eu/{name}"] == code
    canary = f"canary-{secrets.token_hex(8)}"
    request = chat(name, canary)
    assert_told_why(world, name, world.router.complete(request), request, "attestation_failed")
    assert canary.encode() not in provider.received()


def test_an_upstreams_key_rotates_under_load(live: Live) -> None:
    """Prompts go to the new key once evidence binds it, and not before."""
    world, canary = live.world, f"canary-{secrets.token_hex(8)}"
    provider = world.providers["rotating"]
    old = provider.spki
    with under_load(world, "rotating", canary) as seen:
        wait_until(lambda: len(seen) >= 10, "callers are served")
        provider.rotate()
        count = len(seen)
        wait_until(lambda: [a.status for _, _, a in seen[count:]].count(200) >= 10, "callers are served again")
    new = provider.spki
    assert old != new
    bound: set[str] = set()
    for _, request, answer in seen:
        claims = world.claims(answer, request)
        if answer.status == 200:
            assert claims.inference_attestation is not None
            bound.add(claims.inference_attestation.channel_binding.spki_sha256 or "")
        else:
            assert claims.attempts[-1].reason in ("pin_mismatch", "attestation_failed", "connection_lost")
    assert bound == {old.hex(), new.hex()}
    question, _, prompts = provider.received(by_key=1).partition(b"POST")
    assert b"nonce=" in question
    assert canary.encode() not in question
    assert canary.encode() in prompts


@pytest.mark.parametrize(("name", "code"), [("stolen", "spki_mismatch"), ("moved", "spki_mismatch")])
def test_another_key_behind_the_same_port_gets_nothing(live: Live, name: str, code: str) -> None:
    """Between verification and request the port changes hands; the old evidence is passed on, and still good."""
    world, provider = live.world, live.world.providers[name]
    assert world.router.complete(chat(name)).status == 200
    provider.behave(spki=provider.spki)
    provider.rotate()
    canary = f"canary-{secrets.token_hex(8)}"
    request = chat(name, canary)
    assert_told_why(world, name, world.router.complete(request), request, "pin_mismatch")
    world.await_state(name, "refused")
    assert world.faults()[f"eu/{name}"] == code
    assert_told_why(world, name, world.router.complete(request), request, "attestation_failed")
    demanding = world.router.complete(request, X_Tresor_Require_Attestation="cpu_tee")
    assert (demanding.status, demanding.error["code"]) == (412, "attestation_requirements_not_met")
    received = provider.received(by_key=1)
    assert b"nonce=" in received
    for secret in (canary, "POST", "operators-secret"):
        assert secret.encode() not in received


def test_what_is_verified_while_a_caller_waits_is_held_against_its_demands(live: Live) -> None:
    """When the plan was made the channel could still have turned out to prove what is demanded."""
    world, provider = live.world, live.world.providers["hesitant"]
    assert world.router.complete(chat("hesitant")).status == 200
    provider.behave(delay_s=1.0)
    provider.rotate()
    assert world.router.complete(chat("hesitant")).error["attempts"][0]["reason"] == "pin_mismatch"
    canary = f"canary-{secrets.token_hex(8)}"
    request = chat("hesitant", canary)
    answer = world.router.complete(request, X_Tresor_Require_Attestation="gpu_tee")
    assert (answer.status, answer.error["code"]) == (412, "attestation_requirements_not_met")
    assert_told_why(world, "hesitant", answer, request, "attestation_failed")
    assert world.state("hesitant") == "verified"
    assert canary.encode() not in provider.received()
    assert world.router.complete(request, X_Tresor_Require_Attestation="cpu_tee").status == 200


def test_a_balancer_leads_to_a_backend_that_is_not_the_one(live: Live) -> None:
    """Every new connection is held against the pin, not only the first one."""
    world, canary = live.world, f"canary-{secrets.token_hex(8)}"
    front, intruder = world.providers["front"], world.providers["intruder"]
    assert world.router.complete(chat("front")).status == 200
    live.behind[:] = [front.port, front.port, intruder.port]
    outcomes: list[str | None] = []
    deadline = time.monotonic() + 20
    while len(outcomes) < 12 or not {None, "pin_mismatch"} <= set(outcomes):
        request = chat("front", f"{canary}-{len(outcomes)}")
        answer = world.router.complete(request)
        (attempt,) = world.claims(answer, request).attempts
        assert attempt.prompt_sent is (answer.status == 200)
        outcomes.append(attempt.reason)
        assert time.monotonic() < deadline, outcomes
        time.sleep(0 if answer.status == 200 else 0.1)
    live.behind[:] = [front.port]
    assert set(outcomes) <= {None, "pin_mismatch", "attestation_failed"}
    assert intruder.port in live.balancer.passed
    received = intruder.received()
    for secret in (canary, "POST", "operators-secret"):
        assert secret.encode() not in received
    assert canary.encode() in front.received()


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_redirect_of_a_completion_is_not_followed(live: Live, scheme: str) -> None:
    world = live.world
    provider, other = world.providers["redirecting"], world.providers["intruder"]
    provider.behave(redirects=f"{scheme}://localhost:{other.port}/v1/chat/completions")
    canary = f"canary-{secrets.token_hex(8)}"
    request = chat("redirecting", canary)
    answer = world.router.complete(request)
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    claims = world.claims(answer, request)
    # It had proved itself, so the prompt went there, and nowhere else.
    assert [(a.reason, a.status, a.prompt_sent) for a in claims.attempts] == [("upstream_status", 307, True)]
    assert canary.encode() in provider.received()
    assert canary.encode() not in other.received()


def test_the_environment_cannot_have_the_keys_of_tls_written_down(live: Live) -> None:
    assert live.world.router.complete(chat("front")).status in (200, 503)
    written = live.secrets_file.read_bytes() if live.secrets_file.exists() else b""
    assert b"SECRET" not in written
    assert b"CLIENT_RANDOM" not in written


# What an operator cannot turn off by the way.


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("ATTESTATION", "none"),
        ("ALLOW_SIMULATED", "true"),
        ("RELEASE_ROOT_FILE", "other.jwk"),
        ("TRUST_BUNDLE_FILE", "other.jws"),
        ("POLICY_FILE", "other.toml"),
        ("WORKLOAD", "router"),
        ("ATTESTATION_MAX_AGE_S", "1e9"),
    ],
)
def test_the_environment_does_not_change_what_is_demanded(
    network: ProviderNetwork, tmp_path: Path, member: str, value: str
) -> None:
    variable = f"TRESOR_UPSTREAMS__0__{member}"
    config = write_config(tmp_path, [never(network, "amd")])
    with pytest.raises(SettingsError, match=f"{variable}: .* is demanded of an upstream in the file"):
        load_settings(config, {variable: value})
    assert load_settings(config, {}).settings.upstreams[0].attestation == "tresor"


def test_the_environment_does_not_replace_an_upstream(network: ProviderNetwork, tmp_path: Path) -> None:
    config = write_config(tmp_path, [never(network, "amd")])
    models = '[{key = "m", upstream_name = "m"}]'
    table = f'{{provider = "p", region = "r", base_url = "https://h/v1", attestation = "none", models = {models}}}'
    done = tresor("serve", "--config", config, environment={"TRESOR_UPSTREAMS__0": table})
    assert (done.exit_code, "TRESOR_UPSTREAMS__0" in done.err) == (1, True)


@pytest.mark.parametrize("kind", ["amd", *TDX])
def test_http_is_no_way_to_an_attested_upstream(network: ProviderNetwork, tmp_path: Path, kind: Kind) -> None:
    entry = never(network, kind, base_url="http://localhost:1/v1", ca_file=None, allow_plaintext=True)
    with pytest.raises(SettingsError, match="is not https"):
        load_settings(write_config(tmp_path, [entry]), {})


def never(network: ProviderNetwork, kind: Kind, **settings: Any) -> UpstreamEntry:
    """Return the entry of an upstream that is never asked."""
    return Provider(network, "never", kind, network.folder, 1).entry(api_key_env=None, **settings)
