"""AWS Nitro attestation documents: well-formed, genuine, acceptable, in one result (docs/spec/attestation.md, 5.5).

Pure: bytes, policy, anchors and instant come in, one `AttestationResult` goes out; nothing is raised on bad input.
"""

import hashlib
from datetime import datetime

from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Evidence, Expected, Need
from tresor.attestation.nitro.abi import NitroDocument, parse_document
from tresor.attestation.nitro.appraise import appraise_document
from tresor.attestation.nitro.policy import NitroPolicy
from tresor.attestation.nitro.verify import verify_document
from tresor.attestation.results import AttestationResult, Check, Claim, Claims, passed
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.x509 import validity

__all__ = ["appraise_nitro", "needs"]

_TEE = "aws-nitro"


def needs(_evidence: Evidence, _collateral: Collateral) -> tuple[Need, ...]:
    """Return nothing: a Nitro document carries its whole chain."""
    return ()


def appraise_nitro(
    evidence: Evidence,
    *,
    collateral: Collateral,  # noqa: ARG001 - one signature for every TEE; this one needs none
    policy: NitroPolicy,
    expected: Expected,
    anchors: TrustAnchors,
    now: datetime,
) -> AttestationResult:
    """Appraise one attestation document, steps (1) to (10) of docs/spec/attestation.md section 5.5.

    Args:
        evidence: the document as the NSM device gave it.
        collateral: not looked at: a document carries its whole chain.
        policy: what is acceptable.
        expected: what `user_data` and `nonce` must be.
        anchors: pinned roots.
        now: instant to appraise at (aware, UTC); a document is good for at most three hours.
    """
    checks: list[Check] = []
    step = "document"
    try:
        unverified = parse_document(evidence.data)
        checks.append(passed(step, f"COSE_Sign1 of module {unverified.document.module_id}"))
        step = "document_signature"
        genuine = verify_document(unverified, roots=anchors.nitro, now=now)
    except AttestationError as error:
        return AttestationResult.of_error(_TEE, step, error, before=checks)
    checks.append(passed(step, f"ES384 by a chain of {len(genuine.chain)} certificates to the pinned root"))
    checks += appraise_document(genuine, policy=policy, expected=expected, now=now)
    document = genuine.document
    valid_from, valid_until = validity(genuine.chain)
    return AttestationResult(
        tee=_TEE,
        checks=tuple(checks),
        claims=_claims(checks, policy),
        measurements={f"PCR{index}": value.hex() for index, value in sorted(document.pcrs.items())},
        not_checked=_not_checked(document, policy, expected),
        report_data=document.user_data,
        valid_from=valid_from,
        valid_until=valid_until,
        details=_details(document),
    )


def _claims(checks: list[Check], policy: NitroPolicy) -> Claims:
    failed = {check.check: check.code for check in checks if check.status == "failed"}
    debug = failed.get("debug")
    if policy.skip_pcrs:
        workload = Claim(status="unknown", source="hardware", reason="no reference values")
    elif "pcrs" in failed:
        workload = Claim(status="refuted", source="hardware", reason=failed["pcrs"])
    elif "0" in policy.allowed_pcrs or {"1", "2"} <= policy.allowed_pcrs.keys():
        workload = Claim(status="proven", source="hardware", reason="image registers allowed")
    else:
        workload = Claim(status="unknown", source="hardware", reason="neither PCR0 nor both PCR1 and PCR2 were held")
    return Claims(
        cpu_tee=Claim(status="refuted" if debug else "proven", source="hardware", reason=debug),
        tcb=Claim(status="unknown", source="hardware", reason="AWS states no TCB version"),
        workload=workload,
    )


def _not_checked(document: NitroDocument, policy: NitroPolicy, expected: Expected) -> dict[str, str]:
    omitted = {
        "tcb": "a Nitro document states no version of the hypervisor or its firmware",
        "revocation": "AWS tells verifiers to disable it; the leaf lives three hours",
        "gpu_tee": "no GPU is part of a Nitro enclave",
    }
    if policy.skip_pcrs:
        omitted["workload"] = "the policy skips the registers"
    if expected.report_data is None:
        omitted["tls_binding"] = "no user data was expected, so nothing binds a channel"
    if expected.nonce is None:
        omitted["nonce"] = "no nonce was expected"
    if document.public_key is not None:
        omitted["public_key"] = "nothing is expected of it; its SHA-256 is in the details"
    return omitted


def _details(document: NitroDocument) -> dict[str, str]:
    details = {"module_id": document.module_id, "timestamp_ms": str(document.timestamp)}
    if document.public_key is not None:
        details["public_key_sha256"] = hashlib.sha256(document.public_key).hexdigest()
    return details
