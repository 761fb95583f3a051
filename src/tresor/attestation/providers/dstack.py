"""Answers of dstack guests as NEAR AI and its resellers hand them on (attestation.md, 5.7.2).

    with TLS   REPORT_DATA = SHA-256(signing key || TLS certificate's SPKI SHA-256) || nonce
    without    REPORT_DATA = signing key or Ethereum address, zero padded to 32 || nonce

`signing_address` is the Ed25519 key itself (32 bytes), or the last 20 bytes of the Keccak-256 of the secp256k1 key.  In
the form without TLS nothing ties the connection to the guest: its `channel_binding` is `none`, however many resellers
say "verified".  The GPUs answer the same nonce, which shows that they are genuine and asked just now, not that they
stand in the same machine.

dstack measures the compose file: MRCONFIGID is 01 || SHA-256(app_compose), and RTMR3 holds the event `compose-hash`.
A whole answer is one node, `all_attestations` of them, or `gateway_attestation` and `model_attestations`.

Not looked at: the members that stand in `not_checked`, and everything that somebody else says it has verified.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.evidence import Evidence, EvidenceFormat
from tresor.attestation.providers.answer import (
    MAX_NODES,
    Half,
    Known,
    Node,
    compose_events,
    digest,
    hex_member,
    log_bytes,
)
from tresor.attestation.providers.keccak import keccak_256
from tresor.attestation.recognise import decode_binary
from tresor.attestation.results import Check, failed, passed
from tresor.encodings import parse_json
from tresor.errors import EncodingError, JsonError

__all__ = ["parse_dstack"]

_ADDRESS_BYTES = 20
_KEY_BYTES = 32
_POINT_BYTES = 64
_NOT_LOOKED_AT = {
    "compose_manager_attestation": "a second quote, about what the compose manager did",
    "ohttp_attestation": "which key takes oblivious HTTP",
    "server_verification": "what the reseller says it has verified is its own word",
}


class _TcbInfo(msgspec.Struct, frozen=True):
    app_compose: str | None = None
    event_log: Any = None


class _Info(msgspec.Struct, frozen=True):
    tcb_info: Any = None


class _Attestation(msgspec.Struct, frozen=True):
    intel_quote: str | None = None
    quote: str | None = None
    nvidia_payload: str | None = None
    event_log: Any = None
    info: _Info | None = None
    signing_address: str | None = None
    signing_public_key: str | None = None
    tls_cert_fingerprint: str | None = None
    request_nonce: str | None = None
    nonce: str | None = None
    compose_manager_attestation: Any = None
    ohttp_attestation: Any = None
    server_verification: Any = None


class _Answer(_Attestation, frozen=True):
    all_attestations: tuple[_Attestation, ...] = ()
    gateway_attestation: _Attestation | None = None
    model_attestations: tuple[_Attestation, ...] = ()


def parse_dstack(document: bytes, known: Known) -> tuple[Node, ...]:
    """Parse a whole answer into its distinct nodes, that of the answer itself first.

    Raises:
        EvidenceMalformedError: it is none, holds no quote, or more than 16.
    """
    try:
        answer = msgspec.convert(parse_json(document), _Answer)
        nodes = list(_nodes(answer, known))
    except (JsonError, EncodingError, msgspec.ValidationError) as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"dstack answer: {error}") from error
    if not 1 <= len(nodes) <= MAX_NODES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_MALFORMED, f"dstack answer holds {len(nodes)} quotes, want 1 to {MAX_NODES}"
        )
    return tuple(nodes)


def _nodes(answer: _Answer, known: Known) -> Iterator[Node]:
    named: list[tuple[str, _Attestation]] = [("", answer)]
    named += [(f"node{number}", other) for number, other in enumerate(answer.all_attestations)]
    if answer.gateway_attestation is not None:
        named.append(("gateway", answer.gateway_attestation))
    named += [(f"model{number}", other) for number, other in enumerate(answer.model_attestations)]
    seen: set[tuple[str | None, str | None, str | None]] = set()
    for name, attestation in named:
        identity = (_quote(attestation), attestation.nvidia_payload, attestation.signing_address)
        if identity[0] is not None and identity not in seen:
            seen.add(identity)
            yield _node(name, attestation, known)


def _quote(attestation: _Attestation) -> str | None:
    return attestation.quote if attestation.intel_quote is None else attestation.intel_quote


def _node(name: str, attestation: _Attestation, known: Known) -> Node:
    tcb_info = _tcb_info(attestation)
    logs = [log for log in map(log_bytes, (tcb_info.event_log, attestation.event_log)) if log is not None]
    quote = _quote(attestation) or ""
    nonce, spki = attestation.request_nonce, attestation.tls_cert_fingerprint
    nonce_bytes = known.nonce if nonce is None else hex_member("request_nonce", nonce, 32)
    spki_bytes = None if spki is None else hex_member("tls_cert_fingerprint", spki, 32)
    checks = [*_key_checks(attestation), *_echo_checks(attestation, nonce_bytes)]
    return Node(
        name=name,
        cpu=Evidence(EvidenceFormat.TDX_QUOTE, decode_binary(quote), tuple(dict.fromkeys(logs))),
        gpus=_gpus(attestation.nvidia_payload),
        halves=(
            _first_half(attestation.signing_address, spki_bytes),
            Half("the nonce", nonce_bytes, ("nonce",)),
        ),
        nonce=nonce_bytes,
        spki_sha256=spki_bytes,
        key=attestation.signing_address,
        compose=tcb_info.app_compose,
        compose_events=tuple(payload for log in logs for payload in compose_events(log)),
        checks=tuple(checks),
        not_checked={
            member: reason for member, reason in _NOT_LOOKED_AT.items() if getattr(attestation, member) is not None
        },
    )


def _gpus(payload: str | None) -> Evidence | None:
    return None if payload is None else Evidence(EvidenceFormat.NVIDIA_GPU_LIST, payload.encode("utf-8"))


def _first_half(signing_address: str | None, spki: bytes | None) -> Half:
    if signing_address is None:
        return Half("a signing key")
    key = hex_member("signing_address", signing_address, _ADDRESS_BYTES, _KEY_BYTES)
    if spki is not None:
        return Half("SHA-256(signing key || TLS SPKI SHA-256)", digest(key, spki), ("key", "tls"))
    return Half("the signing key or its address, zero padded", key.ljust(32, b"\0"), ("key",))


def _key_checks(attestation: _Attestation) -> list[Check]:
    """Check that the public key of the answer is the one whose short form REPORT_DATA covers."""
    if attestation.signing_public_key is None or attestation.signing_address is None:
        return []
    key = hex_member("signing_public_key", attestation.signing_public_key, _KEY_BYTES, _POINT_BYTES, _POINT_BYTES + 1)
    address = hex_member("signing_address", attestation.signing_address, _ADDRESS_BYTES, _KEY_BYTES)
    # A point of 65 bytes begins with 04 (SEC 1, 2.3.3), which is not hashed.
    short = key if len(key) == _KEY_BYTES else keccak_256(key[-_POINT_BYTES:])[-_ADDRESS_BYTES:]
    if short != address:
        detail = f"signing_public_key has the short form {short.hex()}, the attested one is {address.hex()}"
        return [failed("signing_key", AttestationCode.KEY_NOT_BOUND, detail)]
    return [passed("signing_key", "signing_public_key is the key of signing_address")]


def _echo_checks(attestation: _Attestation, nonce: bytes | None) -> list[Check]:
    """Check that the nonce around the evidence, which a reseller writes, is that of the evidence."""
    if attestation.nonce is None or nonce is None:
        return []
    if hex_member("nonce", attestation.nonce, 32) != nonce:
        detail = f"the answer says it is for {attestation.nonce[:64]}, its evidence answers {nonce.hex()}"
        return [failed("nonce", AttestationCode.NONCE_MISMATCH, detail)]
    return []


def _tcb_info(attestation: _Attestation) -> _TcbInfo:
    """Return `info.tcb_info`, which older guests write as JSON text inside the JSON."""
    value = None if attestation.info is None else attestation.info.tcb_info
    if isinstance(value, str):
        value = parse_json(value.encode("utf-8"))
    return msgspec.convert(value or {}, _TcbInfo)
