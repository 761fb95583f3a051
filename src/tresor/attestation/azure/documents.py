"""Documents that carry a report of Azure's paravisor and a TPM quote: JSON to bytes (docs/spec/attestation.md, 5.4.3).

    ours     hcl_report_b64 [tpm_quote_b64] [tdx_quote_b64] [vcek_chain_pem]; the quote is JSON again, as in 1
    1 and 2  version, tpm_quote {message, signature, pcrs} in hexadecimal, hcl_report in base64, and vcek or td_quote
    none     quote {message, signature, pcrs} and report as arrays of numbers, and vcek or td_quote
    (bare)   the report alone, "HCLA..."

1, 2 and none are of confidential-containers/trustee and its verifiers, where base64 stands in either alphabet, padded
or not, and the VCEK in PEM or in base64.  Nothing signs these documents: members that are not named are ignored, save
in ours.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from tresor.attestation.azure.tpm import PCRS
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.x509 import split_certificates
from tresor.encodings import base64url_decode, parse_json
from tresor.errors import EncodingError, JsonError

__all__ = ["MAX_DOCUMENT_BYTES", "AzureDocument", "UnverifiedQuote", "parse_document"]

MAX_DOCUMENT_BYTES: Final = 512 * 1024  # a TD quote as numbers, one a line, takes 60 KB
_TO_URL_SAFE: Final = str.maketrans("+/", "-_")

_Numbers = Annotated[tuple[Annotated[int, Meta(ge=0, le=255)], ...], Meta(max_length=1 << 16)]
_Hex = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{2})*+\Z")]  # see recognise._HEX
_Registers = Meta(max_length=4 * len(PCRS))  # no TPM has more banks


@dataclass(frozen=True, slots=True)
class UnverifiedQuote:
    """A quote as handed out.

    Attributes:
        message: TPMS_ATTEST.
        signature: TPMT_SIGNATURE, or the RSA signature alone.
        pcrs: values of the registers that the quote selects, in its order.
    """

    message: bytes
    signature: bytes
    pcrs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AzureDocument:
    """What a document carries; nothing of it is verified.

    Attributes:
        hcl_report: report of the paravisor.
        quote: quote of the vTPM; None where the report came alone.
        td_quote: TDX quote that was made of the TDREPORT.
        certificates: DER, of the key that signed the SNP report and of its issuers.
    """

    hcl_report: bytes
    quote: UnverifiedQuote | None = None
    td_quote: bytes | None = None
    certificates: tuple[bytes, ...] = ()


class _QuoteInHex(msgspec.Struct, frozen=True):
    message: _Hex
    signature: _Hex
    pcrs: Annotated[tuple[_Hex, ...], _Registers]

    def unpack(self) -> UnverifiedQuote:
        return UnverifiedQuote(
            bytes.fromhex(self.message), bytes.fromhex(self.signature), tuple(map(bytes.fromhex, self.pcrs))
        )


class _QuoteInNumbers(msgspec.Struct, frozen=True):
    message: _Numbers
    signature: _Numbers
    pcrs: Annotated[tuple[_Numbers, ...], _Registers]

    def unpack(self) -> UnverifiedQuote:
        return UnverifiedQuote(bytes(self.message), bytes(self.signature), tuple(map(bytes, self.pcrs)))


class _Ours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hcl_report_b64: str
    tpm_quote_b64: str | None = None
    tdx_quote_b64: str | None = None
    vcek_chain_pem: str | None = None

    def unpack(self) -> AzureDocument:
        quote = self.tpm_quote_b64
        return AzureDocument(
            hcl_report=_base64(self.hcl_report_b64),
            quote=None if quote is None else msgspec.convert(parse_json(_base64(quote)), _QuoteInHex).unpack(),
            td_quote=None if self.tdx_quote_b64 is None else _base64(self.tdx_quote_b64),
            certificates=_certificates(self.vcek_chain_pem),
        )


class _Versioned(msgspec.Struct, frozen=True):
    version: Literal[1, 2]
    tpm_quote: _QuoteInHex
    hcl_report: str
    vcek: str | None = None
    td_quote: str | None = None

    def unpack(self) -> AzureDocument:
        return AzureDocument(
            hcl_report=_base64(self.hcl_report),
            quote=self.tpm_quote.unpack(),
            td_quote=None if self.td_quote is None else _base64(self.td_quote),
            certificates=_certificates(self.vcek),
        )


class _Unversioned(msgspec.Struct, frozen=True):
    quote: _QuoteInNumbers
    report: _Numbers
    vcek: str | None = None
    td_quote: _Numbers | None = None

    def unpack(self) -> AzureDocument:
        return AzureDocument(
            hcl_report=bytes(self.report),
            quote=self.quote.unpack(),
            td_quote=None if self.td_quote is None else bytes(self.td_quote),
            certificates=_certificates(self.vcek),
        )


def parse_document(data: bytes) -> AzureDocument:
    """Parse a document of any of the four forms.

    Raises:
        EvidenceMalformedError: too large, none of the forms, or a member missing or not in its encoding.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE,
            f"Azure evidence is {len(data)} bytes, want at most {MAX_DOCUMENT_BYTES}",
        )
    if data.startswith(b"HCLA"):
        return AzureDocument(hcl_report=data)
    try:
        document: Any = parse_json(data)
        return msgspec.convert(document, _form_of(document)).unpack()
    except (JsonError, EncodingError, msgspec.ValidationError) as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"Azure evidence: {error}") from error


def _form_of(document: object) -> type[_Ours | _Versioned | _Unversioned]:
    members = document if isinstance(document, dict) else {}
    if "hcl_report_b64" in members:
        return _Ours
    return _Versioned if "version" in members else _Unversioned


def _base64(text: str) -> bytes:
    """Decode base64 of either alphabet, padded or not; all else as strict as `base64url_decode`."""
    bare = text.rstrip("=")
    if len(text) != len(bare) and len(text) % 4:
        raise EncodingError("base64 is padded to another length than a multiple of four")
    return base64url_decode(bare.translate(_TO_URL_SAFE))


def _certificates(text: str | None) -> tuple[bytes, ...]:
    if text is None:
        return ()
    return tuple(split_certificates(text.encode()) if "-----BEGIN" in text else [_base64(text)])
