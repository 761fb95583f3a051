"""The attestation envelope of a Tresor node: what `GET /attestation` answers, and its form inside receipts.

An envelope says which TLS key, which workload and which receipt key speak, and carries the hardware's evidence for it.
A receipt holds the same with its bulky parts by digest; `parts_of` and `envelope_of` go from one to the other.
Nothing here judges: that is `tresor.attestation.node`.  Implements docs/spec/attestation.md sections 6.1 and 6.3.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from tresor.attestation.blocks import (
    MAX_EVIDENCE,
    EvidenceReference,
    Hex32,
    ReceiptKeyJwk,
    RouterAttestation,
    Tee,
    Text,
    Time,
    Word,
    instant_of,
)
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError, EvidenceUndecidedError
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat
from tresor.attestation.x509 import split_certificates
from tresor.encodings import digest_string, parse_json
from tresor.errors import JsonError

__all__ = [
    "ENVELOPE_SCHEMA",
    "MAX_ENVELOPE_BYTES",
    "TRUST_BUNDLE",
    "CollateralItem",
    "Envelope",
    "Part",
    "block_of",
    "collateral_of",
    "envelope_of",
    "evidence_of",
    "parse_envelope",
    "parts_of",
]

ENVELOPE_SCHEMA: Final = "tresor.attestation/v1"
MAX_ENVELOPE_BYTES: Final = 1 << 20
TRUST_BUNDLE: Final = "trust_bundle"
"""Type of the evidence of a receipt that holds the trust bundle that was current."""
_BASE64_CHARS: Final = 1 << 18

Base64 = Annotated[str, msgspec.Meta(min_length=4, max_length=_BASE64_CHARS)]


class CollateralItem(msgspec.Struct, frozen=True, kw_only=True):
    """An endorsement that travels with the evidence; `data` in base64 (RFC 4648 section 4)."""

    media_type: CollateralKind
    data: Base64


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node says of itself, and the evidence for it.  Unknown members are ignored: nothing signs them."""

    schema: Literal["tresor.attestation/v1"]
    workload: Word
    tee: Tee
    tls_spki_sha256: Hex32
    workload_identity_tag: Hex32
    workload_identity_manifest_jws: Annotated[
        str, msgspec.Meta(min_length=8, max_length=_BASE64_CHARS, pattern=r"^[A-Za-z0-9_.-]*\Z")
    ]
    issued_at: Time
    max_age_seconds: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    receipt_key: ReceiptKeyJwk
    trust_bundle_url: Text | None = None
    nonce: Hex32 | None = None
    snp_report_b64: Base64 | None = None
    vcek_chain_pem: (
        Annotated[str, msgspec.Meta(min_length=1, max_length=_BASE64_CHARS, pattern=r"^[\x00-\x7f]*\Z")] | None
    ) = None
    tdx_quote_b64: Base64 | None = None
    hcl_report_b64: Base64 | None = None
    tpm_quote_b64: Base64 | None = None
    collateral: Annotated[tuple[CollateralItem, ...], msgspec.Meta(max_length=MAX_EVIDENCE - 8)] = ()


class Part(NamedTuple):
    """A bulky part of an envelope: the role it plays, its media type, its bytes."""

    type: str
    media_type: str
    data: bytes


_OCTETS: Final = "application/octet-stream"
# Member of the envelope to the type of its part; the text of a member is its bytes, or their base64.
_MEMBERS: Final = {
    "snp_report_b64": ("snp_report", _OCTETS),
    "vcek_chain_pem": ("vcek_chain", "application/pem-certificate-chain"),
    "tdx_quote_b64": ("tdx_quote", _OCTETS),
    "hcl_report_b64": ("hcl_report", _OCTETS),
    "tpm_quote_b64": ("tpm_quote", _OCTETS),
    "workload_identity_manifest_jws": ("workload_identity_manifest", "application/jose"),
}
_MEMBER_OF: Final = {part: member for member, (part, _) in _MEMBERS.items()}


def parse_envelope(data: bytes) -> Envelope:
    """Parse the answer of `GET /attestation`.

    Raises:
        EvidenceMalformedError: too large, not strict JSON, another schema, or a member missing or of the wrong form.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"envelope is {len(data)} bytes, want at most {MAX_ENVELOPE_BYTES}"
        )
    try:
        envelope = msgspec.convert(parse_json(data), Envelope)
        instant_of(envelope.issued_at)
    except (JsonError, ValueError) as error:  # msgspec.ValidationError is one
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"envelope: {error}") from error
    return envelope


def parts_of(envelope: Envelope) -> tuple[Part, ...]:
    """Return the parts of an envelope that receipts hold by digest.

    Raises:
        EvidenceMalformedError: a member is not base64.
    """
    parts = [
        Part(kind, media_type, _decode(member, text) if member.endswith("_b64") else text.encode())
        for member, (kind, media_type) in _MEMBERS.items()
        if (text := getattr(envelope, member)) is not None
    ]
    parts += [Part("collateral", item.media_type, _decode("collateral", item.data)) for item in envelope.collateral]
    return tuple(parts)


def block_of(envelope: Envelope, parts: tuple[Part, ...]) -> RouterAttestation:
    """Return an envelope as receipts hold it; `parts` are its own and whatever else belongs to it."""
    return RouterAttestation(
        schema=envelope.schema,
        workload=envelope.workload,
        tee=envelope.tee,
        tls_spki_sha256=envelope.tls_spki_sha256,
        workload_identity_tag=envelope.workload_identity_tag,
        issued_at=envelope.issued_at,
        max_age_seconds=envelope.max_age_seconds,
        receipt_key=envelope.receipt_key,
        trust_bundle_url=envelope.trust_bundle_url,
        nonce=envelope.nonce,
        evidence=tuple(
            EvidenceReference(
                type=part.type, digest=digest_string(part.data), media_type=part.media_type, size=len(part.data)
            )
            for part in parts
        ),
    )


def envelope_of(block: RouterAttestation, held: Mapping[str, bytes]) -> Envelope:
    """Return the envelope that a block stands for.

    Args:
        block: as it stands in a receipt.
        held: digest to bytes; every digest has been compared with its bytes.

    Raises:
        EvidenceUndecidedError: something that the block refers to is not among `held`.
        EvidenceMalformedError: a part is of a type that no envelope has, or is not what its type says.
    """
    members: dict[str, str] = {}
    collateral: list[CollateralItem] = []
    for reference in block.evidence:
        if reference.type == TRUST_BUNDLE:
            continue
        data = held.get(reference.digest)
        if data is None:
            raise EvidenceUndecidedError(
                AttestationCode.EVIDENCE_MISSING, f"{reference.type} with {reference.digest} is not at hand"
            )
        member = _MEMBER_OF.get(reference.type)
        if reference.type == "collateral":
            kind = _kind(reference.media_type)
            collateral.append(CollateralItem(media_type=kind, data=base64.b64encode(data).decode()))
        elif member is None or member in members:
            raise EvidenceMalformedError(
                AttestationCode.EVIDENCE_MALFORMED, f"evidence has {reference.type!r} twice, or as an unknown type"
            )
        elif member.endswith("_b64"):
            members[member] = base64.b64encode(data).decode()
        else:
            members[member] = data.decode("ascii", errors="replace")
    inline = {name: getattr(block, name) for name in block.__struct_fields__ if name != "evidence"}
    try:
        return msgspec.convert(
            {**msgspec.to_builtins(inline), **members, "collateral": msgspec.to_builtins(collateral)}, Envelope
        )
    except msgspec.ValidationError as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"router_attestation: {error}") from error


def evidence_of(envelope: Envelope) -> Evidence:
    """Return the hardware's evidence in an envelope, in the form its `tee` says.

    Raises:
        EvidenceMalformedError: the member that the `tee` needs is missing or not base64.
    """
    match envelope.tee:
        case "sev-snp":
            return Evidence(EvidenceFormat.SNP_REPORT, _member(envelope, "snp_report_b64"))
        case "simulated":
            return Evidence(EvidenceFormat.SIMULATED, _member(envelope, "snp_report_b64"))
        case "tdx":
            return Evidence(EvidenceFormat.TDX_QUOTE, _member(envelope, "tdx_quote_b64"))
        case "azure-sev-snp" | "azure-tdx":
            parts = {"hcl_report_b64": envelope.hcl_report_b64, "tpm_quote_b64": envelope.tpm_quote_b64}
            if envelope.tdx_quote_b64 is not None:
                parts["tdx_quote_b64"] = envelope.tdx_quote_b64
            _member(envelope, "hcl_report_b64")
            _member(envelope, "tpm_quote_b64")
            return Evidence(EvidenceFormat.AZURE_VTPM, msgspec.json.encode(parts))


def collateral_of(envelope: Envelope) -> Collateral:
    """Return the endorsements in an envelope, unverified.

    Raises:
        EvidenceMalformedError: the certificate chain is not PEM, or an item is not base64.
    """
    chain = () if envelope.vcek_chain_pem is None else split_certificates(envelope.vcek_chain_pem.encode())
    certificates = ((CollateralKind.CERTIFICATE, certificate) for certificate in chain)
    items = ((item.media_type, _decode("collateral", item.data)) for item in envelope.collateral)
    return Collateral.of((*certificates, *items))


def _member(envelope: Envelope, name: str) -> bytes:
    text: str | None = getattr(envelope, name)
    if text is None:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_MALFORMED, f"tee is {envelope.tee} and there is no {name}"
        )
    return _decode(name, text)


def _decode(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_MALFORMED, f"{name} is not base64 (RFC 4648 section 4)"
        ) from error


def _kind(media_type: str) -> CollateralKind:
    try:
        return CollateralKind(media_type)
    except ValueError as error:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_MALFORMED, f"collateral is of the unknown media type {media_type[:64]!r}"
        ) from error
