"""Intel TDX quotes and TDREPORTs: bytes to fields (docs/spec/attestation.md, 5.2.1).

Implements the quote formats 4 and 5 of Intel's "TDX DCAP Quoting Library API" (appendix A) with bodies for TDX 1.0 and
1.5, and TDREPORT_STRUCT of the "TDX Module ABI Specification" (348551).  All integers are little endian.  Fields are
named after Intel.

Nothing here is signed until `verify.py` has said so.  Only header and body are ever signed: certificates, lengths and
padding behind them can be rewritten without harm to the signatures, so a digest of a whole quote identifies nothing.
`TdxQuote.signed` is what identity, replay keys and digests must be made of.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError

__all__ = [
    "BODY_1_0_BYTES",
    "BODY_1_5_BYTES",
    "MAX_QUOTE_BYTES",
    "QE_REPORT_BYTES",
    "TDREPORT_BYTES",
    "QeReport",
    "TdBody",
    "TdReport",
    "TdxQuote",
    "parse_quote",
    "parse_tdreport",
]

MAX_QUOTE_BYTES: Final = 64 * 1024  # real ones are 5 KB, and 8000 bytes with padding
BODY_1_0_BYTES: Final = 584
BODY_1_5_BYTES: Final = 648
QE_REPORT_BYTES: Final = 384
TDREPORT_BYTES: Final = 1024

_HEADER: Final = struct.Struct("<HHI4x16s20s")
_BODY_1_0: Final = struct.Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_BODY_1_5: Final = struct.Struct("<16s48s")
_BODY_OF_TYPE: Final = {2: BODY_1_0_BYTES, 3: BODY_1_5_BYTES}
_QE_REPORT: Final = struct.Struct("<16sI28x16s32s32x32s96xHH60x64s")
_SGX_ONLY_VERSION: Final = 3
_VERSIONS: Final = (4, 5)
_VERSION_WITH_BODY_TYPE: Final = 5
_TEE_TYPE_SGX: Final = 0
_TEE_TYPE_TDX: Final = 0x81
_SGX_BODY: Final = 1
_ECDSA_P256: Final = 2
_QE_REPORT_CERTIFICATION_DATA: Final = 6

# REPORTMACSTRUCT, TEE_TCB_INFO, 17 reserved bytes, TDINFO_STRUCT.
_REPORTMAC: Final = struct.Struct("<4s12x16s48s48s64s32x32s")
_TEE_TCB_INFO: Final = struct.Struct("<8s16s48s48s8s16s95x")
_TDINFO: Final = struct.Struct("<8s8s48s48s48s48s48s48s48s48s48s64x")
_TEE_TCB_INFO_AT: Final = 256
_TDINFO_AT: Final = 512
_TDREPORT_TYPE_TDX: Final = 0x81


@dataclass(frozen=True, slots=True)
class TdBody:
    """What the TDX module reports of a trust domain, in the order of the wire; SVNs 16 bytes, measurements 48.

    Attributes:
        tee_tcb_svn: SVNs at launch: byte 0 of the TDX module, 1 its major version, 2 of the late microcode.
        mrseam: SHA-384 of the TDX module.
        mrsignerseam: signer of the TDX module; zero for Intel's.
        seamattributes: of the TDX module.
        tdattributes: 8 bytes: bit 0 DEBUG, 28 SEPT_VE_DISABLE, 29 MIGRATABLE, ...
        xfam: 8 bytes: extended features that the domain may use.
        mrtd: SHA-384 of the initial memory: the virtual firmware.
        mrconfigid: whatever the host said about configuration not run by the domain.
        mrowner: likewise about the owner.
        mrownerconfig: likewise about configuration by the owner.
        rtmr0: extended at run time; so are the others.
        rtmr1: likewise.
        rtmr2: likewise.
        rtmr3: likewise.
        report_data: 64 bytes of the domain's own.
        tee_tcb_svn2: SVNs now, after updates of the module beneath the running domain; None in TDX 1.0.
        mrservicetd: hash of the service domains that are bound, such as for migration; None in TDX 1.0.
    """

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seamattributes: bytes
    tdattributes: bytes
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mrservicetd: bytes | None = None

    @property
    def attributes(self) -> int:
        """TDATTRIBUTES as a number."""
        return int.from_bytes(self.tdattributes, "little")

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """RTMR0 to RTMR3."""
        return self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3


@dataclass(frozen=True, slots=True)
class QeReport:
    """What SGX reports of the quoting enclave that signed."""

    cpusvn: bytes
    miscselect: int
    attributes: bytes
    mrenclave: bytes
    mrsigner: bytes
    isvprodid: int
    isvsvn: int
    report_data: bytes


@dataclass(frozen=True, slots=True, repr=False)
class TdxQuote:
    """A well-formed quote; who signed it is not known yet.

    Attributes:
        raw: the bytes received, without padding.
        version: 4 or 5.
        qe_vendor_id: 16 bytes, the vendor of the quoting enclave.
        body: the report on the trust domain.
        signed: header and body, exactly the bytes that `signature` covers.
        signature: ECDSA P-256 by the attestation key, r and s of 32 bytes each, big endian.
        attestation_key: its public half, x and y of 32 bytes each, big endian.
        qe_report: the report on the quoting enclave that made the key.
        qe_report_signed: the 384 bytes of it that the PCK signed.
        qe_report_signature: that signature, form of `signature`.
        qe_authentication_data: hashed into the quoting enclave's REPORT_DATA behind the attestation key.
        certification_type: 5 for a PEM chain of the PCK certificate; others name a PCK without holding it.
        certification_data: of that type.
    """

    raw: bytes
    version: int
    qe_vendor_id: bytes
    body: TdBody
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: QeReport
    qe_report_signed: bytes
    qe_report_signature: bytes
    qe_authentication_data: bytes
    certification_type: int
    certification_data: bytes

    @property
    def signed_sha256(self) -> str:
        """SHA-256 of `signed`, lower-case hexadecimal: the one digest of a quote that nobody can vary."""
        return hashlib.sha256(self.signed).hexdigest()

    def __repr__(self) -> str:
        return f"<TdxQuote v{self.version} {self.signed_sha256}>"


@dataclass(frozen=True, slots=True)
class TdReport:
    """A TDREPORT: what a quote is made from, with a MAC that only the same machine can check.

    Attributes:
        body: the report on the trust domain.
        cpusvn: SVN of the processor.
    """

    body: TdBody
    cpusvn: bytes


class _Reader:
    """Takes bytes from the front, and refuses to take what is not there."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, size: int, field: str) -> bytes:
        if size > len(self._data) - self._at:
            raise _malformed(
                f"{self._what} is {len(self._data)} bytes, too short for {field} of {size} bytes at {self._at}"
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int, field: str) -> int:
        return int.from_bytes(self.take(size, field), "little")

    def rest(self) -> bytes:
        return self._data[self._at :]

    def end(self) -> None:
        if self._at != len(self._data):
            raise _malformed(f"{self._what} has {len(self._data) - self._at} bytes behind its last field")


def _malformed(message: str, code: AttestationCode = AttestationCode.EVIDENCE_MALFORMED) -> EvidenceMalformedError:
    return EvidenceMalformedError(code, message)


def parse_quote(data: bytes) -> TdxQuote:
    """Parse one TDX quote; only zero bytes may stand behind it, as clouds hand out buffers of a fixed size.

    Raises:
        EvidenceMalformedError: longer than 64 KiB, an SGX quote, another version, body or signature algorithm, a
            length that contradicts another, or bytes that belong to nothing.
    """
    if len(data) > MAX_QUOTE_BYTES:
        raise _malformed(
            f"TDX quote is {len(data)} bytes, want at most {MAX_QUOTE_BYTES}", AttestationCode.EVIDENCE_TOO_LARGE
        )
    reader = _Reader(data, "TDX quote")
    header = reader.take(_HEADER.size, "header")
    version, vendor = _check_header(header)
    prefix, size = b"", BODY_1_0_BYTES
    if version == _VERSION_WITH_BODY_TYPE:
        prefix = reader.take(6, "body descriptor")
        size = _body_size(*struct.unpack("<HI", prefix))
    body = reader.take(size, "body")
    signature_data = reader.take(reader.number(4, "signature data length"), "signature data")
    if reader.rest().strip(b"\0"):
        raise _malformed(f"{len(reader.rest())} bytes behind the TDX quote are not all zero")

    reader = _Reader(signature_data, "signature data")
    signature, attestation_key = reader.take(64, "signature"), reader.take(64, "attestation key")
    outer_type, outer = reader.number(2, "certification data type"), reader.number(4, "certification data length")
    if outer_type != _QE_REPORT_CERTIFICATION_DATA:
        raise _malformed(f"certification data is of type {outer_type}, want {_QE_REPORT_CERTIFICATION_DATA}")
    certification = _Reader(reader.take(outer, "certification data"), "QE report certification data")
    reader.end()
    qe_report_signed = certification.take(QE_REPORT_BYTES, "QE report")
    qe_report_signature = certification.take(64, "QE report signature")
    authentication = certification.take(certification.number(2, "QE authentication data length"), "its data")
    inner_type = certification.number(2, "PCK certification data type")
    inner = certification.take(certification.number(4, "PCK certification data length"), "PCK certification data")
    certification.end()
    return TdxQuote(
        raw=data[: len(header) + len(prefix) + size + 4 + len(signature_data)],
        version=version,
        qe_vendor_id=vendor,
        body=_parse_body(body),
        signed=header + prefix + body,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=QeReport(*_QE_REPORT.unpack(qe_report_signed)),
        qe_report_signed=qe_report_signed,
        qe_report_signature=qe_report_signature,
        qe_authentication_data=authentication,
        certification_type=inner_type,
        certification_data=inner,
    )


def _check_header(header: bytes) -> tuple[int, bytes]:
    """Return version and QE vendor; bytes 8 to 11 are reserved and signed, so nobody can use them to vary a quote."""
    version, key_type, tee_type, vendor, _user_data = _HEADER.unpack(header)
    if version == _SGX_ONLY_VERSION or (version in _VERSIONS and tee_type == _TEE_TYPE_SGX):
        raise _malformed(
            f"quote of version {version} is of an SGX enclave, want a trust domain",
            AttestationCode.EVIDENCE_KIND_MISMATCH,
        )
    if version not in _VERSIONS:
        raise _malformed(f"quote is of version {version}, want 4 or 5", AttestationCode.EVIDENCE_VERSION_UNSUPPORTED)
    if tee_type != _TEE_TYPE_TDX:
        raise _malformed(f"TEE type is {tee_type:#x}, want {_TEE_TYPE_TDX:#x}")
    if key_type != _ECDSA_P256:
        raise _malformed(
            f"attestation key is of type {key_type}, want {_ECDSA_P256} (ECDSA P-256)",
            AttestationCode.ALGORITHM_NOT_ALLOWED,
        )
    return version, vendor


def _body_size(body_type: int, size: int) -> int:
    if body_type == _SGX_BODY:
        raise _malformed("body is an SGX enclave report, want a TD report", AttestationCode.EVIDENCE_KIND_MISMATCH)
    if body_type not in _BODY_OF_TYPE:
        raise _malformed(
            f"body is of type {body_type}, want 2 (TDX 1.0) or 3 (TDX 1.5)",
            AttestationCode.EVIDENCE_VERSION_UNSUPPORTED,
        )
    if size != _BODY_OF_TYPE[body_type]:
        raise _malformed(f"body of type {body_type} is {size} bytes, want {_BODY_OF_TYPE[body_type]}")
    return size


def _parse_body(body: bytes) -> TdBody:
    tdx_1_5 = _BODY_1_5.unpack_from(body, BODY_1_0_BYTES) if len(body) == BODY_1_5_BYTES else ()
    return TdBody(*_BODY_1_0.unpack_from(body), *tdx_1_5)


def parse_tdreport(data: bytes) -> TdReport:
    """Parse one TDREPORT of 1024 bytes and check its own hashes.

    Its MAC is not checked, for nobody but the machine that made it can: a TDREPORT proves nothing away from it.

    Raises:
        EvidenceMalformedError: another length or type, or hashes that are not of its parts.
    """
    if len(data) != TDREPORT_BYTES:
        raise _malformed(f"TDREPORT is {len(data)} bytes, want {TDREPORT_BYTES}")
    kind, cpusvn, tcb_info_hash, info_hash, report_data, _mac = _REPORTMAC.unpack_from(data)
    if kind[0] != _TDREPORT_TYPE_TDX:
        raise _malformed(
            f"report is of type {kind[0]:#x}, want {_TDREPORT_TYPE_TDX:#x}", AttestationCode.EVIDENCE_KIND_MISMATCH
        )
    tcb_info = data[_TEE_TCB_INFO_AT : _TEE_TCB_INFO_AT + _TEE_TCB_INFO.size]
    info = data[_TDINFO_AT:]
    if hashlib.sha384(tcb_info).digest() != tcb_info_hash or hashlib.sha384(info).digest() != info_hash:
        raise _malformed("TEE_TCB_INFO_HASH or TEE_INFO_HASH of the TDREPORT is not that of its part")
    _valid, *module, svn2 = _TEE_TCB_INFO.unpack(tcb_info)
    *domain, mrservicetd = _TDINFO.unpack(info)
    return TdReport(TdBody(*(*module, *domain, report_data, svn2, mrservicetd)), cpusvn)
