"""`appraise_node`: a node of a fake AMD and a simulated one, all that may be wrong with either, each with its code."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from support.ceremony import IMAGE_DIGEST, AmdHost, Ceremony, amd_ceremony, fingerprint, simulated_ceremony
from support.fake_amd import TCB, fake_amd
from tresor.attestation import node
from tresor.attestation.codes import AttestationCode as Code
from tresor.attestation.envelope import parse_envelope
from tresor.attestation.evidence import Collateral
from tresor.attestation.node import CLOCK_SKEW, Demands, anchors_of, appraise_node
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.simulated.layout import measurement_of
from tresor.jose.jwk import public_jwk, thumbprint
from tresor.trust.errors import TrustCode, TrustRefusedError
from tresor.trust.jwk import TrustKey

SPKI, NONCE = b"\1" * 32, b"\2" * 32
KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(2))
STRANGER = TrustKey.of(Ed25519PrivateKey.generate().public_key())
DEMANDS = Demands(nonce=NONCE, tls_spki_sha256=SPKI)


class World(NamedTuple):
    ceremony: Ceremony
    host: AmdHost | None

    def appraise(
        self,
        *,
        bundle: dict[str, Any] | None = None,
        demands: Demands = DEMANDS,
        now: datetime | None = None,
        nonce: bytes = NONCE,
        **members: Any,
    ) -> AttestationResult:
        document = self.ceremony.envelope(SPKI, KEY, nonce=nonce, **members)
        return appraise_node(
            parse_envelope(document),
            bundle=self.ceremony.in_force(**bundle or {}),
            collateral=Collateral(),
            demands=demands,
            now=now or datetime.now(UTC),
        )


def codes(result: AttestationResult) -> list[str]:
    return [str(check.code) for check in result.checks if check.status == "failed"]


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    ceremony, host = amd_ceremony(tmp_path)
    monkeypatch.setitem(node._PINNED, "amd", frozenset({fingerprint(host.amd.ark)}))
    return World(ceremony, host)


@pytest.fixture
def simulated(tmp_path: Path) -> World:
    return World(simulated_ceremony(tmp_path), None)


@pytest.fixture(params=["amd", "simulated"])
def world(request: pytest.FixtureRequest) -> World:
    made: World = request.getfixturevalue(request.param)
    return made


# Good ones, and what they prove.


def test_hardware_proves_what_it_signed(amd: World) -> None:
    result = amd.appraise()
    assert result.outcome == "accepted"
    assert not result.simulated
    claims = result.claims
    assert [claims.cpu_tee.status, claims.tcb.status, claims.workload.status] == ["proven"] * 3
    assert claims.gpu_tee.status == "unknown"
    assert {"revocation", "gpu_tee"} <= result.not_checked.keys()
    assert not {"nonce", "tls_binding", "workload"} & result.not_checked.keys()
    assert result.details["trust_bundle_version"] == "1"


def test_a_simulation_proves_nothing(simulated: World) -> None:
    result = simulated.appraise()
    assert result.outcome == "accepted"
    assert result.simulated
    for claim in msgspec.structs.astuple(result.claims):
        assert (claim.status, claim.reason) == ("unknown", "simulated")


def test_what_is_not_demanded_is_said(world: World) -> None:
    result = world.appraise(demands=Demands(), nonce=b"")
    assert result.outcome == "accepted"
    assert {"nonce", "tls_binding"} <= result.not_checked.keys()


def test_nobody_is_held_to_a_nonce_of_somebody_else(world: World) -> None:
    """An envelope with a nonce is good evidence for whoever demands none."""
    assert world.appraise(demands=Demands(tls_spki_sha256=SPKI)).outcome == "accepted"


# What an envelope may say wrongly.  Nothing in it is believed that the hardware does not sign.

ENVELOPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nonce-of-another-challenge": ({"nonce": b"\3" * 32}, [Code.NONCE_MISMATCH]),
    "nonce-left-out": ({"nonce": b""}, [Code.NONCE_MISMATCH]),
    "nonce-spliced-in": ({"signed": {"nonce": b""}}, [Code.ENVELOPE_REPLAYED]),
    "nonce-exchanged": ({"signed": {"nonce": b"\3" * 32}}, [Code.KEY_NOT_BOUND]),
    "receipt-key-exchanged": ({"signed": {"receipt_key": OTHER_KEY}}, [Code.KEY_NOT_BOUND]),
    "receipt-key-renamed": (
        {"receipt_key": {**msgspec.to_builtins(public_jwk(KEY)), "kid": "router-receipt-AAAAAAAAAAAAAAAA"}},
        [Code.KEY_NOT_BOUND],
    ),
    "spki-exchanged": ({"signed": {"spki_sha256": b"\3" * 32}}, [Code.CHANNEL_NOT_BOUND]),
    "tag-exchanged": ({"signed": {"tag": bytes(32)}}, [Code.CHANNEL_NOT_BOUND]),
    "tag-not-that-of-the-manifest": (
        {"workload_identity_tag": "00" * 32},
        [Code.CHANNEL_NOT_BOUND, Code.IDENTITY_TAG_MISMATCH],
    ),
    "spki-of-another-connection": (
        {"tls_spki_sha256": "03" * 32},
        [Code.CHANNEL_NOT_BOUND, Code.SPKI_MISMATCH],
    ),
    "workload-renamed": ({"workload": "inference"}, [Code.WORKLOAD_MISMATCH]),
    "manifest-cut": ({"workload_identity_manifest_jws": "eyJhbGciOi"}, [TrustCode.TOKEN_MALFORMED]),
    "stale": ({"age": timedelta(hours=1)}, [Code.ISSUED_AT_STALE]),
    "from-the-future": ({"age": timedelta(minutes=-5)}, [Code.ISSUED_AT_IN_FUTURE]),
    "as-old-as-time": ({"issued_at": datetime(1970, 1, 1, tzinfo=UTC)}, [Code.ISSUED_AT_STALE]),
}


@pytest.mark.parametrize("name", ENVELOPES)
def test_an_envelope_that_is_wrong(world: World, name: str) -> None:
    members, wanted = ENVELOPES[name]
    result = world.appraise(**members)
    assert result.outcome == "rejected"
    assert codes(result) == wanted
    assert result.claims.workload.status != "proven"


def test_a_proxy_with_a_key_of_its_own(world: World) -> None:
    result = world.appraise(demands=Demands(nonce=NONCE, tls_spki_sha256=b"\3" * 32))
    assert codes(result) == [Code.SPKI_MISMATCH]


def test_a_receipt_by_another_key(world: World) -> None:
    jwk = public_jwk(OTHER_KEY)
    result = world.appraise(demands=Demands(receipt_thumbprint=thumbprint(jwk.x, jwk.y)))
    assert codes(result) == [Code.KEY_NOT_BOUND]


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        (-CLOCK_SKEW - timedelta(seconds=1), Code.ISSUED_AT_IN_FUTURE),
        (-CLOCK_SKEW, None),
        (timedelta(seconds=600) + CLOCK_SKEW, None),
        (timedelta(seconds=601) + CLOCK_SKEW, Code.ISSUED_AT_STALE),
    ],
)
def test_the_edges_of_its_life(world: World, offset: timedelta, code: Code | None) -> None:
    issued_at = datetime.now(UTC).replace(microsecond=0)
    assert codes(world.appraise(issued_at=issued_at, now=issued_at + offset)) == ([] if code is None else [code])


# What a bundle may not allow.

BUNDLES: dict[str, tuple[Callable[[Ceremony], dict[str, Any]], str]] = {
    "measurement-not-in-the-bundle": (
        lambda _: {"allowed_hw_measurements": ["ff" * 48]},
        TrustCode.MEASUREMENT_NOT_ALLOWED,
    ),
    "no-measurement-at-all": (lambda _: {"allowed_hw_measurements": []}, TrustCode.MEASUREMENTS_EMPTY),
    "tag-not-in-the-bundle": (
        lambda _: {"allowed_workload_identity_tags": [f"sha256:{'f' * 64}"]},
        TrustCode.TAG_NOT_ALLOWED,
    ),
    "no-tag-at-all": (lambda _: {"allowed_workload_identity_tags": []}, TrustCode.TAGS_EMPTY),
    "manifest-key-not-in-the-bundle": (
        lambda _: {"manifest_keys": {"keys": [STRANGER.jwk()]}},
        TrustCode.MANIFEST_KEY_NOT_ALLOWED,
    ),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_that_does_not_allow_it(world: World, name: str) -> None:
    change, code = BUNDLES[name]
    result = world.appraise(bundle=change(world.ceremony))
    assert result.outcome == "rejected"
    assert codes(result) == [code]


def test_a_manifest_by_a_key_of_nobody(world: World) -> None:
    forged = world.ceremony.manifest(Ed25519PrivateKey.generate())
    result = world.appraise(workload_identity_manifest_jws=forged)
    assert codes(result) == [TrustCode.MANIFEST_KEY_NOT_ALLOWED]


def test_another_manifest_of_the_same_key(world: World) -> None:
    result = world.appraise(workload_identity_manifest_jws=world.ceremony.manifest(version="0.9"))
    assert codes(result) == [TrustCode.TAG_NOT_ALLOWED]


def test_a_manifest_of_another_workload(world: World) -> None:
    manifest = world.ceremony.manifest(workload="inference")
    result = world.appraise(workload_identity_manifest_jws=manifest)
    assert codes(result) == [TrustCode.MANIFEST_WORKLOAD_MISMATCH]


# What hardware says of itself.


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"policy": 0xB0000}, Code.DEBUG_ENABLED),
        ({"policy": 0x70000}, Code.MIGRATION_AGENT_ALLOWED),
        ({"vmpl": 1}, Code.VMPL_NOT_ALLOWED),
        ({"reported_tcb": {**TCB, "snp": 23}}, Code.CERTIFICATE_TCB_MISMATCH),
        ({"committed_tcb": {**TCB, "ucode": 218}}, Code.TCB_BELOW_FLOOR),
        ({"measurement": b"\xac" * 48}, TrustCode.MEASUREMENT_NOT_ALLOWED),
    ],
    ids=str,
)
def test_hardware_that_is_not_as_it_should_be(amd: World, fields: dict[str, Any], code: str) -> None:
    assert amd.host is not None
    amd.host.fields.update(fields)
    result = amd.appraise()
    assert result.outcome == "rejected"
    assert result.code == code


@pytest.mark.parametrize("part", ["bl", "snp", "ucode"])
def test_every_component_of_the_floor_counts(amd: World, part: str) -> None:
    floor = {name: TCB[name] for name in ("bl", "tee", "snp", "ucode")}
    result = amd.appraise(bundle={"min_tcb": {"Milan": floor | {part: TCB[part] + 1}}})
    assert codes(result) == [Code.TCB_BELOW_FLOOR]
    assert result.claims.tcb.status == "refuted"


def test_a_bundle_without_a_floor_for_the_product_refuses_it(amd: World) -> None:
    assert codes(amd.appraise(bundle={"min_tcb": {}})) == [Code.TCB_BELOW_FLOOR]


def test_evidence_without_its_certificates_is_left_open(world: World) -> None:
    result = world.appraise(vcek_chain_pem=...)
    assert (result.outcome, result.code) == ("undecided", Code.ENDORSEMENT_MISSING)
    assert result.report_data is None


def test_every_check_is_made_and_every_failure_told(amd: World) -> None:
    assert amd.host is not None
    amd.host.fields["vmpl"] = 2
    result = amd.appraise(
        bundle={"allowed_hw_measurements": ["ff" * 48]},
        age=timedelta(days=1),
        signed={"receipt_key": OTHER_KEY, "spki_sha256": bytes(32)},
        demands=Demands(nonce=b"\3" * 32, tls_spki_sha256=b"\4" * 32),
    )
    assert set(codes(result)) == {
        Code.VMPL_NOT_ALLOWED,
        TrustCode.MEASUREMENT_NOT_ALLOWED,
        Code.CHANNEL_NOT_BOUND,
        Code.KEY_NOT_BOUND,
        Code.ISSUED_AT_STALE,
        Code.NONCE_MISMATCH,
        Code.SPKI_MISMATCH,
    }


# Roots: a bundle narrows what is pinned; a simulation and hardware are two worlds.


def test_a_root_that_is_not_pinned_is_refused_whoever_signed_the_bundle(tmp_path: Path) -> None:
    ceremony, _ = amd_ceremony(tmp_path)
    result = World(ceremony, None).appraise()
    assert (result.outcome, result.code) == ("rejected", TrustCode.ROOT_NOT_ALLOWED)


def test_a_root_of_another_vendor_under_the_wrong_name(amd: World) -> None:
    assert amd.host is not None
    ark = amd.host.amd.ark.public_bytes(Encoding.PEM).decode()
    for vendor in ("intel", "azure"):
        with pytest.raises(TrustRefusedError) as refused:
            anchors_of(amd.ceremony.in_force(hw_roots={vendor: ark}))
        assert refused.value.code == TrustCode.ROOT_NOT_ALLOWED


def test_a_pinned_root_cannot_be_called_simulated(simulated: World) -> None:
    pem = vendor_anchors().amd["Milan"][0].public_bytes(Encoding.PEM).decode()
    with pytest.raises(TrustRefusedError) as refused:
        anchors_of(simulated.ceremony.in_force(hw_roots={"simulated": pem}))
    assert refused.value.code == TrustCode.ROOT_NOT_ALLOWED


def test_hardware_of_another_amd(amd: World) -> None:
    other = fake_amd("Milan", "another world")
    chip = other.vcek(not_after=datetime.now(UTC) + timedelta(days=300))
    forger = AmdHost(other, chip)
    ceremony = amd.ceremony
    forged = Ceremony(
        ceremony.folder,
        "router",
        forger.report,
        ceremony.bundle_members,
        "sev-snp",
        ceremony.root,
        ceremony.manifest_key,
    )
    result = World(forged, forger).appraise()
    assert result.outcome == "rejected"
    assert result.report_data is None


@pytest.mark.parametrize("tee", ["sev-snp", "tdx", "azure-sev-snp", "azure-tdx"])
def test_a_simulation_that_calls_itself_hardware(simulated: World, amd: World, tee: str) -> None:
    """Under its own bundle and under a real one."""
    members = dict.fromkeys(("tdx_quote_b64", "hcl_report_b64", "tpm_quote_b64"), "AAAA")
    for bundle in (simulated.ceremony.in_force(), amd.ceremony.in_force()):
        document = simulated.ceremony.envelope(SPKI, KEY, nonce=NONCE, tee=tee, **members)
        result = appraise_node(
            parse_envelope(document), bundle=bundle, collateral=Collateral(), demands=DEMANDS, now=datetime.now(UTC)
        )
        assert result.outcome == "rejected"
        assert result.claims.cpu_tee.status != "proven"


def test_a_simulation_under_a_bundle_of_hardware(simulated: World, amd: World) -> None:
    """Even where the measurement that it claims is allowed there."""
    allowed = {"allowed_hw_measurements": [measurement_of(IMAGE_DIGEST).hex()]}
    result = appraise_node(
        parse_envelope(simulated.ceremony.envelope(SPKI, KEY, nonce=NONCE)),
        bundle=amd.ceremony.in_force(**allowed),
        collateral=Collateral(),
        demands=DEMANDS,
        now=datetime.now(UTC),
    )
    assert (result.outcome, result.code) == ("rejected", Code.SIMULATED)


def test_hardware_under_a_simulated_bundle(simulated: World, amd: World) -> None:
    result = appraise_node(
        parse_envelope(amd.ceremony.envelope(SPKI, KEY, nonce=NONCE)),
        bundle=simulated.ceremony.in_force(),
        collateral=Collateral(),
        demands=DEMANDS,
        now=datetime.now(UTC),
    )
    assert result.outcome == "rejected"
