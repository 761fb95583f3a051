"""Intel's collateral for TDX: one JSON document of what Intel's service answers (docs/spec/attestation.md, 5.2.4).

Four answers of the PCS API, version 4, make one document: TCB information, the identity of the quoting enclave, the
CRL of the PCK's issuer and that of the root.  Members are those of dcap-qvl's `QuoteCollateralV3`: issuer chains in
PEM, CRLs and signatures in hexadecimal, and `tcb_info` and `qe_identity` as the exact text that Intel signed: written
again, the same JSON no longer verifies.

Nothing here is verified; `verify.py` does that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, NamedTuple, TypeVar
from urllib.parse import unquote

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Meta

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.x509 import load_certificates, load_crl
from tresor.encodings import parse_json
from tresor.errors import JsonError

__all__ = [
    "MAX_COLLATERAL_BYTES",
    "PcsAnswer",
    "PcsUrls",
    "QeIdentity",
    "TcbInfo",
    "TcbStatus",
    "TdxCollateral",
    "assemble",
    "parse_collateral",
    "pcs_urls",
]

MAX_COLLATERAL_BYTES: Final = 4 << 20
_PCS: Final = "https://api.trustedservices.intel.com"
_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"


class TcbStatus(StrEnum):
    """What Intel says about a TCB; the two TDRelaunch ones and `NotSupported` are concluded and never written."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    NOT_SUPPORTED = "NotSupported"


_Instant = Annotated[datetime, Meta(tz=True)]
_Hex4 = Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{8}\Z")]
_Hex6 = Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{12}\Z")]
_Hex8 = Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{16}\Z")]
_Hex16 = Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{32}\Z")]
_Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{64}\Z")]
_Hex48 = Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{96}\Z")]
_Hex = Annotated[str, Meta(pattern=r"\A(?:[0-9a-fA-F]{2})++\Z")]  # see recognise._HEX
_Signature = Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{128}\Z")]
_Svn = Annotated[int, Meta(ge=0, le=0xFF)]
_Svn16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
_Number = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
_Advisories = Annotated[tuple[str, ...], Meta(max_length=1024)]


class _Level(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    tcb_date: _Instant
    tcb_status: TcbStatus
    advisory_ids: _Advisories = msgspec.field(default=(), name="advisoryIDs")

    def __post_init__(self) -> None:
        if self.tcb_status not in _PUBLISHED:
            raise ValueError(f"{self.tcb_status} is no status that Intel publishes")


_PUBLISHED: Final = frozenset(TcbStatus) - {
    TcbStatus.TD_RELAUNCH_ADVISED,
    TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED,
    TcbStatus.NOT_SUPPORTED,
}


class Component(msgspec.Struct, frozen=True):
    """One of the 16 components of a TCB."""

    svn: _Svn


_Components = Annotated[tuple[Component, ...], Meta(min_length=16, max_length=16)]


class Tcb(msgspec.Struct, frozen=True, rename="lower"):
    """Lowest SVNs of a level."""

    sgxtcbcomponents: _Components
    tdxtcbcomponents: _Components
    pcesvn: _Svn16


class TcbLevel(_Level, frozen=True, kw_only=True, rename="camel"):
    """What Intel says of platforms that have at least these SVNs."""

    tcb: Tcb


class IsvSvn(msgspec.Struct, frozen=True):
    """Lowest SVN of a level of a module or an enclave."""

    isvsvn: _Svn16


class IsvLevel(_Level, frozen=True, kw_only=True, rename="camel"):
    """What Intel says of a TDX module or quoting enclave of at least this SVN."""

    tcb: IsvSvn


class TdxModule(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Who signs TDX modules, and their attributes."""

    mrsigner: _Hex48
    attributes: _Hex8
    attributes_mask: _Hex8


class TdxModuleIdentity(TdxModule, frozen=True, kw_only=True, rename="camel"):
    """Likewise for one major version of the module, `TDX_01` and so on."""

    id: str
    tcb_levels: Annotated[tuple[IsvLevel, ...], Meta(min_length=1, max_length=256)]


class TcbInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """TCB information for one FMSPC, version 3; members that are not understood are ignored, as its issuer asks."""

    id: Literal["TDX"]
    version: Literal[3]
    issue_date: _Instant
    next_update: _Instant
    fmspc: _Hex6
    pce_id: Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{4}\Z")]
    tcb_type: Literal[0]
    tcb_evaluation_data_number: _Number
    tdx_module: TdxModule
    tdx_module_identities: Annotated[tuple[TdxModuleIdentity, ...], Meta(max_length=256)] = ()
    tcb_levels: Annotated[tuple[TcbLevel, ...], Meta(min_length=1, max_length=1024)]


class QeIdentity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the quoting enclave of trust domains must be."""

    id: Literal["TD_QE"]
    version: Literal[2, 3]
    issue_date: _Instant
    next_update: _Instant
    tcb_evaluation_data_number: _Number
    miscselect: _Hex4
    miscselect_mask: _Hex4
    attributes: _Hex16
    attributes_mask: _Hex16
    mrsigner: _Hex32
    isvprodid: _Svn16
    tcb_levels: Annotated[tuple[IsvLevel, ...], Meta(min_length=1, max_length=256)]


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON document, as dcap-qvl writes it; `pck_certificate_chain` is not looked at: the quote has its own."""

    pck_crl_issuer_chain: str
    root_ca_crl: _Hex
    pck_crl: _Hex
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: _Signature
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: _Signature
    pck_certificate_chain: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class TdxCollateral:
    """Well-formed collateral; who signed it is not known yet.

    Attributes:
        document: its members as received, with the signed texts.
        tcb_info: content of `document.tcb_info`.
        qe_identity: content of `document.qe_identity`.
        tcb_info_chain: certificates said to have signed the one.
        qe_identity_chain: and the other.
        pck_crl_chain: issuer of the PCK's CRL, and its own issuer.
        pck_crl: revoked PCK certificates.
        root_ca_crl: revoked issuers of PCK certificates and signers of collateral.
    """

    document: Document
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    tcb_info_chain: tuple[x509.Certificate, ...]
    qe_identity_chain: tuple[x509.Certificate, ...]
    pck_crl_chain: tuple[x509.Certificate, ...]
    pck_crl: x509.CertificateRevocationList
    root_ca_crl: x509.CertificateRevocationList

    @property
    def fmspc(self) -> bytes:
        """The kind of platform that it is for: 6 bytes."""
        return bytes.fromhex(self.tcb_info.fmspc)

    @property
    def tcb_evaluation_data_number(self) -> int:
        """The lower one of its two numbers, which rise with each TCB recovery."""
        return min(self.tcb_info.tcb_evaluation_data_number, self.qe_identity.tcb_evaluation_data_number)

    def __repr__(self) -> str:
        return f"<TdxCollateral {self.tcb_info.fmspc} issued {self.tcb_info.issue_date.isoformat()}>"


_T = TypeVar("_T", Document, TcbInfo, QeIdentity)


def _malformed(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.COLLATERAL_MALFORMED, message)


def _read(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(parse_json(data), kind)
    except (JsonError, msgspec.ValidationError) as error:
        raise _malformed(f"{kind.__name__} of TDX collateral: {error}") from error


def parse_collateral(data: bytes) -> TdxCollateral:
    """Parse one document of TDX collateral.

    Raises:
        EvidenceMalformedError: too long, not strict JSON of these members, not for TDX, or a chain or CRL that cannot
            be read.
    """
    if len(data) > MAX_COLLATERAL_BYTES:
        raise _malformed(f"TDX collateral is {len(data)} bytes, want at most {MAX_COLLATERAL_BYTES}")
    document = _read(data, Document)
    return TdxCollateral(
        document=document,
        tcb_info=_read(document.tcb_info.encode(), TcbInfo),
        qe_identity=_read(document.qe_identity.encode(), QeIdentity),
        tcb_info_chain=tuple(load_certificates(document.tcb_info_issuer_chain.encode())),
        qe_identity_chain=tuple(load_certificates(document.qe_identity_issuer_chain.encode())),
        pck_crl_chain=tuple(load_certificates(document.pck_crl_issuer_chain.encode())),
        pck_crl=load_crl(bytes.fromhex(document.pck_crl)),
        root_ca_crl=load_crl(bytes.fromhex(document.root_ca_crl)),
    )


class PcsUrls(NamedTuple):
    """Where Intel serves the four parts, in the order of `assemble`'s arguments."""

    tcb: str
    qe_identity: str
    pck_crl: str
    root_ca_crl: str


class PcsAnswer(NamedTuple):
    """One answer of the PCS API: its body as received, and its headers, in which the issuer chains come."""

    body: bytes
    headers: Mapping[str, str]


def pcs_urls(fmspc: bytes, ca: Literal["platform", "processor"]) -> PcsUrls:
    """Return where Intel serves collateral for a platform; each is a GET without a key."""
    return PcsUrls(
        tcb=f"{_PCS}/tdx/certification/v4/tcb?fmspc={fmspc.hex()}",
        qe_identity=f"{_PCS}/tdx/certification/v4/qe/identity",
        pck_crl=f"{_PCS}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der",
        root_ca_crl=_ROOT_CRL,
    )


def assemble(tcb: PcsAnswer, qe_identity: PcsAnswer, pck_crl: PcsAnswer, root_ca_crl: PcsAnswer) -> bytes:
    """Make one document of Intel's four answers: `assemble(*(fetch(url) for url in pcs_urls(fmspc, ca)))`.

    Raises:
        EvidenceMalformedError: an answer lacks its header or is not what its URL serves.
    """
    tcb_info, tcb_info_signature = _signed_member(tcb.body, _TcbAnswer)
    identity, identity_signature = _signed_member(qe_identity.body, _QeIdentityAnswer)
    document = Document(
        pck_crl_issuer_chain=_chain(pck_crl, "sgx-pck-crl-issuer-chain"),
        root_ca_crl=load_crl(root_ca_crl.body).public_bytes(Encoding.DER).hex(),
        pck_crl=load_crl(pck_crl.body).public_bytes(Encoding.DER).hex(),
        tcb_info_issuer_chain=_chain(tcb, "tcb-info-issuer-chain"),
        tcb_info=tcb_info,
        tcb_info_signature=tcb_info_signature,
        qe_identity_issuer_chain=_chain(qe_identity, "sgx-enclave-identity-issuer-chain"),
        qe_identity=identity,
        qe_identity_signature=identity_signature,
    )
    members = {name: value for name, value in msgspec.structs.asdict(document).items() if value is not None}
    data = msgspec.json.encode(members)
    parse_collateral(data)
    return data


class _TcbAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signed: msgspec.Raw = msgspec.field(name="tcbInfo")
    signature: _Signature


class _QeIdentityAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signed: msgspec.Raw = msgspec.field(name="enclaveIdentity")
    signature: _Signature


def _signed_member(body: bytes, kind: type[_TcbAnswer | _QeIdentityAnswer]) -> tuple[str, str]:
    """Return the signed member with every space and line break as it came, and its signature."""
    if len(body) > MAX_COLLATERAL_BYTES:
        raise _malformed(f"answer of Intel's service is {len(body)} bytes, want at most {MAX_COLLATERAL_BYTES}")
    try:
        parse_json(body)
        answer = msgspec.json.decode(body, type=kind)
        return bytes(answer.signed).decode(), answer.signature
    except (JsonError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(f"answer of Intel's service is not its signed JSON: {error}") from error


def _chain(answer: PcsAnswer, header: str) -> str:
    """Return the PEM text of an issuer chain header, which comes percent-encoded."""
    values = [value for name, value in answer.headers.items() if name.lower() == header]
    if len(values) != 1:
        raise _malformed(f"answer of Intel's service has {len(values)} headers {header}, want one")
    try:
        return unquote(values[0], errors="strict")
    except UnicodeDecodeError as error:
        raise _malformed(f"header {header} is not percent-encoded text") from error
