"""Whether a Tresor node is what its trust bundle allows: the envelope held against bundle, channel, nonce and clock.

    (1) the bundle is in force, and its roots are pinned ones         tresor.trust.bundle, `anchors_of`
    (2) the envelope is of now
    (3) the manifest is signed, allowed, and the one that is bound
    (4) the evidence is genuine, not debuggable, VMPL 0, TCB at the floor
    (5) what was launched is allowed
    (6) REPORT_DATA binds TLS key and workload, receipt key and nonce
    (7) the connection is the one that is bound

Every check is made that can be made, and every failure reported.  Implements docs/spec/attestation.md section 6.4.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import msgspec
from cryptography.x509 import Certificate
from cryptography.x509.oid import NameOID

from tresor.attestation.binding import channel_half, keys_half, report_data
from tresor.attestation.blocks import instant_of
from tresor.attestation.codes import AttestationCode
from tresor.attestation.envelope import Envelope, collateral_of, evidence_of
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Expected
from tresor.attestation.policy import Policy
from tresor.attestation.registry import appraise
from tresor.attestation.results import AttestationResult, Check, Claim, failed, outcome_of, passed
from tresor.attestation.roots import PINS, TrustAnchors
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.jose.jwk import kid_of, thumbprint
from tresor.trust.bundle import SIMULATED, TrustBundle, check_hw_roots, check_measurements, verify_manifest
from tresor.trust.errors import TrustError
from tresor.trust.manifest import parse_manifest

__all__ = ["CLOCK_SKEW", "Demands", "anchors_of", "appraise_node", "policy_of"]

CLOCK_SKEW: Final = timedelta(seconds=60)
"""Two honest clocks may differ by this much."""
_HALF: Final = 32
_VTPM: Final = frozenset({"azure-sev-snp", "azure-tdx"})
_DONE_HERE: Final = frozenset({"nonce", "tls_binding", "workload"})
_RTMRS_AND_CONFIG: Final = frozenset({"RTMR0", "RTMR1", "RTMR2", "RTMR3", "MRCONFIGID"})
_BEYOND_FIRMWARE: Final = {
    "tdx": _RTMRS_AND_CONFIG,
    "azure-sev-snp": frozenset({"PCR4"}),
    "azure-tdx": frozenset({"PCR4"}),
}
"""Where MEASUREMENT or MRTD is that of a firmware that boots anything: registers of which one tells what it booted."""
_PRODUCTS: Final = {"ARK-Milan": "Milan", "ARK-Genoa": "Genoa", "ARK-Turin": "Turin"}
_PINNED: Final = {
    "amd": frozenset(digest for name, digest in PINS.items() if name.startswith("amd_") and name.endswith("_ark")),
    "intel": frozenset({PINS["intel_sgx_root_ca"]}),
    "azure": frozenset({PINS["azure_tpm_root_2023"]}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a caller holds against an envelope; None where it demands nothing, which the result then says.

    Attributes:
        nonce: the challenge that was sent, 32 bytes.
        tls_spki_sha256: of the live connection, 32 bytes.
        receipt_thumbprint: of the key that signed the receipt in which the envelope stands, 32 bytes.
    """

    nonce: bytes | None = None
    tls_spki_sha256: bytes | None = None
    receipt_thumbprint: bytes | None = None


def anchors_of(bundle: TrustBundle) -> TrustAnchors:
    """Return the roots that a bundle trusts.

    Raises:
        TrustRefusedError: one of them is not among the vendors' that are pinned in code.
    """
    check_hw_roots(bundle, _PINNED)
    if bundle.content.claims.simulated:
        return TrustAnchors(amd={}, simulated=bundle.content.hw_roots.get(SIMULATED, ()))
    arks: dict[str, tuple[Certificate, ...]] = {}
    for ark in bundle.content.hw_roots.get("amd", ()):
        product = _PRODUCTS[str(ark.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)]
        arks[product] = (*arks.get(product, ()), ark)
    return TrustAnchors(
        amd=arks, intel=bundle.content.hw_roots.get("intel", ()), azure_tpm=bundle.content.hw_roots.get("azure", ())
    )


def policy_of(bundle: TrustBundle) -> Policy:
    """Return what a bundle demands of evidence besides its measurements, which `appraise_node` compares itself."""
    floors = bundle.content.claims.min_tcb
    tdx_floor = floors.get("TDX", {})
    simulated = bundle.content.claims.simulated
    amd = {} if simulated else {name: floor for name, floor in floors.items() if name in _PRODUCTS.values()}
    return Policy(
        snp=msgspec.convert({"min_tcb": amd, "skip_tcb_floor": simulated}, SnpPolicy),
        tdx=TdxPolicy(min_tcb_evaluation_data_number=tdx_floor.get("tcb_evaluation_data_number", 0)),
    )


def appraise_node(
    envelope: Envelope, *, bundle: TrustBundle, collateral: Collateral, demands: Demands, now: datetime
) -> AttestationResult:
    """Appraise the envelope of a Tresor node.

    Args:
        envelope: as parsed; nothing of it is believed.
        bundle: the trust bundle of the workload, in force at `now`.
        collateral: endorsements besides those in the envelope.
        demands: what the caller holds.
        now: instant to appraise at (aware, UTC).
    """
    about_node = [*_check_time(envelope, now), *_check_workload(envelope, bundle), *_check_demands(envelope, demands)]
    try:
        evidence, anchors = evidence_of(envelope), anchors_of(bundle)
        endorsed = collateral_of(envelope) + collateral
    except (AttestationError, TrustError) as error:
        checks = (failed("evidence", error.code, str(error)), *about_node)
        return AttestationResult(tee=envelope.tee, checks=checks)
    wanted = report_data(*_bound_values(envelope))
    expected = Expected(report_data=wanted) if envelope.tee in _VTPM else Expected()
    result = appraise(
        evidence, collateral=endorsed, policy=policy_of(bundle), expected=expected, now=now, anchors=anchors
    )
    checks = (*result.checks, *_check_bound(envelope, result, bundle), *about_node)
    not_checked = {item: why for item, why in result.not_checked.items() if item not in _DONE_HERE}
    if demands.nonce is None:
        not_checked["nonce"] = "no challenge was sent: the evidence may be as old as issued_at says"
    if demands.tls_spki_sha256 is None:
        not_checked["tls_binding"] = "no connection was looked at; the evidence binds tls_spki_sha256"
    claims = result.claims
    if outcome_of(checks) == "accepted" and not result.simulated:
        workload = Claim(status="proven", source="hardware", reason="the bundle allows the launch and the manifest")
        if not _shows_workload(envelope, result, bundle):
            reason = "the bundle holds the firmware and no register that tells what it booted"
            workload = Claim(status="unknown", source="hardware", reason=reason)
            not_checked["workload"] = reason
        claims = msgspec.structs.replace(claims, workload=workload)
    details = {**result.details, "trust_bundle_version": str(bundle.content.claims.version)}
    return replace(result, checks=checks, claims=claims, not_checked=not_checked, details=details)


def _check_time(envelope: Envelope, now: datetime) -> list[Check]:
    issued_at = instant_of(envelope.issued_at)
    expires_at = issued_at + timedelta(seconds=envelope.max_age_seconds)
    if now < issued_at - CLOCK_SKEW:
        detail = f"issued at {envelope.issued_at}, later than {now.isoformat()}"
        return [failed("issued_at", AttestationCode.ISSUED_AT_IN_FUTURE, detail)]
    if now > expires_at + CLOCK_SKEW:
        detail = f"issued at {envelope.issued_at} for {envelope.max_age_seconds} s, asked for {now.isoformat()}"
        return [failed("issued_at", AttestationCode.ISSUED_AT_STALE, detail)]
    return [passed("issued_at", f"{envelope.issued_at}, for {envelope.max_age_seconds} s; the node's own word")]


def _check_workload(envelope: Envelope, bundle: TrustBundle) -> list[Check]:
    checks: list[Check] = []
    if envelope.workload != bundle.content.claims.workload:
        detail = f"the node says it is {envelope.workload!r}, the bundle is about {bundle.content.claims.workload!r}"
        checks.append(failed("workload", AttestationCode.WORKLOAD_MISMATCH, detail))
    try:
        unverified = parse_manifest(envelope.workload_identity_manifest_jws.encode())
        manifest = verify_manifest(unverified, bundle)
    except TrustError as error:
        return [*checks, failed("manifest", error.code, str(error))]
    if manifest.tag.hex() != envelope.workload_identity_tag:
        detail = f"the manifest's tag is {manifest.tag.hex()}, the envelope says {envelope.workload_identity_tag}"
        return [*checks, failed("manifest", AttestationCode.IDENTITY_TAG_MISMATCH, detail)]
    detail = f"{manifest.claims.workload} {manifest.claims.version}, tag {manifest.tag.hex()}, allowed by the bundle"
    return [*checks, passed("manifest", detail)]


def _check_bound(envelope: Envelope, result: AttestationResult, bundle: TrustBundle) -> list[Check]:
    """Check what genuine evidence says was launched, and what it binds; of any other there is nothing to say."""
    if result.report_data is None:
        return []
    try:
        allowed = check_measurements(bundle, result.measurements)
        launch = passed("measurement", f"{', '.join(sorted(allowed))} as the bundle allows")
    except TrustError as error:
        launch = failed("measurement", error.code, str(error))
    if envelope.tee in _VTPM:  # whose qualifying data is a digest of both halves, held against them already
        return [launch]
    return [launch, *_check_halves(result.report_data, envelope)]


def _shows_workload(envelope: Envelope, result: AttestationResult, bundle: TrustBundle) -> bool:
    """Whether an entry of the bundle that fits says more than which firmware was launched (5.2.3, 5.4.5)."""
    telling = _BEYOND_FIRMWARE.get(envelope.tee)
    return telling is None or any(
        allowed.items() <= result.measurements.items() and telling & allowed.keys()
        for allowed in bundle.content.measurements
    )


def _bound_values(envelope: Envelope) -> tuple[bytes, bytes, bytes, bytes]:
    """Return what REPORT_DATA binds, as the envelope states it: SPKI digest, tag, thumbprint, nonce."""
    return (
        bytes.fromhex(envelope.tls_spki_sha256),
        bytes.fromhex(envelope.workload_identity_tag),
        thumbprint(envelope.receipt_key.x, envelope.receipt_key.y),
        bytes.fromhex(envelope.nonce or ""),
    )


def _check_halves(signed: bytes, envelope: Envelope) -> list[Check]:
    spki, tag, key, nonce = _bound_values(envelope)
    channel = channel_half(spki, tag)
    first, second = signed[:_HALF], signed[_HALF:]
    checks = [passed("channel", "REPORT_DATA[0:32] binds TLS key and workload identity tag")]
    if first != channel:
        detail = f"REPORT_DATA[0:32] is {first.hex()}, want {channel.hex()} from tls_spki_sha256 and tag"
        checks = [failed("channel", AttestationCode.CHANNEL_NOT_BOUND, detail)]
    if second == keys_half(key, nonce):
        return [*checks, passed("receipt_key", "REPORT_DATA[32:64] binds receipt key and nonce")]
    if nonce and second == keys_half(key, b""):
        detail = "the envelope states a nonce, and the evidence was made without one"
        return [*checks, failed("receipt_key", AttestationCode.ENVELOPE_REPLAYED, detail)]
    detail = f"REPORT_DATA[32:64] is {second.hex()}, want {keys_half(key, nonce).hex()} from receipt_key and nonce"
    return [*checks, failed("receipt_key", AttestationCode.KEY_NOT_BOUND, detail)]


def _check_demands(envelope: Envelope, demands: Demands) -> list[Check]:
    """Check what the caller holds against what the envelope says; that the evidence binds it is checked elsewhere."""
    checks: list[Check] = []
    rows = (
        ("nonce", demands.nonce, envelope.nonce, AttestationCode.NONCE_MISMATCH),
        ("tls_spki", demands.tls_spki_sha256, envelope.tls_spki_sha256, AttestationCode.SPKI_MISMATCH),
    )
    for name, wanted, got, code in rows:
        if wanted is not None and got != wanted.hex():
            checks.append(failed(name, code, f"the envelope says {got or 'nothing'}, want {wanted.hex()}"))
        elif wanted is not None:
            checks.append(passed(name, wanted.hex()))
    if envelope.receipt_key.kid != kid_of(envelope.receipt_key.x, envelope.receipt_key.y):
        detail = f"receipt_key is called {envelope.receipt_key.kid[:64]!r}, which is not the name of that key"
        checks.append(failed("kid", AttestationCode.KEY_NOT_BOUND, detail))
    key = demands.receipt_thumbprint
    if key is not None and thumbprint(envelope.receipt_key.x, envelope.receipt_key.y) != key:
        detail = f"receipt_key is {envelope.receipt_key.kid[:64]!r}, and another key signed the receipt"
        checks.append(failed("signing_key", AttestationCode.KEY_NOT_BOUND, detail))
    elif key is not None:
        checks.append(passed("signing_key", "receipt_key is the key that signed the receipt"))
    return checks
