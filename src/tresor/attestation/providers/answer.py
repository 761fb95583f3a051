"""What every provider's answer has in common: nodes, and what their REPORT_DATA ties together (attestation.md, 5.7).

A provider's module turns its answer into `Node`s: evidence, and a rule for each half of REPORT_DATA as data.  This one
appraises them: the CPU evidence, the rules, the GPUs.  What REPORT_DATA covers is bound; what the answer says beside
it is the provider's word and proves nothing.

Four things can be bound, each proven, refuted or unknown:

    nonce   the caller's challenge, so the evidence is fresh
    key     the key that signs or encrypts what the node says
    tls     the public key of the node's TLS connection (SHA-256 of its SubjectPublicKeyInfo)
    gpu     the GPUs, so they belong to this CPU TEE and not to another machine
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from tresor.attestation import registry
from tresor.attestation.blocks import ChannelBinding
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, EvidenceMalformedError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.join import Part, join, without
from tresor.attestation.nvidia.evidence_list import parse_evidence_list
from tresor.attestation.policy import Policy
from tresor.attestation.results import AttestationResult, Check, Claim, ClaimStatus, failed, passed, undecided
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.tdx.event_log import parse_event_log

__all__ = [
    "MAX_NODES",
    "Binding",
    "Bound",
    "Half",
    "Known",
    "Node",
    "ProviderResult",
    "appraise_answer",
    "compose_events",
    "digest",
    "hex_member",
    "log_bytes",
]

MAX_NODES = 16
_SPDM_NONCE = slice(4, 36)
_DIGEST_BYTES = 32
_RTMR3 = 3

Bound: TypeAlias = Literal["nonce", "key", "tls", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the caller knows by itself, and not from the answer; None where it knows nothing.

    Attributes:
        nonce: the challenge it sent, 32 bytes.
        spki_sha256: SHA-256 of the SubjectPublicKeyInfo of its live connection.
        keys: keys that the provider handed out elsewhere, by the id of the node, in the provider's own spelling.
    """

    nonce: bytes | None = None
    spki_sha256: bytes | None = None
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Half:
    """What 32 bytes of REPORT_DATA must be.

    Attributes:
        rule: for people, in the words of the provider's documentation.
        value: the 32 bytes; None where something needed to compute them is not known.
        covers: what they bind where they are right; stated also where `value` is not known.
    """

    rule: str
    value: bytes | None = None
    covers: tuple[Bound, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One CPU TEE of a provider's answer, and the GPUs that the answer gives to it.

    Attributes:
        name: tells it from the others; empty where the answer is about one.
        cpu: its evidence.
        gpus: theirs; None where the answer holds none.
        halves: the rules for REPORT_DATA[0:32] and [32:64].
        nonce: the challenge as the answer states it.
        spki_sha256: the TLS key as the answer states it.
        key: the key as the answer states it, for people.
        gpus_answer_first_half: the GPUs' challenge is REPORT_DATA[0:32] and not the caller's: that ties them to it.
        not_after: instant from which the node's keys count no more; None where it says none.
        compose: dstack's `app_compose` as text, whose SHA-256 stands in MRCONFIGID and in the event log.
        compose_events: the payloads, in hexadecimal, of the events `compose-hash` in the event logs.
        checks: what was found while the answer was read.
        not_checked: members of the answer that are not looked at, and why.
    """

    name: str = ""
    cpu: Evidence
    gpus: Evidence | None = None
    halves: tuple[Half, Half]
    nonce: bytes | None = None
    spki_sha256: bytes | None = None
    key: str | None = None
    gpus_answer_first_half: bool = False
    not_after: datetime | None = None
    compose: str | None = None
    compose_events: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    not_checked: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What the REPORT_DATA of one node ties together.

    Attributes:
        node: its name.
        nonce: the caller's challenge; `unknown` where the caller gave none.
        key: the node's key.
        tls: the TLS key; proven means that REPORT_DATA covers it, and that the live one is it if the caller gave one.
        gpu: the GPUs.
        channel: what a connection may be pinned to.
    """

    node: str = ""
    nonce: ClaimStatus = "unknown"
    key: ClaimStatus = "unknown"
    tls: ClaimStatus = "unknown"
    gpu: ClaimStatus = "unknown"
    channel: ChannelBinding = field(default_factory=lambda: ChannelBinding(type="none"))


class ProviderResult(NamedTuple):
    """The appraisal of a whole answer, and what each of its nodes binds, in the answer's order."""

    result: AttestationResult
    bindings: tuple[Binding, ...]


def digest(*parts: bytes) -> bytes:
    """Return the SHA-256 of the concatenated parts, 32 bytes; providers fix the length of each."""
    return hashlib.sha256(b"".join(parts)).digest()


def hex_member(name: str, text: str, *sizes: int) -> bytes:
    """Decode a hexadecimal member, with or without `0x`.

    Raises:
        EvidenceMalformedError: other characters, or none of the `sizes` in bytes.
    """
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) not in sizes or 2 * len(value) != len(text.removeprefix("0x")):
        wanted = " or ".join(str(2 * size) for size in sizes)
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_MALFORMED, f"{name} is not {wanted} hexadecimal digits, but {len(text)} characters"
        )
    return value


def log_bytes(log: Any) -> bytes | None:
    """Return an event log, an array or JSON text, as JSON bytes; None where there is none."""
    if not log:
        return None
    return log.encode("utf-8") if isinstance(log, str) else msgspec.json.encode(log)


def compose_events(log: bytes) -> Iterator[str]:
    """Yield what the events `compose-hash` of RTMR3 say; a log that cannot be read fails where it is replayed."""
    with contextlib.suppress(EvidenceMalformedError):
        for event in parse_event_log(log):
            if event.register == _RTMR3 and event.name == "compose-hash":
                yield event.payload.hex()


def appraise_answer(
    parse: Callable[[bytes, Known], tuple[Node, ...]],
    document: bytes,
    *,
    known: Known,
    collateral: Collateral,
    policy: Policy,
    anchors: TrustAnchors,
    now: datetime,
) -> ProviderResult:
    """Appraise a provider's whole answer: every node must be good, for the provider chooses which one serves.

    Args:
        parse: of the provider's module; returns at least one node, or raises an `AttestationError`.
        document: the answer as received.
        known: what the caller knows itself.
        collateral: whatever endorses the evidence; unverified.
        policy: what is acceptable of each TEE.
        anchors: pinned roots.
        now: instant to appraise at (aware, UTC).
    """
    try:
        nodes = parse(document, known)
    except AttestationError as error:
        return ProviderResult(AttestationResult.of_error("unknown", "answer", error), ())

    def appraise(evidence: Evidence, nonce: bytes | None) -> AttestationResult:
        expected = Expected(nonce=nonce)
        return registry.appraise(
            evidence, collateral=collateral, policy=policy, expected=expected, anchors=anchors, now=now
        )

    parts: list[Part] = []
    bindings: list[Binding] = []
    for node in nodes:
        result, binding = _appraise_node(node, known, appraise, now)
        parts.append((node.name, result))
        bindings.append(binding)
    return ProviderResult(join(parts), tuple(bindings))


def _appraise_node(
    node: Node, known: Known, appraise: Callable[[Evidence, bytes | None], AttestationResult], now: datetime
) -> tuple[AttestationResult, Binding]:
    cpu = appraise(node.cpu, None)
    gpu_nonce = known.nonce if node.nonce is None else node.nonce
    if node.gpus_answer_first_half:
        gpu_nonce = None if cpu.report_data is None else cpu.report_data[:_DIGEST_BYTES]
    gpus = None if node.gpus is None else appraise(node.gpus, gpu_nonce)
    checks = [*node.checks]
    binding = Binding(node=node.name)
    if cpu.report_data is not None:
        binding = _bind(node, known, cpu.report_data, checks)
        checks += [*_expiry_checks(node, now), *_compose_checks(node, cpu.measurements)]
    joined = join(_parts(cpu, gpus, binding))
    return (
        replace(
            joined,
            checks=(*cpu.checks, *checks, *joined.checks[len(cpu.checks) :]),
            report_data=cpu.report_data,
            valid_until=min((end for end in (joined.valid_until, node.not_after) if end is not None), default=None),
            not_checked={**joined.not_checked, **node.not_checked, **_not_checked(node, known, cpu, binding)},
            details={**joined.details, **_details(node, binding)},
        ),
        binding,
    )


def _parts(cpu: AttestationResult, gpus: AttestationResult | None, binding: Binding) -> list[Part]:
    """Return both results, what they leave to the rules taken out, and the GPUs' claim as the rules have it."""
    parts: list[Part] = [("", without(cpu, ("nonce", "report_data", "tls_binding")))]
    if gpus is None:
        return parts
    if gpus.claims.gpu_tee.status == "proven" and binding.gpu != "proven":
        reason = "genuine GPUs, but nothing ties them to this CPU TEE"
        if binding.gpu == "refuted":
            reason = "genuine GPUs, but not those of this CPU TEE"
        claim = Claim(status=binding.gpu, source="hardware", reason=reason)
        gpus = replace(gpus, claims=msgspec.structs.replace(gpus.claims, gpu_tee=claim))
    checks = (replace(check, check="gpu_nonce") if check.check == "nonce" else check for check in gpus.checks)
    return [*parts, ("", without(replace(gpus, checks=tuple(checks)), ("nonce", "report_data", "tls_binding")))]


def _bind(node: Node, known: Known, report_data: bytes, checks: list[Check]) -> Binding:
    """Hold REPORT_DATA against the rules and the caller's knowledge; add the checks and return what is bound."""
    status: dict[Bound, ClaimStatus] = {}
    for half, at in zip(node.halves, (0, _DIGEST_BYTES), strict=True):
        if half.value is None:
            continue
        signed = report_data[at : at + _DIGEST_BYTES]
        where = f"REPORT_DATA[{at}:{at + _DIGEST_BYTES}]"
        if holds := signed == half.value:
            checks.append(passed("report_data", f"{where} = {half.rule}"))
        else:
            detail = f"{where} is {signed.hex()}, want {half.rule} = {half.value.hex()}"
            checks.append(failed("report_data", AttestationCode.REPORT_DATA_MISMATCH, detail))
        status |= dict.fromkeys(half.covers, "proven" if holds else "refuted")
    status["nonce"] = _bind_nonce(node, known, status.get("nonce", "unknown"), checks)
    status["tls"] = _bind_channel(node, known, status.get("tls", "unknown"), checks)
    status["gpu"] = _bind_gpus(node, report_data, status.get("gpu", "unknown"), checks)
    spki = known.spki_sha256 if node.spki_sha256 is None else node.spki_sha256
    pinned = status["tls"] == "proven" and spki is not None
    channel = ChannelBinding(type="tls_spki_sha256", spki_sha256=spki.hex()) if pinned and spki else Binding().channel
    return Binding(
        node=node.name,
        nonce=status["nonce"],
        key=status.get("key", "unknown"),
        tls=status["tls"],
        gpu=status["gpu"],
        channel=channel,
    )


def _bind_nonce(node: Node, known: Known, covered: ClaimStatus, checks: list[Check]) -> ClaimStatus:
    if known.nonce is None:
        return "refuted" if covered == "refuted" else "unknown"
    if covered == "unknown" and any("nonce" in half.covers for half in node.halves):
        detail = "without the node's key nobody can compute what REPORT_DATA must be"
        checks.append(undecided("nonce", AttestationCode.ENDORSEMENT_MISSING, detail))
        return "unknown"
    if covered == "unknown":
        detail = "in this form REPORT_DATA covers no challenge, and the caller sent one"
        checks.append(failed("nonce", AttestationCode.NONCE_MISMATCH, detail))
        return "refuted"
    if node.nonce not in (None, known.nonce):
        detail = f"the evidence answers {(node.nonce or b'').hex()}, the caller's challenge was {known.nonce.hex()}"
        checks.append(failed("nonce", AttestationCode.NONCE_MISMATCH, detail))
        return "refuted"
    if covered == "proven":
        checks.append(passed("nonce", "REPORT_DATA covers the caller's challenge"))
    return covered


def _bind_channel(node: Node, known: Known, covered: ClaimStatus, checks: list[Check]) -> ClaimStatus:
    if known.spki_sha256 is None:
        return covered
    if covered == "unknown":
        detail = "nothing in REPORT_DATA binds a TLS key, so this connection may end anywhere"
        checks.append(failed("channel", AttestationCode.CHANNEL_NOT_BOUND, detail))
        return "refuted"
    if node.spki_sha256 not in (None, known.spki_sha256):
        detail = (
            f"the connection's SPKI is {known.spki_sha256.hex()}, the attested one {(node.spki_sha256 or b'').hex()}"
        )
        checks.append(failed("channel", AttestationCode.SPKI_MISMATCH, detail))
        return "refuted"
    if covered == "proven":
        checks.append(passed("channel", "the connection's SPKI is the one that REPORT_DATA covers"))
    return covered


def _bind_gpus(node: Node, report_data: bytes, covered: ClaimStatus, checks: list[Check]) -> ClaimStatus:
    if any(check.code is AttestationCode.GPU_NOT_BOUND for check in node.checks):
        return "refuted"
    if node.gpus is None or not node.gpus_answer_first_half:
        return covered
    try:
        nonces = {device.report[_SPDM_NONCE] for device in parse_evidence_list(node.gpus.data)}
    except AttestationError:  # which the GPUs' own appraisal says
        return "unknown"
    if nonces != {report_data[:_DIGEST_BYTES]}:
        others = sorted(nonce.hex() for nonce in nonces - {report_data[:_DIGEST_BYTES]})
        detail = f"the GPUs answer {', '.join(others)[:200]}, want REPORT_DATA[0:32]: they may stand elsewhere"
        checks.append(failed("gpu_binding", AttestationCode.GPU_NOT_BOUND, detail))
        return "refuted"
    checks.append(passed("gpu_binding", "every GPU answers the challenge REPORT_DATA[0:32]"))
    return "proven"


def _expiry_checks(node: Node, now: datetime) -> list[Check]:
    if node.not_after is None:
        return []
    if now >= node.not_after:
        return [failed("keyset", AttestationCode.KEYSET_EXPIRED, f"the node's keys ended at {node.not_after}")]
    return [passed("keyset", f"the node's keys are good until {node.not_after}")]


def _compose_checks(node: Node, measurements: Mapping[str, str]) -> list[Check]:
    """Check that dstack measured the compose file that the answer shows (MRCONFIGID 01 || hash, and in RTMR3)."""
    if node.compose is None:
        return []
    stated = digest(node.compose.encode("utf-8")).hex()
    config_id = measurements.get("MRCONFIGID", "")
    places = [("MRCONFIGID", config_id[2:66])] if config_id.startswith("01") else []
    places += [("the event log of RTMR3", event) for event in dict.fromkeys(node.compose_events)]
    wrong = [f"{place} has {found[:64]}" for place, found in places if found.lower() != stated]
    if wrong:
        detail = f"SHA-256 of app_compose is {stated}, {'; '.join(wrong)}"
        return [failed("compose_hash", AttestationCode.COMPOSE_HASH_MISMATCH, detail)]
    if not places:
        return []
    return [passed("compose_hash", f"SHA-256 of app_compose, {stated}, stands in {' and '.join(p for p, _ in places)}")]


def _not_checked(node: Node, known: Known, cpu: AttestationResult, binding: Binding) -> dict[str, str]:
    if cpu.report_data is None:
        return {"binding": "nothing genuine is there that could bind anything"}
    omitted: dict[str, str] = {}
    if binding.nonce == "unknown":
        answered = "" if node.nonce is None else f"; the evidence answers {node.nonce.hex()}"
        omitted["nonce"] = f"none was held against the evidence: how fresh this is, is unknown{answered}"
    if binding.key == "unknown":
        omitted["key_binding"] = "nothing shows which key is this node's own"
    if binding.channel.type == "none":
        omitted["tls_binding"] = "nothing shown binds a TLS key: channel_binding none"
    elif known.spki_sha256 is None:
        omitted["tls_binding"] = f"no connection was held against the attested SPKI {binding.channel.spki_sha256}"
    if node.gpus is None:
        omitted["gpu_tee"] = "the answer holds no GPU evidence"
    elif binding.gpu == "unknown":
        omitted["gpu_binding"] = "the GPUs are somewhere: nothing ties them to this CPU TEE"
    if node.compose is not None and node.cpu.format is not EvidenceFormat.TDX_QUOTE:
        omitted["compose_hash"] = "app_compose is held against TDX registers only"
    return omitted


def _details(node: Node, binding: Binding) -> dict[str, str]:
    details = {
        "binding": f"nonce {binding.nonce}, key {binding.key}, tls {binding.tls}, gpu {binding.gpu}",
        "channel_binding": binding.channel.type,
    }
    if binding.channel.spki_sha256 is not None:
        details["spki_sha256"] = binding.channel.spki_sha256
    if node.key is not None and binding.key == "proven":
        details["key"] = node.key
    return details
