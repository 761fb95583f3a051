"""Receipts held against the evidence they refer to, at library level: on a fake AMD's hardware, and on none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.ceremony import Ceremony, amd_ceremony, fingerprint, simulated_ceremony, simulated_inference_block
from tresor.attestation import node
from tresor.attestation.envelope import TRUST_BUNDLE, Part, block_of, parse_envelope, parts_of
from tresor.attestation.hop import HopPolicy
from tresor.encodings import digest_string, rfc3339
from tresor.errors import ReceiptCode, ReceiptMalformedError, ReceiptMismatchError, ReceiptUndecidedError
from tresor.jose.jwk import ReceiptKey, parse_jwks, public_jwk
from tresor.jose.jws import encode_protected_header, parse_compact, sign_jws
from tresor.receipts.attested import Trust
from tresor.receipts.claims import parse_claims
from tresor.receipts.verify import UnverifiedReceipt, VerifiedReceipt, attested_key, verify_receipt
from tresor.trust.jwk import TrustKey

VECTORS = Path(__file__).parents[1] / "vectors" / "receipt"
GOOD: dict[str, Any] = msgspec.to_builtins(
    parse_claims(parse_compact((VECTORS / "001-bare-token" / "token.txt").read_text()).payload)
)
SPKI = b"\1" * 32
NOW = datetime.now(UTC).replace(microsecond=0)


def jwks(*keys: ec.EllipticCurvePrivateKey) -> dict[str, ReceiptKey]:
    return parse_jwks(msgspec.json.encode({"keys": [public_jwk(key.public_key()) for key in keys]}))


@dataclass
class Issuer:
    """Signs receipts that refer to evidence; `parts` are what it refers to, by type."""

    ceremony: Ceremony
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    signed_by: ec.EllipticCurvePrivateKey | None = None
    bundle: str | None = None
    evidence: dict[str, bytes] = field(default_factory=dict)
    block: dict[str, Any] = field(default_factory=dict)

    def receipt(
        self, *, iat: datetime = NOW, claims: Mapping[str, Any] | None = None, **members: Any
    ) -> UnverifiedReceipt:
        members = {"issued_at": NOW, "nonce": b""} | members
        envelope = parse_envelope(self.ceremony.envelope(SPKI, self.key.public_key(), **members))
        bundle = self.bundle or self.ceremony.bundle_file.read_text()
        parts = (*parts_of(envelope), Part(TRUST_BUNDLE, "application/jose", bundle.encode()))
        self.evidence = {digest_string(part.data): part.data for part in parts}
        block = msgspec.to_builtins(block_of(envelope, parts)) | self.block
        payload = GOOD | {"router_attestation": block, "iat": int(iat.timestamp())} | dict(claims or {})
        signer = self.signed_by or self.key
        kid = public_jwk(signer.public_key()).kid
        token = sign_jws(signer, encode_protected_header(kid), msgspec.json.encode(payload)).compact
        return UnverifiedReceipt(jws=parse_compact(token), id=None, evidence=self.evidence)

    def trust(self, **changes: Any) -> Trust:
        arguments: dict[str, Any] = {"release_root": self.ceremony.trust_key, "allow_simulated": True}
        return Trust(**arguments | changes)


def verify(receipt: UnverifiedReceipt, issuer: Issuer, now: datetime = NOW, **trust: Any) -> VerifiedReceipt:
    keys = jwks(issuer.signed_by or issuer.key)
    return verify_receipt(receipt, keys, now=now, trust=issuer.trust(**trust))


def refusal(receipt: UnverifiedReceipt, issuer: Issuer, now: datetime = NOW, **trust: Any) -> ReceiptMismatchError:
    with pytest.raises(ReceiptMismatchError) as refused:
        verify(receipt, issuer, now, **trust)
    return refused.value


def codes(error: ReceiptMismatchError) -> list[str]:
    return [str(finding.code) for finding in error.findings if finding.code is not None]


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Issuer:
    ceremony, host = amd_ceremony(tmp_path)
    monkeypatch.setitem(node._PINNED, "amd", frozenset({fingerprint(host.amd.ark)}))
    return Issuer(ceremony)


@pytest.fixture
def simulated(tmp_path: Path) -> Issuer:
    return Issuer(simulated_ceremony(tmp_path))


@pytest.fixture(params=["amd", "simulated"])
def issuer(request: pytest.FixtureRequest) -> Issuer:
    made: Issuer = request.getfixturevalue(request.param)
    return made


# Good.


def test_hardware_vouches_for_the_key(amd: Issuer) -> None:
    verified = verify(amd.receipt(), amd, allow_simulated=False)
    checks = {finding.check: finding.detail for finding in verified.checked}
    assert checks["router_tee"] == "sev-snp, as demanded"
    assert not verified.simulated
    left = {omission.item for omission in verified.not_checked}
    assert {"router:revocation", "router:rollback"} <= left
    assert not {"key_set", "attestation"} & left


def test_a_simulation_says_so(simulated: Issuer) -> None:
    verified = verify(simulated.receipt(), simulated)
    assert verified.simulated
    assert any(f.check == "router_tee" and f.detail.startswith("SIMULATED") for f in verified.checked)
    assert codes(refusal(simulated.receipt(), simulated, allow_simulated=False)) == ["simulated_not_allowed"]


def test_without_a_key_set_the_evidence_says_whose_the_key_is(issuer: Issuer) -> None:
    receipt = issuer.receipt()
    keys = attested_key(receipt)
    assert list(keys) == [public_jwk(issuer.key.public_key()).kid]
    verify_receipt(receipt, keys, now=NOW, trust=issuer.trust(require=frozenset({"router"})))


def test_years_later_it_is_the_same(issuer: Issuer) -> None:
    """Certificates, bundle and evidence counted then."""
    receipt = issuer.receipt()
    assert verify(receipt, issuer, NOW + timedelta(days=3650)).claims.iat == int(NOW.timestamp())


def test_evidence_may_come_from_elsewhere(issuer: Issuer) -> None:
    receipt = issuer.receipt()
    bare = UnverifiedReceipt(jws=receipt.jws, id=None)
    verify(bare, issuer, evidence=issuer.evidence)
    bundle = issuer.ceremony.bundle_file.read_bytes()
    without = {digest: data for digest, data in issuer.evidence.items() if data != bundle}
    verify(bare, issuer, evidence=without, bundle=bundle)
    assert "router:rollback" not in {
        omission.item for omission in verify(receipt, issuer, min_bundle_version=1).not_checked
    }


# The key.


def test_a_key_that_the_set_lists_and_the_evidence_does_not_bind(issuer: Issuer) -> None:
    issuer.signed_by = ec.generate_private_key(ec.SECP256R1())
    receipt, keys = issuer.receipt(), jwks(issuer.key, issuer.signed_by)
    for trust in (None, issuer.trust()):
        with pytest.raises(ReceiptMismatchError) as refused:
            verify_receipt(receipt, keys, now=NOW, trust=trust)
        assert refused.value.code == ReceiptCode.ROUTER_KEY_NOT_BOUND
        assert not refused.value.undecided


def test_a_block_that_was_rewritten_for_another_key(issuer: Issuer) -> None:
    """Whoever stole evidence puts a key of his own into the block; the hardware signed another."""
    thief = ec.generate_private_key(ec.SECP256R1())
    jwk = public_jwk(thief.public_key())
    issuer.signed_by = thief
    issuer.block = {"receipt_key": {"kty": "EC", "crv": "P-256", "x": jwk.x, "y": jwk.y, "kid": jwk.kid}}
    receipt = issuer.receipt()
    error = refusal(receipt, issuer)
    assert codes(error) == ["key_not_bound"]
    with pytest.raises(ReceiptMismatchError) as refused:
        verify_receipt(receipt, attested_key(receipt), now=NOW, trust=issuer.trust())
    assert codes(refused.value) == ["key_not_bound"]


@pytest.mark.parametrize("kid", ["router-receipt-AAAAAAAAAAAAAAAA", "x"])
def test_a_key_under_another_name(issuer: Issuer, kid: str) -> None:
    jwk = public_jwk(issuer.key.public_key())
    issuer.block = {"receipt_key": {"kty": "EC", "crv": "P-256", "x": jwk.x, "y": jwk.y, "kid": kid}}
    receipt = issuer.receipt()
    assert codes(refusal(receipt, issuer)) == ["key_not_bound"]
    with pytest.raises(ReceiptMalformedError) as refused:
        attested_key(receipt)
    assert refused.value.code == ReceiptCode.KID_THUMBPRINT_MISMATCH


def test_no_key_set_and_no_block(issuer: Issuer) -> None:
    with pytest.raises(ReceiptUndecidedError) as refused:
        attested_key(issuer.receipt(claims={"router_attestation": None}))
    assert refused.value.code == ReceiptCode.ROUTER_ATTESTATION_MISSING


# The times.


@pytest.mark.parametrize(
    ("offset", "good"), [(-61, False), (-60, True), (0, True), (660, True), (661, False), (86_400, False)]
)
def test_a_receipt_outside_the_life_of_its_evidence(issuer: Issuer, offset: int, good: bool) -> None:
    iat = NOW + timedelta(seconds=offset)
    receipt = issuer.receipt(iat=iat)
    if good:
        verify(receipt, issuer, iat)
    else:
        error = refusal(receipt, issuer, iat)
        assert error.code == ReceiptCode.ROUTER_ATTESTATION_STALE
        with pytest.raises(ReceiptMismatchError):  # also where nobody trusts a release root
            verify_receipt(receipt, jwks(issuer.key), now=iat)


@pytest.mark.parametrize("issued_at", ["2026-02-30T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
def test_times_that_are_none(issuer: Issuer, issued_at: str) -> None:
    issuer.block = {"issued_at": issued_at}
    with pytest.raises(ReceiptMalformedError) as refused:
        verify(issuer.receipt(), issuer)
    assert refused.value.code == ReceiptCode.CLAIMS_INVALID


def test_a_receipt_of_the_last_day_there_is(issuer: Issuer) -> None:
    iat = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert ReceiptCode.ROUTER_ATTESTATION_STALE in codes(refusal(issuer.receipt(iat=iat), issuer))


# The bundle.


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"allowed_hw_measurements": ["00" * 48]}, "measurement_not_allowed"),
        ({"allowed_workload_identity_tags": [f"sha256:{'0' * 64}"]}, "tag_not_allowed"),
        ({"workload": "inference"}, "bundle_workload_mismatch"),
        ({"valid_until": rfc3339((NOW - timedelta(seconds=1)).timestamp())}, "bundle_expired"),
        ({"root": Ed25519PrivateKey.generate()}, "bundle_signature_invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bundle_that_does_not_allow_it(issuer: Issuer, change: dict[str, Any], code: str) -> None:
    issuer.bundle = issuer.ceremony.bundle(**change)
    assert codes(refusal(issuer.receipt(), issuer)) == [code]


def test_a_bundle_that_is_older_than_the_caller_takes(issuer: Issuer) -> None:
    assert codes(refusal(issuer.receipt(), issuer, min_bundle_version=2)) == ["bundle_rolled_back"]


def test_a_release_root_of_somebody_else(issuer: Issuer) -> None:
    stranger = TrustKey.of(Ed25519PrivateKey.generate().public_key())
    assert codes(refusal(issuer.receipt(), issuer, release_root=stranger)) == ["bundle_signature_invalid"]


# The evidence.


def test_evidence_that_is_not_at_hand_leaves_it_open(issuer: Issuer) -> None:
    receipt = issuer.receipt()
    for digest in issuer.evidence:
        left = {other: data for other, data in issuer.evidence.items() if other != digest}
        error = refusal(UnverifiedReceipt(jws=receipt.jws, id=None, evidence=left), issuer)
        assert error.undecided, digest
        assert error.code in ("evidence_missing", "collateral_missing")


def test_nothing_undecided_covers_what_failed(issuer: Issuer) -> None:
    issuer.signed_by = ec.generate_private_key(ec.SECP256R1())
    receipt = UnverifiedReceipt(jws=issuer.receipt().jws, id=None)
    error = refusal(receipt, issuer)
    assert not error.undecided
    assert error.code == ReceiptCode.ROUTER_KEY_NOT_BOUND


def test_every_byte_of_the_report_counts(issuer: Issuer) -> None:
    """The router refers to what it says, so that a digest alone proves nothing: the signature must."""
    honest = issuer.receipt()
    block = parse_claims(honest.jws.payload).router_attestation
    assert block is not None
    report = next(r for r in block.evidence if r.type == "snp_report")
    for offset in range(0, 0x2A0, 7):
        changed = bytearray(issuer.evidence[report.digest])
        changed[offset] ^= 1
        digest = digest_string(bytes(changed))
        references = [msgspec.to_builtins(r) | ({"digest": digest} if r == report else {}) for r in block.evidence]
        payload = msgspec.json.decode(honest.jws.payload)
        payload["router_attestation"]["evidence"] = references
        kid = public_jwk(issuer.key.public_key()).kid
        token = sign_jws(issuer.key, encode_protected_header(kid), msgspec.json.encode(payload)).compact
        held = {**issuer.evidence, digest: bytes(changed)}
        error = refusal(UnverifiedReceipt(jws=parse_compact(token), id=None, evidence=held), issuer)
        assert not error.undecided or error.code == "endorsement_missing", offset


def test_evidence_that_answers_somebodys_challenge_is_evidence(issuer: Issuer) -> None:
    assert verify(issuer.receipt(nonce=b"\5" * 32), issuer).claims.router_attestation is not None


# What must be there.


def test_what_is_required(issuer: Issuer) -> None:
    both = frozenset({"router", "inference"})
    assert codes(refusal(issuer.receipt(), issuer, require=both)) == [ReceiptCode.INFERENCE_ATTESTATION_MISSING]
    bare = issuer.receipt(claims={"router_attestation": None})
    assert codes(refusal(bare, issuer, require=both)) == [
        ReceiptCode.ROUTER_ATTESTATION_MISSING,
        ReceiptCode.INFERENCE_ATTESTATION_MISSING,
    ]
    left = {omission.item for omission in verify(bare, issuer).not_checked}
    assert {"attestation", "key_set"} <= left


def test_without_a_release_root_nothing_is_claimed(issuer: Issuer) -> None:
    verified = verify_receipt(issuer.receipt(), jwks(issuer.key), now=NOW)
    assert "router_tee" not in {finding.check for finding in verified.checked}
    assert {"attestation", "key_set"} <= {omission.item for omission in verified.not_checked}


# Both hops.


def with_upstream(issuer: Issuer, spki: bytes) -> UnverifiedReceipt:
    """Return a receipt whose upstream is a node of the issuer's own ceremony and receipt key, with another TLS key."""
    nonce = b"\7" * 32
    answer = issuer.ceremony.envelope(spki, issuer.key.public_key(), issued_at=NOW, nonce=nonce)
    bundle = issuer.ceremony.bundle_file.read_bytes()
    parts = (("answer", "application/json", answer), (TRUST_BUNDLE, "application/jose", bundle))
    block = simulated_inference_block(parts, spki=spki, nonce=nonce, at=NOW)
    attempts = [attempt | {"started_at": rfc3339(NOW.timestamp())} for attempt in GOOD["attempts"]]
    receipt = issuer.receipt(claims={"inference_attestation": block, "attempts": attempts})
    issuer.evidence |= {digest_string(data): data for data in (answer, bundle)}
    return UnverifiedReceipt(jws=receipt.jws, id=None, evidence=issuer.evidence)


@pytest.mark.parametrize(("spki", "expected"), [(b"\2" * 32, []), (SPKI, ["hops_not_distinct"])])
def test_one_nodes_evidence_is_not_enough_for_both_hops(issuer: Issuer, spki: bytes, expected: list[str]) -> None:
    policy = HopPolicy(release_root=issuer.ceremony.trust_key, workload="router", allow_simulated=True)
    trust: dict[str, Any] = {"require": frozenset({"router", "inference"}), "inference": policy}
    receipt = with_upstream(issuer, spki)
    if expected:
        assert codes(refusal(receipt, issuer, **trust)) == expected
    else:
        verify(receipt, issuer, **trust)
    # And the router's software is no inference, whoever's key it has.
    trust["inference"] = HopPolicy(release_root=issuer.ceremony.trust_key, allow_simulated=True)
    assert "bundle_workload_mismatch" in codes(refusal(receipt, issuer, **trust))
