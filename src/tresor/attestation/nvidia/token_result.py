"""The appraisal of a detached EAT in one result: steps (10) to (12) of docs/spec/attestation.md, 5.3."""

from collections.abc import Mapping
from datetime import datetime

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Expected
from tresor.attestation.nvidia.appraise import (
    PUBLIC_NONCE,
    appraise_count,
    appraise_device_claims,
    appraise_overall,
    appraise_token_nonce,
    appraise_versions,
)
from tresor.attestation.nvidia.findings import TEE, check_of_error, gpu_claim, nonce_reason
from tresor.attestation.nvidia.nras import (
    DetachedEat,
    DeviceClaims,
    GenuineToken,
    parse_nras_jwks,
    verify_device_token,
    verify_overall_token,
)
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.results import AttestationResult, Check, Claims, failed, passed, undecided
from tresor.attestation.roots import TrustAnchors

__all__ = ["appraise_eat"]

_NO_REVOCATION = "claims of this version do not say what NVIDIA's responders answered"


def appraise_eat(
    eat: DetachedEat,
    *,
    collateral: Collateral,
    policy: NvidiaPolicy,
    expected: Expected,
    anchors: TrustAnchors,
    now: datetime,
) -> AttestationResult:
    """Appraise the tokens of NVIDIA's remote verifier.

    Args:
        eat: the tokens.
        collateral: `jwks` holds the recorded key sets.
        policy: what is acceptable.
        expected: `nonce` is the challenge.
        anchors: `nras_intermediates` holds the pinned certificates.
        now: instant to appraise at (aware, UTC).
    """
    try:
        keys = parse_nras_jwks(collateral.jwks)
        overall = verify_overall_token(eat.overall, keys, anchors=anchors, now=now)  # (10)
    except AttestationError as error:
        check = check_of_error("token", error)
        return AttestationResult(
            tee=TEE, checks=(check,), claims=Claims(gpu_tee=gpu_claim([check], "verifier", gpus=0, proven=""))
        )
    identity: list[Check] = [passed("token", "ES384 by a key that the pinned intermediate vouches for")]
    identity += appraise_overall(overall.claims, list(eat.devices))
    devices: dict[str, DeviceClaims] = {}
    wanted = appraise_token_nonce(overall.claims, expected.nonce, policy)
    for text in eat.devices:
        kind, _, number = text.partition("-")
        name = f"{kind.lower()}[{number}]"
        try:
            claims = verify_device_token(text, eat, overall, keys, anchors=anchors, now=now)  # (11)
        except AttestationError as error:
            identity.append(check_of_error(f"{name}.token", error))
            continue
        identity.append(passed(f"{name}.token", "the one that the overall token means"))
        identity += appraise_device_claims(name, claims, policy)  # (12)
        if kind == "GPU":
            wanted += appraise_versions(name, claims.driver, claims.vbios, policy)
        devices[name] = claims
    if not policy.allow_protected_pcie:
        wanted.append(undecided("mode", AttestationCode.ATTRIBUTES_NOT_ALLOWED, "a token does not state the mode"))
    if policy.require_revocation and not all(claims.chains for claims in devices.values()):
        wanted.append(undecided("revocation", AttestationCode.REVOCATION_UNKNOWN, _NO_REVOCATION))
    gpus = sum(name.startswith("gpu") for name in devices)
    ueids = [claims.ueid for claims in devices.values() if claims.ueid is not None]
    if len(set(ueids)) != len(ueids):
        identity.append(failed("ueid", AttestationCode.GPU_DUPLICATE, "one device stands twice"))
    return AttestationResult(
        tee=TEE,
        checks=(*identity, *wanted, *appraise_count(gpus, policy)),
        claims=Claims(
            gpu_tee=gpu_claim(identity, "verifier", gpus=gpus, proven=f"the word of NVIDIA's service; GPUs: {gpus}")
        ),
        not_checked=_not_checked(devices, overall, expected),
        report_data=bytes.fromhex(overall.claims.eat_nonce),
        valid_from=overall.valid_from,
        valid_until=overall.valid_until,
        details={"gpus": str(gpus)} | _details(devices),
    )


def _not_checked(devices: Mapping[str, DeviceClaims], overall: GenuineToken, expected: Expected) -> dict[str, str]:
    omitted = {"gpu_evidence": "a token holds NVIDIA's word and not the evidence that it is about"}
    if expected.nonce is None:
        omitted["nonce"] = nonce_reason(public=overall.claims.eat_nonce == PUBLIC_NONCE.hex())
    if not all(claims.chains for claims in devices.values()):
        omitted["revocation"] = _NO_REVOCATION
    if warnings := {claims.warning for claims in devices.values() if claims.warning is not None}:
        omitted["warning"] = "; ".join(sorted(warnings))
    return omitted


def _details(devices: Mapping[str, DeviceClaims]) -> dict[str, str]:
    details: dict[str, str] = {}
    for name, claims in devices.items():
        facts = {
            "chip": claims.hwmodel,
            "ueid": claims.ueid,
            "driver": claims.driver,
            "vbios": claims.vbios,
            "measres": claims.measres,
            "secboot": None if claims.secboot is None else str(claims.secboot).lower(),
            "dbgstat": claims.dbgstat,
        }
        details |= {f"{name}.{fact}": value for fact, value in facts.items() if value is not None}
    return details
