"""What is appraised and what it is held against: evidence, collateral, expectations (docs/spec/attestation.md, 3).

Evidence is what the attester's hardware signed, as received.  Collateral is whatever a third party signed to endorse
it: certificates, revocation lists and answers, reference values, TCB information, key sets.  Both are bytes of unknown
origin until a verifier has looked at them; collateral is one bag, from which each verifier takes what it needs by
content, so that a directory, a receipt and the network all serve it alike.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final, Self

__all__ = ["Collateral", "CollateralKind", "Evidence", "EvidenceFormat", "Expected", "Need"]


class EvidenceFormat(StrEnum):
    """Forms of evidence; the value is also its name in receipts."""

    SNP_REPORT = "sev-snp-report"
    TDX_QUOTE = "tdx-quote"
    NVIDIA_GPU_REPORT = "nvidia-gpu-report"  # one binary SPDM exchange; its certificate chain is collateral
    NVIDIA_GPU_LIST = "nvidia-gpu-evidence"  # NVIDIA's JSON list of evidence and certificate per device
    NVIDIA_NRAS = "nvidia-nras-eat"  # the detached EAT that NVIDIA's remote verifier answers with
    AZURE_VTPM = "azure-vtpm"  # HCL report alone, or with its TPM quote in one JSON document
    NITRO = "aws-nitro-document"
    SIMULATED = "simulated-report"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of evidence as received.

    Attributes:
        format: what the bytes are.
        data: the bytes.
        event_logs: logs whose replay must give measured registers: TCG2 (CCEL) binary, or dstack's JSON.
    """

    format: EvidenceFormat
    data: bytes
    event_logs: tuple[bytes, ...] = ()


class CollateralKind(StrEnum):
    """Kinds of collateral; the value is also the media type in receipts and the `--json` of `tresor-verify`."""

    CERTIFICATE = "application/pkix-cert"  # one DER certificate
    CRL = "application/pkix-crl"  # one DER certificate revocation list
    OCSP = "application/ocsp-response"
    RIM = "application/rim+xml"  # NVIDIA reference integrity manifest, signed XML
    TDX = "application/vnd.tresor.tdx-collateral+json"  # Intel's answers in one document (`TdxCollateral`)
    JWKS = "application/jwk-set+json"


_MEMBERS: Final = {
    CollateralKind.CERTIFICATE: "certificates",
    CollateralKind.CRL: "crls",
    CollateralKind.OCSP: "ocsp_responses",
    CollateralKind.RIM: "rims",
    CollateralKind.TDX: "tdx",
    CollateralKind.JWKS: "jwks",
}


@dataclass(frozen=True, slots=True)
class Collateral:
    """A bag of unverified endorsements, each tuple of raw documents of one `CollateralKind`."""

    certificates: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    ocsp_responses: tuple[bytes, ...] = ()
    rims: tuple[bytes, ...] = ()
    tdx: tuple[bytes, ...] = ()
    jwks: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, documents: Iterable[tuple[CollateralKind, bytes]]) -> Self:
        """Return a bag of `documents`; those of one kind keep their order."""
        by_member: dict[str, list[bytes]] = {member: [] for member in _MEMBERS.values()}
        for kind, document in documents:
            by_member[_MEMBERS[kind]].append(document)
        return cls(**{member: tuple(held) for member, held in by_member.items()})

    def documents(self) -> Iterator[tuple[CollateralKind, bytes]]:
        """Yield every document and its kind, in the order of `CollateralKind`."""
        for kind, member in _MEMBERS.items():
            for document in getattr(self, member):
                yield kind, document

    def __add__(self, other: Self) -> Self:
        """Return both bags in one, without duplicates."""
        return type(self)(
            *(tuple(dict.fromkeys((*getattr(self, name.name), *getattr(other, name.name)))) for name in fields(self))
        )


@dataclass(frozen=True, slots=True)
class Need:
    """Something a verification could use and does not have.

    Attributes:
        kind: what it is.
        url: where its issuer serves it.
        required: without it the evidence cannot be decided; else only a claim stays unknown.
        body: body of a POST (an OCSP request in DER); None for a GET.
        also: further addresses whose answers, in this order behind that of `url`, make up the one document.
    """

    kind: CollateralKind
    url: str
    required: bool = True
    body: bytes | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the evidence must bind; None where the caller expects nothing, which the result then says.

    Attributes:
        report_data: user data as the hardware must have signed it, whole (64 bytes for SNP and TDX).
        nonce: the verifier's challenge: for SNP and TDX it stands at the beginning or in the second half of
            REPORT_DATA, in the qualifying data of a TPM quote, in the nonce of GPU and Nitro evidence.
    """

    report_data: bytes | None = None
    nonce: bytes | None = None
