"""The upstream hop: answers of every kind for one connection, recorded and home-made, and what one may be pinned to."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast, get_args, get_type_hints

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from support.ceremony import AmdHost, Ceremony, amd_ceremony, fingerprint, simulated_ceremony
from support.evidence import facts, sample, verify_at
from support.fake_providers import ANCHORS, AT, COLLATERAL, NONCE, OTHER, SPKI, aci, chutes, dstack, tinfoil
from tresor.attestation import node
from tresor.attestation.evidence import Collateral
from tresor.attestation.hop import (
    HOP_KINDS,
    HopAnswer,
    HopAppraisal,
    HopKind,
    HopPolicy,
    appraise_hop,
    hop_needs,
    hop_target,
)
from tresor.attestation.roots import TrustAnchors
from tresor.collateral.directory import load_folder
from tresor.settings.model import UpstreamSettings

EMPTY: Final = Collateral()


def codes(appraisal: HopAppraisal) -> tuple[str, ...]:
    """Return the codes of the checks that are not ok, each once."""
    return tuple(dict.fromkeys(str(check.code) for check in appraisal.result.checks if check.status != "ok"))


def assert_pinned_only_if_accepted(appraisal: HopAppraisal, spki_sha256: bytes) -> None:
    if appraisal.result.outcome == "accepted":
        assert appraisal.channel.type == "tls_spki_sha256"
        assert appraisal.channel.spki_sha256 == spki_sha256.hex()
    else:
        assert (appraisal.channel.type, appraisal.channel.spki_sha256) == ("none", None)


# --- Home-made answers of providers


@dataclass(frozen=True)
class Case:
    name: str
    kind: HopKind
    document: bytes
    codes: tuple[str, ...] = ()
    outcome: str = "rejected"
    nonce: bytes = NONCE
    spki_sha256: bytes = SPKI
    collateral: Collateral = field(default=COLLATERAL)
    now: datetime = AT

    def appraised(self, anchors: TrustAnchors | None = ANCHORS) -> HopAppraisal:
        return appraise_hop(
            HopAnswer(kind=self.kind, document=self.document, nonce=self.nonce),
            spki_sha256=self.spki_sha256,
            policy=HopPolicy(),
            collateral=self.collateral,
            now=self.now,
            anchors=anchors,
        )


GOOD: Final[dict[HopKind, bytes]] = {"tinfoil": tinfoil(), "dstack": dstack(), "aci": aci()}
TOO_MUCH: Final[dict[HopKind, str]] = {
    "tinfoil": "evidence_version_unsupported",
    "dstack": "evidence_too_large",
    "aci": "evidence_malformed",
}
CASES: Final = [
    *(Case(f"{kind}-good", kind, document, outcome="accepted") for kind, document in GOOD.items()),
    *(
        Case(f"{kind}-connection-ends-elsewhere", kind, document, ("spki_mismatch",), spki_sha256=OTHER)
        for kind, document in GOOD.items()
    ),
    Case("tinfoil-replayed", "tinfoil", GOOD["tinfoil"], ("nonce_mismatch",), nonce=OTHER),
    Case("dstack-replayed", "dstack", GOOD["dstack"], ("nonce_mismatch",), nonce=OTHER),
    Case("aci-replayed", "aci", GOOD["aci"], ("report_data_mismatch",), nonce=OTHER),
    *(
        Case(f"{kind}-no-collateral", kind, document, ("collateral_missing",), "undecided", collateral=EMPTY)
        for kind, document in GOOD.items()
    ),
    *(
        Case(f"{kind}-a-year-later", kind, document, ("collateral_expired",), now=AT + timedelta(days=365))
        for kind, document in GOOD.items()
    ),
    Case("aci-keyset-ended", "aci", GOOD["aci"], ("keyset_expired",), now=AT + timedelta(hours=2)),
    Case("dstack-address-form-binds-no-channel", "dstack", dstack(tls=False), ("channel_not_bound",)),
    Case("tinfoil-given-as-dstack", "dstack", GOOD["tinfoil"], ("evidence_malformed",)),
    Case("dstack-given-as-tinfoil", "tinfoil", GOOD["dstack"], ("evidence_version_unsupported",)),
    Case("dstack-given-as-aci", "aci", GOOD["dstack"], ("evidence_malformed",)),
    Case("aci-given-as-dstack", "dstack", GOOD["aci"], ("evidence_malformed",)),
    Case("chutes-given-as-dstack", "dstack", chutes(), ("evidence_malformed",)),
    *(Case(f"{kind}-no-answer", kind, b"", ("evidence_malformed",)) for kind in GOOD),
    *(Case(f"{kind}-html", kind, b"<!doctype html>", ("evidence_malformed",)) for kind in GOOD),
    *(Case(f"{kind}-nested-for-ever", kind, b"[" * (4 << 20), ("evidence_malformed",)) for kind in GOOD),
    *(
        Case(f"{kind}-four-megabytes-of-text", kind, b'{"quote":"' + b"A" * (4 << 20) + b'"}', (code,))
        for kind, code in TOO_MUCH.items()
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules(case: Case) -> None:
    appraisal = case.appraised()
    assert (appraisal.result.outcome, codes(appraisal)) == (case.outcome, case.codes)
    assert_pinned_only_if_accepted(appraisal, case.spki_sha256)


@pytest.mark.parametrize("kind", GOOD)
def test_vendors_roots_are_the_default(kind: HopKind) -> None:
    assert codes(Case("", kind, GOOD[kind]).appraised(anchors=None)) == ("root_not_pinned",)


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_needed(kind: HopKind) -> None:
    answer = HopAnswer(kind=kind, document=GOOD[kind], nonce=NONCE)
    (need, *_) = hop_needs(answer, EMPTY)
    assert need.required
    assert "intel.com" in need.url
    assert not any("intel.com" in left.url for left in hop_needs(answer, COLLATERAL))


# --- Recorded answers

ADDRESS: Final = "bundles/dstack-tdx-8gpu-address-20260610"
DSTACK: Final = "bundles/dstack-tdx-8gpu-tls-20260629"
FOREIGN: Final = "bundles/nonce-not-ours-a"
SNP: Final = "bundles/tinfoil-snp-20260629"
TINFOIL: Final = "bundles/tinfoil-tdx-gpu-20260629"


def recorded(name: str, **changes: Any) -> HopAppraisal:
    """Return the appraisal for the connection that was recorded, at its time."""
    known = facts(name)
    spki = known.get("binding", {}).get("tls_spki_sha256")
    arguments: dict[str, Any] = {
        "spki_sha256": bytes(32) if spki is None else bytes.fromhex(spki),
        "policy": HopPolicy(),
        "collateral": load_folder([sample(name)]).collateral,
        "now": verify_at(name),
    }
    answer = HopAnswer(
        kind="tinfoil" if "tinfoil" in name else "dstack",
        document=(sample(name) / "attestation.json").read_bytes(),
        nonce=changes.pop("nonce", bytes.fromhex(known["client_nonce"])),
    )
    return appraise_hop(answer, **arguments | changes)


@pytest.mark.parametrize("name", [DSTACK, SNP, TINFOIL])
def test_recorded_answers(name: str) -> None:
    assert facts(name)["verdict"] == "accept"
    appraisal = recorded(name)
    assert (appraisal.result.outcome, codes(appraisal)) == ("accepted", ())
    assert appraisal.channel.spki_sha256 == facts(name)["binding"]["tls_spki_sha256"]
    assert appraisal.result.claims.cpu_tee.status == "proven"
    assert appraisal.result.valid_until is not None
    assert appraisal.result.valid_until > verify_at(name)


@pytest.mark.parametrize("name", [DSTACK, SNP, TINFOIL])
def test_recorded_answers_for_another_connection(name: str) -> None:
    appraisal = recorded(name, spki_sha256=OTHER)
    assert (appraisal.result.outcome, codes(appraisal)) == ("rejected", ("spki_mismatch",))
    assert_pinned_only_if_accepted(appraisal, OTHER)


@pytest.mark.parametrize("name", [DSTACK, SNP, TINFOIL])
def test_recorded_answers_replayed(name: str) -> None:
    assert codes(recorded(name, nonce=OTHER)) == ("nonce_mismatch",)


@pytest.mark.parametrize("name", [DSTACK, SNP, TINFOIL])
def test_recorded_answers_without_their_collateral(name: str) -> None:
    assert recorded(name, collateral=EMPTY).result.outcome == "undecided"


def test_recorded_answer_that_binds_no_tls_key() -> None:
    """The evidence is good, as its facts say, and no channel: the prompt would go to whoever ends the connection."""
    assert facts(ADDRESS)["verdict"] == "accept"
    appraisal = recorded(ADDRESS)
    assert (appraisal.result.outcome, codes(appraisal)) == ("rejected", ("channel_not_bound",))
    assert_pinned_only_if_accepted(appraisal, bytes(32))


def test_recorded_answer_to_somebody_else() -> None:
    assert facts(FOREIGN)["verdict"] == "reject"
    assert codes(recorded(FOREIGN)) == ("nonce_mismatch", "channel_not_bound")


# --- Tresor nodes

KEY: Final = ec.generate_private_key(ec.SECP256R1()).public_key()


@dataclass(frozen=True)
class World:
    ceremony: Ceremony
    policy: HopPolicy
    host: AmdHost | None = None

    def appraised(
        self,
        *,
        bundle: bytes | None = None,
        nonce: bytes = NONCE,
        spki_sha256: bytes = SPKI,
        policy: dict[str, Any] | None = None,
        document: bytes | None = None,
        now: datetime | None = None,
        **members: Any,
    ) -> HopAppraisal:
        """Return the appraisal of the node's answer to `NONCE` over a connection with `SPKI`."""
        answer = HopAnswer(
            kind="tresor",
            document=self.ceremony.envelope(SPKI, KEY, nonce=NONCE, **members) if document is None else document,
            nonce=nonce,
            trust_bundle=self.ceremony.bundle().encode() if bundle is None else bundle,
        )
        return appraise_hop(
            answer,
            spki_sha256=spki_sha256,
            policy=replace(self.policy, **policy or {}),
            collateral=EMPTY,
            now=now or datetime.now(UTC),
        )


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    ceremony, host = amd_ceremony(tmp_path, "inference")
    monkeypatch.setitem(node._PINNED, "amd", frozenset({fingerprint(host.amd.ark)}))
    return World(ceremony, HopPolicy(release_root=ceremony.trust_key), host)


@pytest.fixture
def simulated(tmp_path: Path) -> World:
    ceremony = simulated_ceremony(tmp_path, "inference")
    return World(ceremony, HopPolicy(release_root=ceremony.trust_key, allow_simulated=True))


def test_node_is_accepted(amd: World) -> None:
    appraisal = amd.appraised()
    assert (appraisal.result.outcome, codes(appraisal)) == ("accepted", ())
    assert appraisal.channel.spki_sha256 == SPKI.hex()
    claims = appraisal.result.claims
    assert [claims.cpu_tee.status, claims.tcb.status, claims.workload.status] == ["proven"] * 3


def test_simulated_node_is_accepted_and_proves_nothing(simulated: World) -> None:
    appraisal = simulated.appraised()
    claims = appraisal.result.claims
    assert (appraisal.result.outcome, appraisal.result.simulated) == ("accepted", True)
    assert {claims.cpu_tee.status, claims.gpu_tee.status, claims.tcb.status, claims.workload.status} == {"unknown"}


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ("spki_mismatch", {"spki_sha256": OTHER}),
        ("nonce_mismatch", {"nonce": OTHER}),
        ("channel_not_bound", {"signed": {"spki_sha256": OTHER}}),
        ("key_not_bound", {"signed": {"nonce": OTHER}}),
        ("envelope_replayed", {"signed": {"nonce": b""}}),
        ("workload_mismatch", {"workload": "router"}),
        ("root_not_pinned", {"policy": {"release_root": None}}),
        ("bundle_workload_mismatch", {"policy": {"workload": "router"}}),
        ("bundle_rolled_back", {"policy": {"min_bundle_version": 2}}),
        ("issued_at_stale", {"issued_at": datetime.now(UTC) - timedelta(hours=1)}),
        ("issued_at_in_future", {"issued_at": datetime.now(UTC) + timedelta(hours=1)}),
        ("evidence_malformed", {"document": b""}),
        ("evidence_malformed", {"document": aci()}),
        ("evidence_malformed", {"document": b"[" * (1 << 20)}),
        ("evidence_too_large", {"document": b" " * ((1 << 20) + 1)}),
        ("bundle_expired", {"now": datetime.now(UTC) + timedelta(days=31)}),
    ],
)
def test_node_is_refused(amd: World, expected: str, arguments: dict[str, Any]) -> None:
    appraisal = amd.appraised(**arguments)
    assert appraisal.result.outcome == "rejected"
    assert expected in codes(appraisal)
    assert_pinned_only_if_accepted(appraisal, SPKI)


def test_node_in_debug_mode_is_refused(amd: World) -> None:
    assert amd.host is not None
    amd.host.fields["policy"] = 0x30000 | 1 << 19
    assert "debug_enabled" in codes(amd.appraised())


def test_node_without_a_bundle_is_refused(amd: World) -> None:
    answer = HopAnswer(kind="tresor", document=amd.ceremony.envelope(SPKI, KEY, nonce=NONCE), nonce=NONCE)
    appraisal = appraise_hop(answer, spki_sha256=SPKI, policy=amd.policy, collateral=EMPTY, now=datetime.now(UTC))
    assert codes(appraisal) == ("collateral_missing",)


def test_simulated_node_needs_an_opt_in(simulated: World) -> None:
    appraisal = simulated.appraised(policy={"allow_simulated": False})
    assert appraisal.result.outcome == "rejected"
    assert codes(appraisal) == ("simulated_not_allowed",)


def test_bundle_of_another_root_is_refused(amd: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = simulated_ceremony(tmp_path / "other", "inference")
    appraisal = amd.appraised(bundle=other.bundle().encode())
    assert appraisal.result.outcome == "rejected"
    assert codes(appraisal) == ("bundle_signature_invalid",)


def test_bundle_at_its_floor_will_do(amd: World) -> None:
    bundle = amd.ceremony.bundle(version=7).encode()
    assert amd.appraised(bundle=bundle, policy={"min_bundle_version": 7}).result.outcome == "accepted"


def test_it_counts_no_longer_than_envelope_and_bundle(amd: World) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    until = amd.appraised(issued_at=now, max_age_seconds=300).result.valid_until
    assert until == now + timedelta(seconds=300)
    ends = now + timedelta(seconds=60)
    bundle = amd.ceremony.bundle(valid_until=ends.isoformat().replace("+00:00", "Z")).encode()
    assert amd.appraised(bundle=bundle).result.valid_until == ends


def test_node_needs_nothing_that_its_envelope_holds(amd: World) -> None:
    answer = HopAnswer(kind="tresor", document=amd.ceremony.envelope(SPKI, KEY, nonce=NONCE), nonce=NONCE)
    assert not any(need.required for need in hop_needs(answer, EMPTY))
    bare = amd.ceremony.envelope(SPKI, KEY, nonce=NONCE, vcek_chain_pem=...)
    assert any(need.required for need in hop_needs(replace(answer, document=bare), EMPTY))


# --- Kinds


def test_kinds_are_those_of_the_settings() -> None:
    named = get_type_hints(UpstreamSettings)["attestation"]
    assert set(get_args(named)) == {*HOP_KINDS, "none"}


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("tresor", "/attestation?nonce={}"),
        ("tinfoil", "/.well-known/tinfoil-attestation?nonce={}"),
        (
            "dstack",
            "/v1/attestation/report?nonce={}&signing_algo=ecdsa&include_tls_fingerprint=true&version=2",
        ),
        ("aci", "/v1/aci/attestation?nonce={}"),
    ],
)
def test_targets(kind: HopKind, target: str) -> None:
    assert hop_target(kind, bytes(range(32))) == target.format(bytes(range(32)).hex())


@pytest.mark.parametrize("kind", ["none", "chutes", "", "TINFOIL"])
def test_unknown_kinds_are_nobody_s(kind: str) -> None:
    with pytest.raises(KeyError):
        hop_target(cast("HopKind", kind), NONCE)


@given(kind=st.sampled_from(HOP_KINDS), document=st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused(kind: HopKind, document: bytes) -> None:
    answer = HopAnswer(kind=kind, document=document, nonce=NONCE, trust_bundle=document)
    assert hop_needs(answer, EMPTY) == ()
    policy = HopPolicy(release_root=None)
    appraisal = appraise_hop(answer, spki_sha256=SPKI, policy=policy, collateral=EMPTY, now=AT)
    assert appraisal.result.outcome == "rejected"
    assert_pinned_only_if_accepted(appraisal, SPKI)


@given(kind=st.sampled_from(sorted(GOOD)), data=st.data())
def test_any_byte_of_a_good_answer_may_change(kind: HopKind, data: st.DataObject) -> None:
    """Whatever becomes of it, nothing is raised, and what is accepted is pinned to the connection it came over."""
    document = bytearray(GOOD[kind])
    document[data.draw(st.integers(0, len(document) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    appraisal = Case("", kind, bytes(document)).appraised()
    assert_pinned_only_if_accepted(appraisal, SPKI)
