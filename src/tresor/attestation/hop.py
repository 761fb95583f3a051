"""The upstream hop: what an upstream of any kind answers about itself, appraised for one connection.

The router asks over the connection it is about to use; `tresor-verify` holds the same answer, kept with the receipt,
against the same rules years later.  One pure function serves both.  Implements docs/spec/attestation.md section 9.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from tresor.attestation import registry
from tresor.attestation.blocks import ChannelBinding, instant_of
from tresor.attestation.codes import AttestationCode
from tresor.attestation.envelope import collateral_of, evidence_of, parse_envelope
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Need
from tresor.attestation.node import Demands, appraise_node
from tresor.attestation.policy import STRICT, Policy
from tresor.attestation.providers.aci import parse_aci
from tresor.attestation.providers.answer import Known, Node, appraise_answer
from tresor.attestation.providers.dstack import parse_dstack
from tresor.attestation.providers.tinfoil import parse_tinfoil
from tresor.attestation.results import AttestationResult, Check, failed, undecided
from tresor.attestation.roots import TrustAnchors, vendor_anchors
from tresor.trust.bundle import parse_bundle, verify_bundle
from tresor.trust.errors import TrustError
from tresor.trust.jwk import TrustKey

__all__ = [
    "HOP_KINDS",
    "TRUST_BUNDLE_TARGET",
    "HopAnswer",
    "HopAppraisal",
    "HopKind",
    "HopPolicy",
    "appraise_hop",
    "hop_needs",
    "hop_target",
]

HopKind: TypeAlias = Literal["tresor", "tinfoil", "dstack", "aci"]
HOP_KINDS: Final[tuple[HopKind, ...]] = get_args(HopKind)
TRUST_BUNDLE_TARGET: Final = "/.well-known/tresor-trust-bundle"

_TARGETS: Final[Mapping[HopKind, str]] = {
    "tresor": "/attestation?nonce={nonce}",
    "tinfoil": "/.well-known/tinfoil-attestation?nonce={nonce}",
    # NEAR takes `include_tls_fingerprint`, Phala `version=2`, for the form that binds the TLS key.
    "dstack": "/v1/attestation/report?nonce={nonce}&signing_algo=ecdsa&include_tls_fingerprint=true&version=2",
    "aci": "/v1/aci/attestation?nonce={nonce}",
}
_PARSERS: Final[Mapping[HopKind, Callable[[bytes, Known], tuple[Node, ...]]]] = {
    "tinfoil": parse_tinfoil,
    "dstack": parse_dstack,
    "aci": parse_aci,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HopPolicy:
    """What an operator or auditor demands of an upstream.

    Attributes:
        policy: rules for its evidence; those of a Tresor node come from its trust bundle instead.
        release_root: of a Tresor node: key of whoever releases its software.
        workload: of a Tresor node: name of its service.
        min_bundle_version: of a Tresor node: version below which its trust bundle is rolled back.
        allow_simulated: of a Tresor node: whether evidence of no hardware will do.
        kinds: what the upstream may be: rules for one kind hold nothing of another.
    """

    policy: Policy = STRICT
    release_root: TrustKey | None = None
    workload: str = "inference"
    min_bundle_version: int = 0
    allow_simulated: bool = False
    kinds: tuple[HopKind, ...] = HOP_KINDS


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HopAnswer:
    """What an upstream said of itself.

    Attributes:
        kind: in which form.
        document: as received.
        nonce: the challenge that was sent, 32 bytes.
        trust_bundle: of a Tresor node, as received; None where there is none.
    """

    kind: HopKind
    document: bytes
    nonce: bytes
    trust_bundle: bytes | None = None


class HopAppraisal(NamedTuple):
    """What was found out, and what a connection may be pinned to."""

    result: AttestationResult
    channel: ChannelBinding


_UNBOUND: Final = ChannelBinding(type="none")


def hop_target(kind: HopKind, nonce: bytes) -> str:
    """Return path and query that an upstream of this kind answers about itself, for a challenge of 32 bytes."""
    return _TARGETS[kind].format(nonce=nonce.hex())


def hop_needs(answer: HopAnswer, collateral: Collateral) -> tuple[Need, ...]:
    """Return what the appraisal could use besides `collateral`; an answer that cannot be read needs nothing."""
    try:
        if answer.kind == "tresor":
            envelope = parse_envelope(answer.document)
            return registry.needs(evidence_of(envelope), collateral_of(envelope) + collateral)
        nodes = _PARSERS[answer.kind](answer.document, Known(nonce=answer.nonce))
    except AttestationError:
        return ()
    pieces = [piece for node in nodes for piece in (node.cpu, node.gpus) if piece is not None]
    return tuple(dict.fromkeys(need for piece in pieces for need in registry.needs(piece, collateral)))


def appraise_hop(
    answer: HopAnswer,
    *,
    spki_sha256: bytes,
    policy: HopPolicy,
    collateral: Collateral,
    now: datetime,
    anchors: TrustAnchors | None = None,
) -> HopAppraisal:
    """Appraise an upstream's answer for one connection.

    An answer that is genuine and binds no TLS key, or another one, is rejected: the prompt would go to whoever ends the
    connection.

    Args:
        answer: as received.
        spki_sha256: SHA-256 of the SubjectPublicKeyInfo of the connection, 32 bytes.
        policy: what is demanded.
        collateral: endorsements, unverified.
        now: instant to appraise at (aware, UTC).
        anchors: what is trusted in place of the pinned vendor roots; a Tresor node's come from its trust bundle.
    """
    if answer.kind not in policy.kinds:
        detail = f"the upstream is of kind {answer.kind}, want {' or '.join(policy.kinds)}: the rules are for that"
        return HopAppraisal(_refused(failed("kind", AttestationCode.EVIDENCE_KIND_MISMATCH, detail)), _UNBOUND)
    if answer.kind == "tresor":
        result = _appraise_tresor(answer, spki_sha256, policy, collateral, now)
    else:
        result = appraise_answer(
            _PARSERS[answer.kind],
            answer.document,
            known=Known(nonce=answer.nonce, spki_sha256=spki_sha256),
            collateral=collateral,
            policy=policy.policy,
            anchors=anchors or vendor_anchors(),
            now=now,
        ).result
    if result.outcome != "accepted":
        return HopAppraisal(result, _UNBOUND)
    return HopAppraisal(result, ChannelBinding(type="tls_spki_sha256", spki_sha256=spki_sha256.hex()))


def _appraise_tresor(
    answer: HopAnswer, spki_sha256: bytes, policy: HopPolicy, collateral: Collateral, now: datetime
) -> AttestationResult:
    if policy.release_root is None:
        return _refused(failed("trust_bundle", AttestationCode.ROOT_NOT_PINNED, "no release root is given"))
    if answer.trust_bundle is None:
        detail = "the upstream serves no trust bundle, and none is given"
        return _refused(undecided("trust_bundle", AttestationCode.COLLATERAL_MISSING, detail))
    try:
        envelope = parse_envelope(answer.document)
        bundle = verify_bundle(
            parse_bundle(answer.trust_bundle),
            policy.release_root,
            now=now,
            min_version=policy.min_bundle_version,
            workload=policy.workload,
            allow_simulated=policy.allow_simulated,
        )
    except AttestationError as error:
        return _refused(failed("envelope", error.code, str(error)))
    except TrustError as error:
        return _refused(failed("trust_bundle", error.code, str(error)))
    demands = Demands(nonce=answer.nonce, tls_spki_sha256=spki_sha256)
    result = appraise_node(envelope, bundle=bundle, collateral=collateral, demands=demands, now=now)
    ends = (bundle.content.valid_until, instant_of(envelope.issued_at) + timedelta(seconds=envelope.max_age_seconds))
    return replace(result, valid_until=min(*ends, result.valid_until or ends[0]))


def _refused(check: Check) -> AttestationResult:
    return AttestationResult(tee="unknown", checks=(check,))
