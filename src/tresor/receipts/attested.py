"""Hold a receipt against the evidence that it refers to: step (8) of docs/spec/receipt.md section 8.

The evidence is appraised as of the receipt's own time, under the trust bundle that came with it: a bundle counts only
if the release root that the caller trusts signed it.  Pure: everything is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tresor.attestation.blocks import InferenceAttestation, RouterAttestation
from tresor.attestation.codes import AttestationCode
from tresor.attestation.envelope import TRUST_BUNDLE, envelope_of, parse_envelope
from tresor.attestation.errors import AttestationError, EvidenceUndecidedError
from tresor.attestation.evidence import Collateral
from tresor.attestation.hop import HopPolicy
from tresor.attestation.node import CLOCK_SKEW, Demands, appraise_node
from tresor.attestation.results import AttestationResult, failed
from tresor.errors import Finding, ReceiptCode
from tresor.jose.jwk import ReceiptKey, public_jwk, thumbprint
from tresor.receipts.appraise import Omission
from tresor.receipts.claims import ReceiptClaims
from tresor.receipts.inference import appraise_inference
from tresor.trust.bundle import TrustBundle, parse_bundle, verify_bundle
from tresor.trust.errors import TrustError
from tresor.trust.jwk import TrustKey

__all__ = ["Attested", "Trust", "check_attestation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What the caller trusts and demands.

    Attributes:
        release_root: key of whoever releases the router's software.
        workload: what the router must be, by the name in its trust bundle.
        require: hops whose attestation must be in the receipt and hold: `router`, `inference`.
        allow_simulated: whether evidence that no hardware made is looked at as if one had.
        bundle: a trust bundle to use in place of the receipt's own.
        evidence: digest to bytes, besides what came with the receipt; each digest is that of its bytes.
        collateral: endorsements, besides what the receipt refers to.
        min_bundle_version: version below which a bundle is rolled back.
        inference: what is demanded of the upstream.
    """

    release_root: TrustKey
    workload: str = "router"
    require: frozenset[str] = frozenset()
    allow_simulated: bool = False
    bundle: bytes | None = None
    evidence: Mapping[str, bytes] = field(default_factory=dict)
    collateral: Collateral = field(default_factory=Collateral)
    min_bundle_version: int = 0
    inference: HopPolicy = field(default_factory=HopPolicy)


@dataclass(frozen=True, slots=True)
class Attested:
    """What was found out about the machines that a receipt speaks of."""

    findings: tuple[Finding, ...]
    not_checked: tuple[Omission, ...] = ()
    simulated: bool = False


def check_attestation(
    claims: ReceiptClaims, key: ReceiptKey, evidence: Mapping[str, bytes], trust: Trust | None
) -> Attested:
    """Check the attestation blocks of a receipt.

    That the block's key is the one that signed is checked whatever the caller trusts; the evidence only where there is
    a release root.

    Args:
        claims: of the receipt.
        key: that signed it.
        evidence: digest to bytes of what came with it.
        trust: what the caller trusts; None for no release root.
    """
    missing = _missing(claims, trust)
    router = _check_router(claims, key, evidence, trust)
    inference = _check_inference(claims, evidence, trust)
    return Attested(
        (*missing, *router.findings, *inference.findings),
        (*router.not_checked, *inference.not_checked),
        router.simulated or inference.simulated,
    )


def _check_router(
    claims: ReceiptClaims, key: ReceiptKey, evidence: Mapping[str, bytes], trust: Trust | None
) -> Attested:
    block = claims.router_attestation
    if block is None:
        detail = "the receipt refers to no evidence about the router's machine"
        return Attested((), (Omission("attestation", detail),))
    simulated = block.tee == "simulated"
    findings = _check_key(block, key, claims.iat)
    if trust is None:
        detail = f"the receipt refers to {block.tee} evidence; give the release root to have it looked at"
        return Attested(findings, (Omission("attestation", detail),), simulated)
    result = _appraise(block, {**trust.evidence, **evidence}, key, claims.iat, trust)
    not_checked = _omissions("router", result)
    if trust.bundle is None and trust.min_bundle_version == 0:
        why = "the trust bundle is the receipt's own: nothing says that it was the newest"
        not_checked = (*not_checked, Omission("router:rollback", why))
    return Attested((*findings, *_findings("router", result)), not_checked, simulated)


def _check_inference(claims: ReceiptClaims, evidence: Mapping[str, bytes], trust: Trust | None) -> Attested:
    block = claims.inference_attestation
    if block is None:
        return Attested(())
    simulated = block.tee == "simulated"
    if block.origin == "none":
        detail = "the router's operator asks this upstream for no evidence"
        required = trust is not None and "inference" in trust.require
        finding = Finding("inference_tee", detail, ReceiptCode.INFERENCE_ATTESTATION_MISSING)
        return Attested((finding,) if required else (), (Omission("inference", detail),))
    if trust is None:
        detail = f"the receipt refers to {block.tee} evidence; give the release root to have it looked at"
        return Attested((), (Omission("inference", detail),), simulated)
    held = {**trust.evidence, **evidence}
    result = appraise_inference(
        block, held, began=claims.attempts[-1].started_at, policy=trust.inference, collateral=trust.collateral
    )
    findings = (*_findings("inference", result), *_check_distinct(claims.router_attestation, block, held))
    return Attested(findings, _omissions("inference", result), simulated or result.simulated)


def _check_distinct(
    router: RouterAttestation | None, block: InferenceAttestation, held: Mapping[str, bytes]
) -> tuple[Finding, ...]:
    """Check that a Tresor upstream is not the router itself: the same TLS key and the same workload are one node."""
    answer = next((held.get(reference.digest) for reference in block.evidence if reference.type == "answer"), None)
    if router is None or answer is None or block.origin != "tresor":
        return ()
    try:
        node = parse_envelope(answer)
    except AttestationError:  # which the appraisal reports
        return ()
    apart = (node.tls_spki_sha256, node.workload_identity_tag) != (router.tls_spki_sha256, router.workload_identity_tag)
    if not apart:
        detail = "the upstream has the router's own TLS key and workload: one node's evidence for both hops"
        return (Finding("hops", detail, ReceiptCode.HOPS_NOT_DISTINCT),)
    return (Finding("hops", "router and upstream are not one node"),)


def _missing(claims: ReceiptClaims, trust: Trust | None) -> tuple[Finding, ...]:
    rows = (
        ("router", claims.router_attestation, ReceiptCode.ROUTER_ATTESTATION_MISSING),
        ("inference", claims.inference_attestation, ReceiptCode.INFERENCE_ATTESTATION_MISSING),
    )
    return tuple(
        Finding(f"{hop}_attestation", f"the receipt has no {hop}_attestation, which is required", code)
        for hop, block, code in rows
        if block is None and trust is not None and hop in trust.require
    )


def _check_key(block: RouterAttestation, key: ReceiptKey, iat: int) -> tuple[Finding, ...]:
    signed_by = public_jwk(key.public_key)
    bound, signing = (thumbprint(k.x, k.y) for k in (block.receipt_key, signed_by))
    if bound != signing:
        detail = f"router_attestation is about {block.receipt_key.kid[:64]!r}, and {key.kid} signed the receipt"
        return (Finding("router_key", detail, ReceiptCode.ROUTER_KEY_NOT_BOUND),)
    findings = [Finding("router_key", "router_attestation is about the key that signed")]
    issued, at = datetime.fromisoformat(block.issued_at), datetime.fromtimestamp(iat, UTC)
    if not issued - CLOCK_SKEW <= at <= issued + timedelta(seconds=block.max_age_seconds) + CLOCK_SKEW:
        detail = f"iat is {at.isoformat()}, the evidence is of {block.issued_at} for {block.max_age_seconds} s"
        findings.append(Finding("router_time", detail, ReceiptCode.ROUTER_ATTESTATION_STALE))
    return tuple(findings)


def _appraise(
    block: RouterAttestation, held: Mapping[str, bytes], key: ReceiptKey, iat: int, trust: Trust
) -> AttestationResult:
    at = datetime.fromtimestamp(iat, UTC)
    try:
        envelope = envelope_of(block, held)
        bundle = _bundle(block, held, at, trust)
    except AttestationError as error:
        return AttestationResult.of_error(block.tee, "evidence", error)
    except TrustError as error:
        return AttestationResult(tee=block.tee, checks=(failed("trust_bundle", error.code, str(error)),))
    signed_by = public_jwk(key.public_key)
    demands = Demands(receipt_thumbprint=thumbprint(signed_by.x, signed_by.y))
    return appraise_node(envelope, bundle=bundle, collateral=trust.collateral, demands=demands, now=at)


def _bundle(block: RouterAttestation, held: Mapping[str, bytes], at: datetime, trust: Trust) -> TrustBundle:
    token = trust.bundle
    if token is None:
        digests = (reference.digest for reference in block.evidence if reference.type == TRUST_BUNDLE)
        token = next((held[digest] for digest in digests if digest in held), None)
    if token is None:
        raise EvidenceUndecidedError(
            AttestationCode.COLLATERAL_MISSING, "there is no trust bundle, neither given nor with the receipt"
        )
    return verify_bundle(
        parse_bundle(token),
        trust.release_root,
        now=at,
        min_version=trust.min_bundle_version,
        workload=trust.workload,
        allow_simulated=trust.allow_simulated,
    )


def _findings(hop: str, result: AttestationResult) -> tuple[Finding, ...]:
    """Return the appraisal's checks as findings of the receipt."""
    rows = [
        Finding(f"{hop}:{check.check}", check.detail, check.code, undecided=check.status == "undecided")
        for check in result.checks
    ]
    if result.outcome == "accepted":
        rows.append(Finding(f"{hop}_tee", f"{'SIMULATED' if result.simulated else result.tee}, as demanded"))
    return tuple(rows)


def _omissions(hop: str, result: AttestationResult) -> tuple[Omission, ...]:
    # The receipt's own times and digests stand in for a challenge and a connection.
    rows = ((item, why) for item, why in result.not_checked.items() if item not in ("nonce", "tls_binding"))
    return tuple(Omission(f"{hop}:{item}", why) for item, why in rows)
