"""Attested upstreams that behave: verified before a prompt leaves, pinned, and whole in the receipt.

The upstreams are a process apart (`support.provider_network`), one of each kind; behind a router that attests itself,
so that `tresor-verify` finds both hops in one file.  What goes wrong stands in test_attested_faults.py.
"""

import contextlib
import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from support import fake_providers
from support.ceremony import simulated_ceremony
from support.certificates import Tls
from support.provider_network import Kind, Provider, ProviderNetwork, provider_network
from support.router import Router, chat, new_key, running_router, tresor
from tresor.attestation.blocks import InferenceAttestation
from tresor.encodings import digest_string, rfc3339
from tresor.receipts.claims import ReceiptClaims

KINDS: tuple[Kind, ...] = get_args(Kind)
REAL = tuple(kind for kind in KINDS if kind != "simulated")
PROVEN = {
    "simulated": set(),
    "amd": {"cpu_tee", "tcb", "workload"},
    "tinfoil": {"cpu_tee", "gpu_tee", "tcb"},
    "dstack": {"cpu_tee", "tcb", "workload"},
    "aci": {"cpu_tee", "tcb"},
}
COMPOSED = b"\x01" + hashlib.sha256(fake_providers.COMPOSE.encode()).digest() + bytes(15)
POLICY = f"""[tdx]
skip_mrtd = false
allowed_mrtds = ["{hashlib.sha384(b"mrtd").hexdigest()}"]
skip_mrconfigid = false
allowed_mrconfigids = ["{COMPOSED.hex()}"]
"""


@dataclass(frozen=True)
class World:
    """A router, its upstreams by kind, and what an auditor holds."""

    router: Router
    network: ProviderNetwork
    providers: Mapping[Kind, Provider]
    policy: Path

    def exchange(self, kind: Kind, **headers: str) -> tuple[bytes, ReceiptClaims]:
        """Complete over one kind; return the receipt with its evidence, and its claims."""
        answer = self.router.complete(chat(kind), **headers)
        assert answer.status == 200, answer
        fetched = self.router.ask("GET", f"/v1/receipts/{answer.receipt_id}?include=evidence", key=self.router.key)
        claims = self.router.verify(answer.receipt_id, request=chat(kind), response=answer.body).claims
        return fetched.body, claims

    def verify(self, kind: Kind, receipt: bytes, *more: str, root: Path | None = None) -> tuple[int, dict[str, Any]]:
        """Run `tresor-verify receipt` over the one file and the release root."""
        file = self.network.folder / f"receipt-{secrets.token_hex(4)}.json"
        file.write_bytes(receipt)
        policy = [f"--inference-policy={self.policy}"] if kind == "dstack" else []
        line = [f"--release-root={root or self.network.release_root_file}", "--require=router,inference", "--json"]
        done = tresor(
            "receipt",
            *line,
            "--allow-simulated",
            *policy,
            *more,
            file,
            module="verify",
            environment=self.network.environment,
        )
        assert done.err == "", done
        return done.exit_code, msgspec.json.decode(done.out)

    def state(self, kind: Kind) -> str:
        answer = self.router.ask("GET", f"/v1/models/eu%2F{kind}%2F{kind}")
        return str(answer.json["tresor"]["attestation"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("attested")
    for name in ("network", "ceremony", "router"):
        (folder / name).mkdir()
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    with provider_network(folder / "network") as network:
        ceremony = replace(simulated_ceremony(folder / "ceremony"), root=network.root)
        ceremony.release()
        providers = {kind: network.open(kind, kind) for kind in KINDS}
        entries = [
            provider.entry(policy_file=str(policy) if kind == "dstack" else None)
            for kind, provider in providers.items()
        ]
        identity = ceremony.identity(**network.identity)
        with running_router(
            folder / "router", entries, tls=tls, settings={"identity": identity}, environment=network.environment
        ) as router:
            yield World(router, network, providers, policy)


def block_of(claims: ReceiptClaims) -> InferenceAttestation:
    assert claims.inference_attestation is not None
    return claims.inference_attestation


def codes(report: Mapping[str, Any]) -> set[str]:
    return {code for code in (report["code"], *(check["code"] for check in report["checks"])) if code is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_the_catalogue_shows_where_a_channel_stands(world: World, kind: Kind) -> None:
    listed = world.router.ask("GET", f"/v1/models?detail=true&provider={kind}").json["data"]
    wanted = "unverified" if kind == "simulated" else "verified"
    assert {entry["tresor"]["attestation"] for entry in listed} == {wanted}
    assert world.state(kind) == wanted


def test_readiness_has_nothing_to_complain_about(world: World) -> None:
    answer = world.router.ask("GET", "/readyz")
    assert (answer.status, answer.json["faults"]) == (200, {})


@pytest.mark.parametrize("kind", KINDS)
def test_the_receipt_says_what_was_verified(world: World, kind: Kind) -> None:
    receipt, claims = world.exchange(kind)
    provider, block = world.providers[kind], block_of(claims)
    assert (block.provider, block.origin, block.required) == (kind, provider.attestation, True)
    assert block.status == ("unverified" if kind == "simulated" else "verified")
    assert (block.channel_binding.type, block.channel_binding.spki_sha256) == ("tls_spki_sha256", provider.spki.hex())
    shown = {name: getattr(block.claims, name) for name in ("cpu_tee", "gpu_tee", "tcb", "workload")}
    assert {name for name, claim in shown.items() if claim.status == "proven"} == PROVEN[kind]
    assert {claim.status for claim in shown.values()} <= {"proven", "unknown"}
    assert all(claim.reason for claim in shown.values() if claim.status == "unknown")
    assert {"cpu_tee", "gpu_tee", "tcb", "workload"} - PROVEN[kind] <= set(claims.not_checked)
    assert block.measurements
    assert block.verified_at is not None
    assert block.expires_at is not None
    assert block.verified_at <= claims.attempts[0].started_at < block.expires_at
    assert [(a.route, a.outcome, a.prompt_sent) for a in claims.attempts] == [(f"eu/{kind}/{kind}", "served", True)]
    held = msgspec.json.decode(receipt)["evidence"]
    roles = [reference.type for reference in block.evidence]
    assert roles == ["answer", "trust_bundle" if provider.attestation == "tresor" else "collateral"]
    for reference in block.evidence:
        data = msgspec.convert(held[reference.digest]["data"], bytes)
        assert (digest_string(data), len(data)) == (reference.digest, reference.size)
        assert held[reference.digest]["media_type"] == reference.media_type


@pytest.mark.parametrize("kind", KINDS)
def test_both_hops_verify_offline_from_the_one_file(world: World, kind: Kind) -> None:
    receipt, claims = world.exchange(kind)
    years_later = rfc3339((datetime.fromtimestamp(claims.iat, UTC) + timedelta(days=1000)).timestamp())
    code, report = world.verify(kind, receipt, f"--at={years_later}")
    assert (code, report["result"]) == (0, "pass")
    made = {check["check"] for check in report["checks"]}
    assert {"router_tee", "inference_tee"} <= made


@pytest.mark.parametrize("kind", ["amd", "dstack"])
def test_evidence_that_is_gone_leaves_it_undecided(world: World, kind: Kind) -> None:
    receipt, claims = world.exchange(kind)
    document = msgspec.json.decode(receipt)
    del document["evidence"][block_of(claims).evidence[0].digest]
    code, report = world.verify(kind, msgspec.json.encode(document))
    assert (code, codes(report)) == (3, {"evidence_missing"})


@pytest.mark.parametrize("kind", ["simulated", "tinfoil"])
def test_other_bytes_under_a_digest_are_refused(world: World, kind: Kind) -> None:
    receipt, claims = world.exchange(kind)
    document = msgspec.json.decode(receipt)
    first, second = (reference.digest for reference in block_of(claims).evidence)
    document["evidence"][first]["data"] = document["evidence"][second]["data"]
    code, report = world.verify(kind, msgspec.json.encode(document))
    assert code == 1
    assert "evidence_digest_mismatch" in codes(report)


def test_a_release_root_of_somebody_else_is_not_enough(world: World, tmp_path: Path) -> None:
    receipt, _ = world.exchange("amd")
    other = simulated_ceremony(tmp_path).root_file
    code, report = world.verify("amd", receipt, f"--inference-release-root={other}")
    assert (code, codes(report)) == (1, {"bundle_signature_invalid"})
    code, report = world.verify(
        "amd", receipt, f"--inference-release-root={world.network.release_root_file}", root=other
    )
    assert (code, codes(report)) == (1, {"bundle_signature_invalid"})


def test_an_upstream_of_another_workload_is_not_enough(world: World) -> None:
    """Neither counts the router's own software as inference, nor the other way round."""
    receipt, _ = world.exchange("amd")
    code, report = world.verify("amd", receipt, "--inference-workload=router")
    assert (code, codes(report)) == (1, {"bundle_workload_mismatch"})


def test_an_auditor_may_demand_more_than_the_router_did(world: World, tmp_path: Path) -> None:
    receipt, _ = world.exchange("aci")
    assert world.verify("aci", receipt)[0] == 0
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[tdx]\nskip_mrtd = false\nallowed_mrtds = ["{"00" * 48}"]\n')
    code, report = world.verify("aci", receipt, f"--inference-policy={policy}")
    assert (code, codes(report)) == (1, {"measurement_not_allowed"})


def test_real_vendors_did_not_make_this(world: World) -> None:
    """The roots are pinned in the code: a program that is not started for these tests takes none of this evidence."""
    receipt, _ = world.exchange("tinfoil")
    file = world.network.folder / "real.json"
    file.write_bytes(receipt)
    line = (f"--release-root={world.network.release_root_file}", "--allow-simulated", "--json", file)
    done = tresor("receipt", *line, module="verify")
    assert done.exit_code == 1
    assert "root_not_pinned" in codes(msgspec.json.decode(done.out))


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_stored_once_however_many_receipts(world: World, kind: Kind) -> None:
    def held() -> int:
        with contextlib.closing(sqlite3.connect(world.router.database)) as connection:
            return int(connection.execute("SELECT count(*) FROM evidence").fetchone()[0])

    _, first = world.exchange(kind)
    before = held()
    others = [world.exchange(kind)[1] for _ in range(3)]
    assert held() == before
    assert {block_of(claims).evidence for claims in others} == {block_of(first).evidence}


@pytest.mark.parametrize("kind", KINDS)
def test_a_verified_channel_is_not_asked_again(world: World, kind: Kind) -> None:
    provider = world.providers[kind]
    world.exchange(kind)
    asked, connections = provider.received().count(b"nonce="), provider.connections
    for _ in range(3):
        world.exchange(kind)
    assert (provider.received().count(b"nonce="), provider.connections) == (asked, connections)


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_carries_no_key_and_no_prompt(world: World, kind: Kind) -> None:
    world.exchange(kind)
    question, _, rest = world.providers[kind].received().partition(b"POST")
    assert b"operators-secret" in rest
    assert b"operators-secret" not in question
    assert b"What is" not in question


@pytest.mark.parametrize("kind", KINDS)
def test_streams_go_through_attested_channels(world: World, kind: Kind) -> None:
    request = chat(kind, stream=True)
    answer = world.router.complete(request)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    claims = world.router.verify(answer.receipt_id, request=request, response=answer.body).claims
    assert (claims.outcome, block_of(claims).provider) == ("complete", kind)


# What callers demand.


@pytest.mark.parametrize("kind", REAL)
def test_a_demand_that_is_met(world: World, kind: Kind) -> None:
    _, claims = world.exchange(kind, X_Tresor_Require_Attestation=", ".join(PROVEN[kind]))
    assert claims.outcome == "complete"


@pytest.mark.parametrize(
    ("kind", "demand"),
    [(kind, name) for kind in KINDS for name in ("cpu_tee", "gpu_tee", "tcb", "workload") if name not in PROVEN[kind]],
)
def test_a_demand_that_is_not_met_sends_nothing(world: World, kind: Kind, demand: str) -> None:
    canary = f"canary-{secrets.token_hex(8)}"
    provider = world.providers[kind]
    posts = provider.received().count(b"POST")
    answer = world.router.complete(chat(kind, canary), X_Tresor_Require_Attestation=demand)
    assert (answer.status, answer.error["code"]) == (412, "attestation_requirements_not_met")
    assert canary.encode() not in provider.received()
    assert provider.received().count(b"POST") == posts
    claims = world.router.verify(answer.receipt_id, request=chat(kind, canary), response=answer.body).claims
    assert (claims.outcome, claims.routed_model, claims.inference_attestation) == ("refused", None, None)
    assert not any(attempt.prompt_sent for attempt in claims.attempts)


def test_what_a_customer_requires_counts_without_the_header(world: World) -> None:
    config = world.router.config
    line = ("add", "careful", "--require-attestation", "cpu_tee,workload", "--config", config)
    assert tresor("customers", *line).exit_code == 0
    key = new_key(config, "careful")
    assert world.router.complete(chat("amd"), key=key).status == 200
    answer = world.router.complete(chat("aci"), key=key)
    assert (answer.status, answer.error["code"]) == (412, "attestation_requirements_not_met")
    # A header asks for more and never for less.
    assert world.router.complete(chat("aci"), key=key, X_Tresor_Require_Attestation="cpu_tee").status == 412


def test_demands_choose_among_routes(world: World) -> None:
    """`any` is served by all five: whoever demands GPUs lands on the one that has proven them."""
    for demand, served in (("gpu_tee", {"tinfoil"}), ("workload", {"amd", "dstack"})):
        for number in range(6):
            request = json.dumps({"model": "any", "messages": [{"role": "user", "content": f"{demand} {number}"}]})
            answer = world.router.complete(request.encode(), X_Tresor_Require_Attestation=demand)
            assert answer.status == 200
            assert answer.json["tresor"]["routed_model"].split("/")[1] in served
