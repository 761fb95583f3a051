"""Appraise `inference_attestation` again, years later: what the upstream answered, for the connection it was pinned to.

The same function judges that judged when the prompt left (`tresor.attestation.hop`), as of the same instant; the prompt
must have left while the evidence counted.  Pure: everything is given.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from tresor.attestation.blocks import InferenceAttestation
from tresor.attestation.codes import AttestationCode
from tresor.attestation.envelope import TRUST_BUNDLE
from tresor.attestation.evidence import Collateral, CollateralKind
from tresor.attestation.hop import HOP_KINDS, HopAnswer, HopPolicy, appraise_hop
from tresor.attestation.node import CLOCK_SKEW
from tresor.attestation.results import AttestationResult, Check, failed, undecided

__all__ = ["appraise_inference"]

_KINDS: Final = frozenset(CollateralKind)


def appraise_inference(
    block: InferenceAttestation, held: Mapping[str, bytes], *, began: str, policy: HopPolicy, collateral: Collateral
) -> AttestationResult:
    """Appraise the evidence that a receipt holds about the upstream that served.

    Args:
        block: as it stands in the receipt; its `origin` is not `none`.
        held: digest to bytes of what it refers to.
        began: RFC 3339 instant at which the attempt that served began.
        policy: what is demanded of the upstream.
        collateral: endorsements, besides those that the block refers to.
    """
    kind = next((kind for kind in HOP_KINDS if kind == block.origin), None)
    spki, nonce, since, until = block.channel_binding.spki_sha256, block.nonce, block.verified_at, block.expires_at
    if kind is None or spki is None or nonce is None or since is None or until is None:
        detail = "inference_attestation lacks its kind, its channel, its times or its nonce"
        return _nothing(block, failed("block", AttestationCode.EVIDENCE_MALFORMED, detail))
    digests = {reference.type: reference.digest for reference in block.evidence}
    document = held.get(digests.get("answer", ""))
    if document is None:
        detail = "what the upstream answered is not at hand"
        return _nothing(block, undecided("evidence", AttestationCode.EVIDENCE_MISSING, detail))
    bundle = held.get(digests.get(TRUST_BUNDLE, ""))
    if TRUST_BUNDLE in digests and bundle is None:
        detail = "the upstream's trust bundle is not at hand"
        return _nothing(block, undecided("evidence", AttestationCode.EVIDENCE_MISSING, detail))
    verified_at = datetime.fromisoformat(since)
    result, _ = appraise_hop(
        HopAnswer(kind=kind, document=document, nonce=bytes.fromhex(nonce), trust_bundle=bundle),
        spki_sha256=bytes.fromhex(spki),
        policy=policy,
        collateral=collateral + _collateral_of(block, held),
        now=verified_at,
    )
    left, ends = datetime.fromisoformat(began), datetime.fromisoformat(until)
    if not verified_at - CLOCK_SKEW <= left <= ends + CLOCK_SKEW:
        detail = f"the attempt began at {began}, the evidence counted from {since} to {until}"
        return replace(result, checks=(*result.checks, failed("time", AttestationCode.ISSUED_AT_STALE, detail)))
    return result


def _nothing(block: InferenceAttestation, check: Check) -> AttestationResult:
    return AttestationResult(tee=block.tee, checks=(check,))


def _collateral_of(block: InferenceAttestation, held: Mapping[str, bytes]) -> Collateral:
    items = (item for item in block.evidence if item.type == "collateral" and item.digest in held)
    return Collateral.of(
        (CollateralKind(item.media_type), held[item.digest]) for item in items if item.media_type in _KINDS
    )
