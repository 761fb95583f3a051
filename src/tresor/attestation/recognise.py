"""What a file holds: evidence, an endorsement, a provider's answer; by its content, never by its name.

Recognition is loose and reading is strict: bytes are given the kind they claim to be, so that the parser of that kind
says what is wrong with them.  Text in hexadecimal or base64 and gzip are undone, at most twice, within a fixed size.
Implements docs/spec/attestation.md section 3.3.  Nothing is verified here.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.evidence import CollateralKind, EvidenceFormat
from tresor.attestation.x509 import split_certificates
from tresor.encodings import JsonValue, parse_json
from tresor.errors import EncodingError, JsonError

__all__ = ["MAX_FILE_BYTES", "DocumentKind", "Item", "Kind", "decode_binary", "recognise"]

MAX_FILE_BYTES: Final = 8 << 20
"""Of one file, before and after decompression.  The largest answer seen, eight GPUs and a TD, is 0.4 MB."""
_MAX_LAYERS = 2


class DocumentKind(StrEnum):
    """What is neither one piece of evidence nor an endorsement; the value is for people."""

    TINFOIL = "tinfoil attestation"
    DSTACK = "dstack attestation"
    CHUTES = "chutes attestation"
    ACI = "ACI attestation"
    CHUTES_KEYS = "chutes end-to-end keys"
    EVENT_LOG = "event log"
    NONCE = "nonce"
    INTEL_TCB_INFO = "Intel TCB info"
    INTEL_QE_IDENTITY = "Intel QE identity"
    INTEL_HEADERS = "Intel issuer chains"
    NOT_USED = "not used"


Kind: TypeAlias = EvidenceFormat | CollateralKind | DocumentKind


@dataclass(frozen=True, slots=True, repr=False)
class Item:
    """One thing found in a file.

    Attributes:
        kind: what it claims to be.
        data: its bytes, transport encodings removed; of a nonce, the decoded bytes.
        note: of what is not used, why.
    """

    kind: Kind
    data: bytes
    note: str = ""

    def __repr__(self) -> str:
        return f"<Item {self.kind.value!r}, {len(self.data)} bytes>"


def recognise(data: bytes) -> tuple[Item, ...]:
    """Return what `data`, the content of one file, holds; empty where that is nothing known.

    Raises:
        EvidenceMalformedError: longer than `MAX_FILE_BYTES`, before or after decompression, or PEM or JSON text that
            cannot be read as such.
    """
    for _ in range(_MAX_LAYERS):
        _check_size(len(data))
        if (items := _recognise_layer(data)) or (inner := _unwrapped(data)) is None:
            return items
        data = inner
    return _recognise_layer(data)


def decode_binary(text: str) -> bytes:
    """Decode hexadecimal or base64 (standard or URL-safe, padded or not, line breaks allowed), and gzip inside it.

    Providers encode the same report in all of these ways; what is signed are the bytes inside.

    Raises:
        EncodingError: neither of the two.
        EvidenceMalformedError: longer than `MAX_FILE_BYTES`.
    """
    _check_size(len(text))
    compact = "".join(text.split())
    data = _unhex(compact) or _unbase64(compact)
    if data is None:
        raise EncodingError(f"{len(text)} characters are neither hexadecimal nor base64")
    return inflate(data) if data.startswith(_GZIP) else data


def inflate(data: bytes) -> bytes:
    """Decompress one gzip member.

    Raises:
        EvidenceMalformedError: not whole gzip, bytes behind it, or more than `MAX_FILE_BYTES` inside.
    """
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        inner = stream.decompress(data, MAX_FILE_BYTES + 1)
    except zlib.error as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"gzip: {error}") from error
    _check_size(len(inner))
    if not stream.eof or stream.unused_data:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, "gzip is cut off, or bytes stand behind it")
    return inner


# --- Layers ---------------------------------------------------------------------------------------------------------

_GZIP: Final = b"\x1f\x8b"
# Possessive: a repeated group that may give back what it took remembers each turn, 150 bytes for two digits.
_HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2})++)\Z")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}\Z")


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"more than {MAX_FILE_BYTES} bytes in one file or one encoded member"
        )


def _unwrapped(data: bytes) -> bytes | None:
    """Return what is inside gzip, hexadecimal or base64 text; None where `data` is none of them."""
    if data.startswith(_GZIP):
        return inflate(data)
    try:
        text = "".join(data.decode("ascii").split())
    except UnicodeDecodeError:
        return None
    return _unhex(text) or _unbase64(text)


def _unhex(text: str) -> bytes | None:
    found = _HEX.match(text)
    return None if found is None else bytes.fromhex(found[1])


def _unbase64(text: str) -> bytes | None:
    if not _BASE64.match(text):
        return None
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        return None


def _recognise_layer(data: bytes) -> tuple[Item, ...]:
    text = data.lstrip(b" \t\r\n")
    if text[:1] in (b"{", b"["):
        return _recognise_json(text)
    if _NONCE.match(text):
        return (Item(DocumentKind.NONCE, bytes.fromhex(text.decode("ascii"))),)
    if text.startswith((b"<", b"\xef\xbb\xbf<")) and b"SoftwareIdentity" in text:
        return (Item(CollateralKind.RIM, data),)
    for kind, looks_like in _BINARY:
        if looks_like(data):
            return (Item(kind, data, _NOTES.get(data[:4], "")),)
    return tuple(_pem_items(data)) if b"-----BEGIN " in data else ()  # last, for quotes carry PEM inside


# --- Binary ---------------------------------------------------------------------------------------------------------

_NONCE = re.compile(rb"[0-9a-fA-F]{64}\s*\Z")
_INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_SIMULATED: Final = b"SIMULATED-NOT-A-TEE"[:16]
_NOTES: Final = {b"CCEL": "the ACPI table that says where the event log lies"}


def _is_quote(data: bytes) -> bool:
    """A header of Intel's ECDSA quotes: version 3 to 5, key type 2 or 3, the TEE, Intel's quoting enclave."""
    by_header = data[:2] in (b"\x03\0", b"\x04\0", b"\x05\0") and data[2:4] in (b"\x02\0", b"\x03\0")
    return len(data) > 48 and (by_header or data[12:28] == _INTEL_QE_VENDOR)  # noqa: PLR2004 - the header


def _is_snp_report(data: bytes) -> bool:
    """Version below 16, and SIGNATURE_ALGO 1 (AMD 56860, "ATTESTATION_REPORT")."""
    if not 0x2A0 < len(data) < 0x1000:  # noqa: PLR2004 - more than is signed, less than a page
        return False
    return data[1:4] == bytes(3) and data[0] < 16 and data[0x34:0x38] == b"\x01\0\0\0"  # noqa: PLR2004 - as above


def _is_simulated(data: bytes) -> bool:
    return _is_snp_report(data) and data[0x10:0x20] == _SIMULATED


def _is_gpu_report(data: bytes) -> bool:
    """SPDM 1.1: GET_MEASUREMENTS (37 bytes), then MEASUREMENTS."""
    return data[:2] == b"\x11\xe0" and data[37:39] == b"\x11\x60"


def _is_nitro_document(data: bytes) -> bool:
    """A CBOR array or tag that holds the member names of an attestation document."""
    return data[:1] != b"" and data[0] >> 5 in (4, 6) and b"module_id" in data and b"pcrs" in data


def _is_event_log(data: bytes) -> bool:
    """The first event of a TCG2 log names the format (TCG PC Client Platform Firmware Profile, 10.4.5.1)."""
    return data[32:48] == b"Spec ID Event03\0"


def _der_shape(data: bytes) -> tuple[int, int]:
    """Return the tags of the first element in a DER SEQUENCE and of the first in that; 0 where there is none."""
    at, tags = 0, [0, 0, 0]
    for depth in range(3):
        if len(data) < at + 2:
            break
        tags[depth] = data[at]
        at += 2 + (data[at + 1] & 0x7F if data[at + 1] & 0x80 else 0)
    return (tags[1], tags[2]) if tags[0] == 0x30 else (0, 0)  # noqa: PLR2004 - SEQUENCE


def _is_certificate(data: bytes) -> bool:
    """Version 3: the signed part begins with [0]."""
    return _der_shape(data) == (0x30, 0xA0)


def _is_crl(data: bytes) -> bool:
    """Version 2: the signed part begins with an INTEGER."""
    return _der_shape(data) == (0x30, 0x02)


def _is_ocsp(data: bytes) -> bool:
    """A response begins with its status, an ENUMERATED."""
    return _der_shape(data)[0] == 0x0A  # noqa: PLR2004 - the tag, as X.690 has it


_BINARY: Final[tuple[tuple[Kind, Callable[[bytes], bool]], ...]] = (
    (EvidenceFormat.TDX_QUOTE, _is_quote),
    (EvidenceFormat.SIMULATED, _is_simulated),
    (EvidenceFormat.SNP_REPORT, _is_snp_report),
    (EvidenceFormat.AZURE_VTPM, lambda data: data.startswith(b"HCLA")),
    (EvidenceFormat.NVIDIA_GPU_REPORT, _is_gpu_report),
    (CollateralKind.CERTIFICATE, _is_certificate),
    (CollateralKind.CRL, _is_crl),
    (CollateralKind.OCSP, _is_ocsp),
    (DocumentKind.EVENT_LOG, _is_event_log),
    (DocumentKind.NOT_USED, lambda data: data[:4] in _NOTES),
    (EvidenceFormat.NITRO, _is_nitro_document),
)


# --- PEM ------------------------------------------------------------------------------------------------------------

_PEM_CRL = re.compile(rb"-----BEGIN X509 CRL-----\s([A-Za-z0-9+/=\s]+)-----END X509 CRL-----")
_PEM_CRL_BEGIN = b"-----BEGIN X509 CRL-----"
_MAX_CRLS = 16


def _pem_items(data: bytes) -> Iterator[Item]:
    """Yield the certificates and revocation lists of PEM text; other blocks and the text between them do not count."""
    if b"-----BEGIN CERTIFICATE-----" in data:
        for der in split_certificates(data):
            yield Item(CollateralKind.CERTIFICATE, der)
    begun, blocks = data.count(_PEM_CRL_BEGIN), _PEM_CRL.findall(data)
    if begun > _MAX_CRLS or begun != len(blocks):
        raise EvidenceMalformedError(
            AttestationCode.COLLATERAL_MALFORMED,
            f"of {begun} PEM revocation lists {len(blocks)} are whole, want all and at most {_MAX_CRLS}",
        )
    for block in blocks:
        crl = _unbase64("".join(block.decode("ascii").split()))
        if crl is None:
            raise EvidenceMalformedError(AttestationCode.COLLATERAL_MALFORMED, "PEM revocation list is not base64")
        yield Item(CollateralKind.CRL, crl)


# --- JSON -----------------------------------------------------------------------------------------------------------

_TINFOIL_FORMAT = "https://tinfoil.sh/predicate/"
_ML_KEM_768_CHARS = 1580


def _recognise_json(text: bytes) -> tuple[Item, ...]:
    try:
        document = parse_json(text)
    except JsonError as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"JSON: {error}") from error
    if isinstance(document, list):
        kind = _kind_of_list(document)
        return () if kind is None else (Item(kind, text),)
    if not isinstance(document, dict):  # cannot be: the text begins with a bracket
        return ()
    if isinstance(rim := document.get("rim"), str):  # NVIDIA's RIM service
        return tuple(Item(CollateralKind.RIM, xml) for xml in (_unbase64(rim),) if xml is not None)
    for kind, looks_like, note in _OBJECTS:
        if looks_like(document):
            return (Item(kind, text, note),)
    return tuple(_quote_items(document)) if document.keys() >= {"quote", "event_log"} else ()


def _quote_items(document: dict[str, JsonValue]) -> Iterator[Item]:
    """Yield the quote and the event log of an answer of dstack's own socket, which binds nothing by itself."""
    quote, log = document["quote"], document["event_log"]
    if isinstance(quote, str):
        try:
            yield Item(EvidenceFormat.TDX_QUOTE, decode_binary(quote))
        except EncodingError as error:
            raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"quote: {error}") from error
    yield Item(DocumentKind.EVENT_LOG, log.encode("utf-8") if isinstance(log, str) else msgspec.json.encode(log))


def _kind_of_list(document: list[JsonValue]) -> Kind | None:
    first = document[0] if document else None
    if isinstance(first, dict) and first.keys() >= {"evidence", "certificate"}:
        return EvidenceFormat.NVIDIA_GPU_LIST
    if isinstance(first, dict) and first.keys() >= {"imr", "digest"}:
        return DocumentKind.EVENT_LOG
    if isinstance(first, list) and first[:1] == ["JWT"]:
        return EvidenceFormat.NVIDIA_NRAS
    return None


def _has(*names: str) -> Callable[[dict[str, JsonValue]], bool]:
    wanted = frozenset(names)
    return lambda document: document.keys() >= wanted


def _is_tinfoil(document: dict[str, JsonValue]) -> bool:
    return isinstance(named := document.get("format"), str) and named.startswith(_TINFOIL_FORMAT)


def _is_dstack(document: dict[str, JsonValue]) -> bool:
    names = ("intel_quote", "signing_address", "gateway_attestation", "model_attestations")
    return any(name in document for name in names)


def _is_chutes(document: dict[str, JsonValue]) -> bool:
    evidence = document.get("evidence")
    first = evidence[0] if isinstance(evidence, list) and evidence else None
    return isinstance(first, dict) and "quote" in first


def _is_aci(document: dict[str, JsonValue]) -> bool:
    return isinstance(version := document.get("api_version"), str) and version.startswith("aci/")


def _are_chutes_keys(document: dict[str, JsonValue]) -> bool:
    return bool(document) and all(isinstance(v, str) and len(v) == _ML_KEM_768_CHARS for v in document.values())


def _are_headers(document: dict[str, JsonValue]) -> bool:
    answers = [answer for answer in document.values() if isinstance(answer, dict)]
    headers = [answer.get("headers") for answer in answers]
    return any(isinstance(h, dict) and any(n.lower().endswith("issuer-chain") for n in h) for h in headers)


_OBJECTS: Final[tuple[tuple[Kind, Callable[[dict[str, JsonValue]], bool], str], ...]] = (
    (DocumentKind.TINFOIL, _is_tinfoil, ""),
    (DocumentKind.DSTACK, _is_dstack, ""),
    (DocumentKind.CHUTES, _is_chutes, ""),
    (DocumentKind.ACI, _is_aci, ""),
    (DocumentKind.CHUTES_KEYS, _are_chutes_keys, ""),
    (EvidenceFormat.NVIDIA_GPU_LIST, _has("evidence_list"), ""),
    (EvidenceFormat.NVIDIA_GPU_LIST, _has("evidences"), ""),
    (EvidenceFormat.AZURE_VTPM, _has("quote", "report"), ""),
    (EvidenceFormat.AZURE_VTPM, _has("tpm_quote", "hcl_report"), ""),
    (EvidenceFormat.AZURE_VTPM, _has("hcl_report_b64"), ""),
    (CollateralKind.TDX, _has("tcb_info", "qe_identity"), ""),
    (DocumentKind.INTEL_TCB_INFO, _has("tcbInfo", "signature"), ""),
    (DocumentKind.INTEL_QE_IDENTITY, _has("enclaveIdentity", "signature"), ""),
    (CollateralKind.JWKS, _has("keys"), ""),
    (DocumentKind.INTEL_HEADERS, _are_headers, ""),
    (DocumentKind.NOT_USED, _has("attestations"), "build provenance (sigstore) of the workload is not looked at"),
    (DocumentKind.NOT_USED, _has("dsseEnvelope"), "build provenance (sigstore) of the workload is not looked at"),
    (DocumentKind.NOT_USED, _has("tag_name", "assets"), "a release of the workload's source is not looked at"),
)
