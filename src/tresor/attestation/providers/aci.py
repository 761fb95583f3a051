"""Reports of ACI services, `/v1/aci/attestation` of private-ai-gateway nodes (attestation.md, 5.7.4).

    statement     {"keyset_digest":"sha256:<hex>","nonce":"<hex>","purpose":"aci.report_data.v1"}
    REPORT_DATA = SHA-256(statement) || 0 (32)

The keyset digest is the SHA-256 of the report's `workload_keyset` in canonical JSON (RFC 8785), and the keyset lists
the node's keys: those that sign its receipts, those that take encrypted requests, and SHA-256 of the SPKI of its TLS
keys.  The challenge stands in no member of the report: it is the caller's, or `null` where the node was not asked for
one.  Implements the specification of Attested Confidential Inference, version `aci/1` (draft), sections 3, 4 and 9.1;
evidence in the form of its `tdx` policy, the only one for which it says where the quote stands.

Not looked at: who holds the private halves (`key_custody`), where the source is said to come from
(`source_provenance`; what dstack measured of it is held against `app_compose`), and the domain that a TLS key is
listed for: every key of the keyset is the same node's.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from tresor.attestation.blocks import Hex32
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.evidence import Evidence, EvidenceFormat
from tresor.attestation.providers.answer import (
    Bound,
    Half,
    Known,
    Node,
    compose_events,
    digest,
    log_bytes,
)
from tresor.attestation.recognise import decode_binary
from tresor.attestation.results import Check, failed, passed
from tresor.encodings import digest_string, parse_json
from tresor.errors import EncodingError, JsonError

__all__ = ["parse_aci"]

_VERSION: Final = "aci/1"
_TDX: Final = "tdx"
_NEVER: Final = 253_402_300_799  # the last second that four digits of a year can say
_RULE: Final = "SHA-256(statement of keyset digest and nonce)"
_NOT_LOOKED_AT: Final = {
    "key_custody": "who holds the private halves of the keyset is for the measured code to say",
    "source_provenance": "where the source is said to come from is the node's own word",
}


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key_id: str
    algo: str
    public_key: str


class _TlsKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    spki_sha256: Hex32
    domain: str | None = None


class _Keyset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The specification fixes this shape; a member that is not known could be a restriction."""

    not_after: Annotated[int, msgspec.Meta(ge=0, le=_NEVER)]
    receipt_signing_keys: tuple[_Key, ...]
    e2ee_public_keys: tuple[_Key, ...]
    tls_public_keys: tuple[_TlsKey, ...] = ()
    subject: str | None = None


class _Evidence(msgspec.Struct, frozen=True):
    quote: str
    event_log: Any = None
    app_compose: str | None = None


class _Attestation(msgspec.Struct, frozen=True):
    tee_type: str
    workload_keyset: dict[str, Any]
    report_data: Hex32
    evidence: dict[str, Any]


class _Report(msgspec.Struct, frozen=True):
    workload_keyset_digest: str
    attestation: _Attestation


class _Version(msgspec.Struct, frozen=True):
    api_version: str


def parse_aci(document: bytes, known: Known) -> tuple[Node, ...]:
    """Parse a report.

    Raises:
        EvidenceMalformedError: it is none, of another version, or of a TEE whose evidence has no published form.
    """
    try:
        parsed = parse_json(document)
        version = msgspec.convert(parsed, _Version).api_version
        if version != _VERSION:
            raise _unsupported(f"ACI report is of version {version[:64]!r}, want {_VERSION!r}")
        report = msgspec.convert(parsed, _Report)
        if report.attestation.tee_type != _TDX:
            raise _unsupported(f"evidence of tee_type {report.attestation.tee_type[:64]!r} has no published form")
        return (_node(report, known),)
    except (JsonError, EncodingError, msgspec.ValidationError) as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"ACI report: {error}") from error


def _unsupported(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.EVIDENCE_VERSION_UNSUPPORTED, message)


def _node(report: _Report, known: Known) -> Node:
    attestation = report.attestation
    keyset = msgspec.convert(attestation.workload_keyset, _Keyset)
    evidence = msgspec.convert(attestation.evidence, _Evidence)
    # Of names in ASCII and integers, which the shape has alone, this is the canonical form (RFC 8785, 3.2).
    keyset_digest = digest_string(msgspec.json.encode(attestation.workload_keyset, order="sorted"))
    half = _first_half(
        keyset_digest, bytes.fromhex(attestation.report_data), known, has_tls=bool(keyset.tls_public_keys)
    )
    tls_key = _tls_key(keyset, known)
    log = log_bytes(evidence.event_log)
    not_checked = dict(_NOT_LOOKED_AT)
    if tls_key is not None and tls_key.domain is not None:
        not_checked["tls_domain"] = f"the keyset lists this TLS key for {tls_key.domain[:253]!r} alone"
    return Node(
        cpu=Evidence(EvidenceFormat.TDX_QUOTE, decode_binary(evidence.quote), () if log is None else (log,)),
        halves=(half, Half("zero", bytes(32))),
        spki_sha256=None if tls_key is None else bytes.fromhex(tls_key.spki_sha256),
        key=keyset_digest,
        not_after=datetime.fromtimestamp(keyset.not_after, UTC),
        compose=evidence.app_compose,
        compose_events=() if log is None else tuple(compose_events(log)),
        checks=(*_restated_checks(report, keyset_digest, half),),
        not_checked=not_checked,
    )


def _first_half(keyset_digest: str, stated: bytes, known: Known, *, has_tls: bool) -> Half:
    """Return the rule for REPORT_DATA[0:32], which without a challenge covers none."""
    covers: tuple[Bound, ...] = ("key", "tls") if has_tls else ("key",)
    if stated == (unchallenged := _statement_digest(keyset_digest, None)):
        return Half("SHA-256(statement of keyset digest and no nonce)", unchallenged, covers)
    value = None if known.nonce is None else _statement_digest(keyset_digest, known.nonce)
    return Half(_RULE, value, ("nonce", *covers))


def _statement_digest(keyset_digest: str, nonce: bytes | None) -> bytes:
    stated = "null" if nonce is None else f'"{nonce.hex()}"'
    statement = f'{{"keyset_digest":"{keyset_digest}","nonce":{stated},"purpose":"aci.report_data.v1"}}'
    return digest(statement.encode("ascii"))


def _tls_key(keyset: _Keyset, known: Known) -> _TlsKey | None:
    """Return the listed key that the connection has, else the first one: it is what a connection may be pinned to."""
    live = None if known.spki_sha256 is None else known.spki_sha256.hex()
    listed = keyset.tls_public_keys
    return next((key for key in listed if key.spki_sha256 == live), listed[0] if listed else None)


def _restated_checks(report: _Report, keyset_digest: str, half: Half) -> list[Check]:
    """Check what the report says twice; only what was computed here is held against the hardware."""
    checks: list[Check] = []
    if report.workload_keyset_digest != keyset_digest:
        detail = f"the report says {report.workload_keyset_digest[:80]!r}, its keyset has {keyset_digest}"
        checks.append(failed("keyset_digest", AttestationCode.KEY_NOT_BOUND, detail))
    else:
        checks.append(passed("keyset_digest", f"the keyset has the digest {keyset_digest} that the report states"))
    if half.value is not None and report.attestation.report_data != half.value.hex():
        detail = f"the report says {report.attestation.report_data}, want {half.rule} = {half.value.hex()}"
        checks.append(failed("stated_report_data", AttestationCode.REPORT_DATA_MISMATCH, detail))
    return checks
