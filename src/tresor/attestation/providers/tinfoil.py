"""Tinfoil's attestation documents (`/.well-known/tinfoil-attestation`), formats v1 to v3 (attestation.md, 5.7.1).

    v3      REPORT_DATA = SHA-256(TLS key fingerprint || HPKE key || nonce [|| SHA-256(raw JSON of `gpu`)]) || 0 (32)
    v1, v2  REPORT_DATA = SHA-256 of the TLS key's SPKI || HPKE key (v1: 0)

A v3 document is signed by the TLS key too: ECDSA with SHA-256 over the document with an empty `signature`.  Of v1 and
v2 the TLS key stands in REPORT_DATA alone, so only a live connection can be held against it.

Not looked at: who issued the TLS certificate, and the workload's build provenance, which Tinfoil publishes elsewhere.
"""

import base64
import binascii
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, EvidenceMalformedError
from tresor.attestation.evidence import Evidence, EvidenceFormat
from tresor.attestation.providers.answer import (
    Half,
    Known,
    Node,
    digest,
    hex_member,
)
from tresor.attestation.recognise import decode_binary
from tresor.attestation.results import Check, failed, passed
from tresor.attestation.x509 import load_certificates
from tresor.errors import EncodingError, JsonError
from tresor.wire.json_members import Members, apply_edits, parse_members, replace_value

__all__ = ["parse_tinfoil"]

_V3: Final = "https://tinfoil.sh/predicate/attestation/v3"
_PLATFORMS: Final = {
    "sev-snp": EvidenceFormat.SNP_REPORT,
    "tdx": EvidenceFormat.TDX_QUOTE,
    "https://tinfoil.sh/predicate/sev-snp-guest/v1": EvidenceFormat.SNP_REPORT,
    "https://tinfoil.sh/predicate/sev-snp-guest/v2": EvidenceFormat.SNP_REPORT,
    "https://tinfoil.sh/predicate/tdx-guest/v1": EvidenceFormat.TDX_QUOTE,
    "https://tinfoil.sh/predicate/tdx-guest/v2": EvidenceFormat.TDX_QUOTE,
}


class _ReportData(msgspec.Struct, frozen=True):
    tls_key_fp: str
    hpke_key: str
    nonce: str
    gpu_evidence_hash: str | None = None


class _Cpu(msgspec.Struct, frozen=True):
    platform: str
    report: str


class _DocumentV3(msgspec.Struct, frozen=True):
    report_data: _ReportData
    cpu: _Cpu
    certificate: str | None = None
    signature: str | None = None


def parse_tinfoil(document: bytes, known: Known) -> tuple[Node, ...]:
    """Parse an attestation document.

    Raises:
        EvidenceMalformedError: it is none, or of a format that is not known.
    """
    try:
        members = parse_members(document)
        named = members.values.get("format")
        if named == _V3:
            return (_parse_v3(members),)
        if not isinstance(named, str) or named not in _PLATFORMS:
            raise EvidenceMalformedError(
                AttestationCode.EVIDENCE_VERSION_UNSUPPORTED, f"tinfoil format {str(named)[:64]!r} is not known"
            )
        body = members.values.get("body")
        if not isinstance(body, str):
            raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, "tinfoil body is not a string")
        spki = Half("the TLS key's SPKI SHA-256", known.spki_sha256, ("tls",))
        return (Node(cpu=Evidence(_PLATFORMS[named], decode_binary(body)), halves=(spki, Half("an HPKE key"))),)
    except (JsonError, EncodingError, msgspec.ValidationError) as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"tinfoil document: {error}") from error


def _parse_v3(members: Members) -> Node:
    document = msgspec.convert(members.values, _DocumentV3)
    stated = document.report_data
    spki = hex_member("tls_key_fp", stated.tls_key_fp, 32)
    nonce = hex_member("nonce", stated.nonce, 32)
    parts = [spki, hex_member("hpke_key", stated.hpke_key, 32), nonce]
    rule = "SHA-256(TLS key fingerprint || HPKE key || nonce)"
    checks: list[Check] = []
    gpu = members.places.get("gpu")
    raw_gpu = None if gpu is None else members.text[gpu.value_start : gpu.value_end].encode("utf-8")
    gpus_bound = False
    if stated.gpu_evidence_hash is not None:
        parts.append(gpu_hash := hex_member("gpu_evidence_hash", stated.gpu_evidence_hash, 32))
        rule = "SHA-256(TLS key fingerprint || HPKE key || nonce || GPU evidence hash)"
        if raw_gpu is not None:
            checks.append(_gpu_check(raw_gpu, gpu_hash))
            gpus_bound = checks[-1].status == "ok"
    checks += _document_checks(members, document, spki)
    platform = _PLATFORMS.get(document.cpu.platform)
    if platform is None:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_VERSION_UNSUPPORTED, f"CPU platform {document.cpu.platform[:64]!r} is not known"
        )
    return Node(
        cpu=Evidence(platform, decode_binary(document.cpu.report)),
        gpus=None if raw_gpu is None else Evidence(EvidenceFormat.NVIDIA_GPU_LIST, raw_gpu),
        halves=(
            Half(rule, digest(*parts), ("nonce", "key", "tls", *(("gpu",) if gpus_bound else ()))),
            Half("zero", bytes(32)),
        ),
        nonce=nonce,
        spki_sha256=spki,
        key=stated.hpke_key,
        checks=tuple(checks),
    )


def _gpu_check(raw_gpu: bytes, stated: bytes) -> Check:
    """Check the hash that REPORT_DATA covers against the GPU evidence as it came: re-encoded JSON is other evidence."""
    if (found := digest(raw_gpu)) != stated:
        detail = f"SHA-256 of the member gpu is {found.hex()}, REPORT_DATA covers {stated.hex()}"
        return failed("gpu_binding", AttestationCode.GPU_NOT_BOUND, detail)
    return passed("gpu_binding", "REPORT_DATA covers the SHA-256 of the GPU evidence as it came")


def _document_checks(members: Members, document: _DocumentV3, spki: bytes) -> list[Check]:
    """Check that the certificate in the document holds the attested TLS key, and that this key signed the document."""
    if document.certificate is None:
        return []
    try:
        certificate = load_certificates(document.certificate.encode("utf-8"))[0]
    except AttestationError as error:
        return [failed("tls_certificate", error.code, str(error))]
    held = digest(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    if held != spki:
        detail = f"the certificate's SPKI is {held.hex()}, REPORT_DATA covers {spki.hex()}"
        return [failed("tls_certificate", AttestationCode.CHANNEL_NOT_BOUND, detail)]
    checks = [passed("tls_certificate", "the certificate in the document holds the attested TLS key")]
    if document.signature is not None:
        checks.append(_signature_check(members, certificate, document.signature))
    return checks


def _signature_check(members: Members, certificate: x509.Certificate, signature: str) -> Check:
    # White space around the object is no part of it: some HTTP libraries add a line break.
    signed = apply_edits(members, [replace_value(members, "signature", '""')]).strip(b" \t\r\n")
    key = certificate.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return failed("document_signature", AttestationCode.ALGORITHM_NOT_ALLOWED, "the TLS key is not an EC key")
        key.verify(base64.b64decode(signature, validate=True), signed, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, ValueError):
        detail = "the attested TLS key did not sign this document"
        return failed("document_signature", AttestationCode.SIGNATURE_INVALID, detail)
    return passed("document_signature", "by the attested TLS key, over the whole document")
