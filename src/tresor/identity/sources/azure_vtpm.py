"""Evidence from the vTPM of an Azure confidential VM, SEV-SNP or TDX.

There the hardware report belongs to Microsoft's paravisor, which makes it once, at boot, and binds the attestation key
of the vTPM into it.  What this process wants to have signed goes into a quote of that key, as qualifying data: one
chain from the hardware to REPORT_DATA (contract section 6).

    (1) NV index 0x01400001: the HCL report, with the hardware report and the runtime data that name the key; read
        again where the paravisor replaced it between two pieces
    (2) quote of the SHA-256 bank by the key 0x81000003, qualifying data SHA-384(REPORT_DATA)
    (3) the PCR values; read again with a new quote where a PCR has changed in between
    (4) endorsements, once per HCL report: the VCEK and its chain, or the TD quote for the TDREPORT

Microsoft's clients can also write 64 bytes to NV index 0x01400002, whereupon the paravisor makes a new report with
them.  That index is one for all processes of the machine, needs the owner's authority to be made, and takes seconds
and a request to the firmware each time, while the quote already binds REPORT_DATA: it is not used.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tresor.attestation.azure.abi import HclReport, ReportType, parse_hcl_report
from tresor.attestation.blocks import Tee
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.x509 import split_certificates
from tresor.encodings import JsonValue, base64url_decode, base64url_encode, parse_json
from tresor.errors import EncodingError, JsonError
from tresor.identity.source import (
    REPORT_DATA_BYTES,
    CollectedEvidence,
    EvidencePart,
    EvidenceSourceError,
    SourceCode,
)
from tresor.identity.sources.metadata import Fetch, fetch_metadata
from tresor.identity.sources.patience import Patience
from tresor.identity.sources.tpm2 import RC_HANDLE, Tpm2, TpmDevice, TpmRefusedError

__all__ = ["AK_HANDLE", "DEFAULT_DEVICE", "HCL_REPORT_INDEX", "AzureVtpmSource"]

DEFAULT_DEVICE: Final = Path("/dev/tpmrm0")
HCL_REPORT_INDEX: Final = 0x0140_0001
AK_HANDLE: Final = 0x8100_0003

_PEM_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_CERTIFICATION = "/metadata/THIM/amd/certification"
_TD_QUOTE = "/acc/tdquote"

_TEES: Final[dict[ReportType, Tee]] = {ReportType.SNP: "azure-sev-snp", ReportType.TDX: "azure-tdx"}


class _Endorsed(NamedTuple):
    """An HCL report and what the host hands out for it."""

    hcl_report: bytes
    parts: dict[EvidencePart, bytes]
    certificates: tuple[bytes, ...]


class AzureVtpmSource:
    """Evidence from the vTPM of an Azure confidential VM.

    Args:
        device: the TPM's device file, or a UNIX socket.
        patience: how long to try while the TPM or the metadata service is busy.
        fetch: asks the metadata service.

    Raises:
        EvidenceSourceError: there is no TPM, or it holds no HCL report.
    """

    def __init__(
        self, device: Path = DEFAULT_DEVICE, *, patience: Patience | None = None, fetch: Fetch = fetch_metadata
    ) -> None:
        self._device = device
        self._patience = patience or Patience()
        self._fetch = fetch
        self._endorsed: _Endorsed | None = None
        self.tee = self._patience.until_done(self._probe)

    def __repr__(self) -> str:
        return f"<AzureVtpmSource {self.tee} at {self._device}>"

    def collect(self, report_data: bytes) -> CollectedEvidence:
        """Have the vTPM sign SHA-384 of `report_data`; see `EvidenceSource`."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"REPORT_DATA is {len(report_data)} bytes, want {REPORT_DATA_BYTES}")
        hcl_report, tpm_quote = self._patience.until_done(lambda: self._quote(report_data))
        endorsed = self._patience.until_done(lambda: self._endorse(hcl_report))
        return CollectedEvidence(
            tee=self.tee,
            parts={"hcl_report": hcl_report, "tpm_quote": tpm_quote, **endorsed.parts},
            certificates=endorsed.certificates,
        )

    def _probe(self) -> Tee:
        with self._tpm() as tpm:
            try:
                return _TEES[_parse_report(_read_report(tpm)).report_type]
            except TpmRefusedError as error:
                if error.response_code != RC_HANDLE:
                    raise
                raise EvidenceSourceError(
                    SourceCode.UNAVAILABLE,
                    f"the TPM {self._device} has no NV index {HCL_REPORT_INDEX:#010x}: this is no confidential VM of "
                    "Azure",
                ) from error

    def _quote(self, report_data: bytes) -> tuple[bytes, bytes]:
        """Return the HCL report, and the quote as JSON."""
        qualifying_data = hashlib.sha384(report_data).digest()
        with self._tpm() as tpm:
            hcl_report = _read_report(tpm)  # (1)
            quote = tpm.quote(AK_HANDLE, qualifying_data)  # (2)
            pcrs = tpm.pcr_read()  # (3)
        report = _parse_report(hcl_report)
        if hashlib.new(report.hash_name, report.runtime_data).digest() not in report.hardware_report:
            raise EvidenceSourceError(SourceCode.BUSY, f"the HCL report of {self._device} changes while it is read")
        digest = hashlib.sha256(b"".join(pcrs)).digest()
        if qualifying_data not in quote.message:
            raise EvidenceSourceError(SourceCode.FAILED, f"the TPM {self._device} quotes other data than it was given")
        if not quote.message.endswith(len(digest).to_bytes(2, "big") + digest):  # the last member of TPMS_QUOTE_INFO
            raise EvidenceSourceError(SourceCode.BUSY, f"PCRs of {self._device} change while they are quoted")
        return hcl_report, json.dumps(
            {
                "message": quote.message.hex(),
                "signature": quote.signature.hex(),
                "pcrs": [value.hex() for value in pcrs],
            }
        ).encode("ascii")

    def _endorse(self, hcl_report: bytes) -> _Endorsed:
        """Return what the host hands out for a report, asking once for each.  (4)."""
        if self._endorsed is None or self._endorsed.hcl_report != hcl_report:
            if self.tee == "azure-tdx":
                self._endorsed = _Endorsed(hcl_report, {"tdx_quote": self._fetch_td_quote(hcl_report)}, ())
            else:
                self._endorsed = _Endorsed(hcl_report, {}, self._fetch_certificates())
        return self._endorsed

    def _fetch_certificates(self) -> tuple[bytes, ...]:
        answer = _parse_answer(_CERTIFICATION, self._fetch(_CERTIFICATION, None))
        try:
            pem = "\n".join(_text(_CERTIFICATION, answer, name) for name in ("vcekCert", "certificateChain"))
            certificates = split_certificates(pem.encode())
        except EvidenceMalformedError as error:
            raise _unreadable(_CERTIFICATION, str(error)) from error
        if _PEM_BEGIN not in pem:
            raise _unreadable(_CERTIFICATION, "no PEM text in it")
        return tuple(certificates)

    def _fetch_td_quote(self, hcl_report: bytes) -> bytes:
        report = _parse_report(hcl_report).hardware_report
        body = json.dumps({"report": base64url_encode(report)}).encode("ascii")
        answer = _parse_answer(_TD_QUOTE, self._fetch(_TD_QUOTE, body))
        try:
            return base64url_decode(_text(_TD_QUOTE, answer, "quote").rstrip("="))
        except EncodingError as error:
            raise _unreadable(_TD_QUOTE, str(error)) from error

    @contextlib.contextmanager
    def _tpm(self) -> Iterator[Tpm2]:
        try:
            device = TpmDevice.open(self._device)
        except FileNotFoundError as error:
            raise EvidenceSourceError(
                SourceCode.UNAVAILABLE,
                f"{self._device} is not there: this machine has no TPM, or it was not handed to this container",
            ) from error
        except OSError as error:
            raise EvidenceSourceError(
                SourceCode.UNAVAILABLE,
                f"{self._device}: {error.strerror}: the user of this process has to be in the TPM's group (tss)",
            ) from error
        with contextlib.closing(device):
            yield Tpm2(device)


def _read_report(tpm: Tpm2) -> bytes:
    return tpm.nv_read(HCL_REPORT_INDEX, tpm.nv_read_public(HCL_REPORT_INDEX))


def _parse_report(data: bytes) -> HclReport:
    try:
        return parse_hcl_report(data)
    except EvidenceMalformedError as error:
        raise EvidenceSourceError(
            SourceCode.UNAVAILABLE,
            f"NV index {HCL_REPORT_INDEX:#010x} holds no report of Azure's paravisor ({error})",
        ) from error


def _parse_answer(path: str, body: bytes) -> dict[str, JsonValue]:
    try:
        document = parse_json(body)
    except JsonError as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(document, dict):
        raise _unreadable(path, "not an object")
    return document


def _text(path: str, answer: dict[str, JsonValue], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise _unreadable(path, f"{name} is not a string")
    return value


def _unreadable(path: str, what: str) -> EvidenceSourceError:
    return EvidenceSourceError(
        SourceCode.FAILED, f"the metadata service answers {path} with what cannot be read: {what}"
    )
