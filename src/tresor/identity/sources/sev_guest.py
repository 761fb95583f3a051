"""Evidence through /dev/sev-guest: SEV-SNP reports on kernels without configfs-tsm.

Implements the ioctls SNP_GET_EXT_REPORT and SNP_GET_REPORT of include/uapi/linux/sev-guest.h (Linux 5.19 and later;
the structures of the patches before it have other sizes) and the response of AMD 56860, table "MSG_REPORT_RSP".  All
integers are little-endian.

    (1) extended report with room for 16 KiB of certificates, the most a driver of today takes
    (2) where the host needs more room, the driver says how much: once more with that
    (3) where the host hands out no certificates, or not so many, the plain report
    (4) status of the firmware, REPORT_DATA in the report

The driver itself waits up to a minute while the host throttles requests.  After any other error it gives up its key to
the firmware, so that no nonce of its cipher is used twice; from then on every request is ENOTTY until the VM restarts.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Final, Literal

from tresor.identity.source import REPORT_DATA_BYTES, CollectedEvidence, EvidenceSourceError, SourceCode
from tresor.identity.sources.patience import Patience
from tresor.identity.sources.snp_certificates import certificates_of

__all__ = ["DEFAULT_DEVICE", "Ioctl", "SevGuestSource"]

DEFAULT_DEVICE: Final = Path("/dev/sev-guest")

SNP_GET_REPORT: Final = 0xC020_5300
SNP_GET_EXT_REPORT: Final = 0xC020_5302

_REQUEST = Struct("<B7xQQQ")  # snp_guest_request_ioctl: msg_version, req_data, resp_data, exitinfo2
_EXT_REPORT = Struct("<64sI28xQI4x")  # snp_ext_report_req: user_data, vmpl, certs_address, certs_len
_RESPONSE_HEADER = Struct("<II24x")  # MSG_REPORT_RSP: STATUS, REPORT_SIZE
_RESPONSE_BYTES = 4000  # snp_report_resp
_CERTS_BYTES = 0x4000  # SEV_FW_BLOB_MAX_SIZE
_MAX_CERTS_BYTES = 0x4_0000
_PAGE_BYTES = 0x1000

_VMM_INVALID_LEN = 1
_VMM_BUSY = 2
_VMM_ERRORS: Final = {_VMM_INVALID_LEN: "room for certificates too small", _VMM_BUSY: "throttled"}
_NO_WORD = 0xFF  # what driver and we begin with: neither firmware nor hypervisor has said what is wrong
_FIRMWARE_ERRORS: Final = {  # AMD 56860, table "Status Codes"; those that a guest can meet
    0x02: "INVALID_GUEST_STATE",
    0x10: "INVALID_GUEST",
    0x15: "UNSUPPORTED",
    0x16: "INVALID_PARAM",
    0x17: "RESOURCE_LIMIT",
    0x1D: "AEAD_OFLOW",
    0x27: "INVALID_KEY",
}

Ioctl = Callable[[int, int, bytearray], int]
"""ioctl(2) on a descriptor; the buffer is read and written in place, also where OSError is raised."""


class _NoCertificatesError(Exception):
    """The report did not come with certificates; `wanted` bytes of room would change that, 0 where none would."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.wanted = wanted


class SevGuestSource:
    """Evidence through /dev/sev-guest, for VMPL 0.

    Args:
        device: the driver's device file.
        patience: how long to try while the host throttles.
        ioctl: for tests.

    Raises:
        EvidenceSourceError: the device cannot be opened.
    """

    tee: Literal["sev-snp"] = "sev-snp"

    def __init__(
        self, device: Path = DEFAULT_DEVICE, *, patience: Patience | None = None, ioctl: Ioctl | None = None
    ) -> None:
        self._device = device
        self._patience = patience or Patience()
        self._ioctl: Ioctl = ioctl or fcntl.ioctl
        os.close(self._open())

    def __repr__(self) -> str:
        return f"<SevGuestSource at {self._device}>"

    def collect(self, report_data: bytes) -> CollectedEvidence:
        """Have the firmware sign `report_data`; see `EvidenceSource`."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"REPORT_DATA is {len(report_data)} bytes, want {REPORT_DATA_BYTES}")
        return self._patience.until_done(lambda: self._collect(report_data))

    def _collect(self, report_data: bytes) -> CollectedEvidence:
        descriptor = self._open()
        try:
            response, table = self._report_with_certificates(descriptor, report_data)
        finally:
            os.close(descriptor)
        return CollectedEvidence(
            tee=self.tee,
            parts={"snp_report": _report_of(response, report_data)},
            certificates=certificates_of(table),
        )

    def _report_with_certificates(self, descriptor: int, report_data: bytes) -> tuple[bytes, bytes]:
        """Return the firmware's response and the certificate table, which is empty where it cannot be had."""
        room = _CERTS_BYTES
        while True:
            table = bytearray(room)
            try:
                response = self._request(descriptor, SNP_GET_EXT_REPORT, report_data, table)  # (1)
            except _NoCertificatesError as error:
                if not room < error.wanted <= _MAX_CERTS_BYTES:
                    return self._request(descriptor, SNP_GET_REPORT, report_data, bytearray()), b""  # (3)
                room = -(-error.wanted // _PAGE_BYTES) * _PAGE_BYTES  # (2)
            else:
                return response, bytes(table)

    def _request(self, descriptor: int, command: int, report_data: bytes, table: bytearray) -> bytes:
        """Make one request, which fills `table`, and return the firmware's response."""
        response = ctypes.create_string_buffer(_RESPONSE_BYTES)
        certificates = (ctypes.c_char * len(table)).from_buffer(table)
        request = ctypes.create_string_buffer(
            _EXT_REPORT.pack(report_data, 0, ctypes.addressof(certificates) if table else 0, len(table)),
            _EXT_REPORT.size,
        )
        argument = bytearray(_REQUEST.pack(1, ctypes.addressof(request), ctypes.addressof(response), _NO_WORD))
        try:
            self._ioctl(descriptor, command, argument)
        except OSError as error:
            exitinfo2: int = _REQUEST.unpack(argument)[3]
            if command == SNP_GET_EXT_REPORT and exitinfo2 >> 32 == _VMM_INVALID_LEN:
                raise _NoCertificatesError(wanted=_EXT_REPORT.unpack(request.raw)[3]) from error
            if command == SNP_GET_EXT_REPORT and exitinfo2 == _NO_WORD and error.errno == errno.EINVAL:
                raise _NoCertificatesError(wanted=0) from error
            raise self._explain(error, exitinfo2) from error
        return response.raw

    def _open(self) -> int:
        try:
            return os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise EvidenceSourceError(
                SourceCode.UNAVAILABLE,
                f"{self._device} is not there: load the module sev-guest in a guest that SEV-SNP protects; a container "
                "needs the device handed in",
            ) from error
        except OSError as error:
            raise EvidenceSourceError(
                SourceCode.UNAVAILABLE,
                f"{self._device}: {error.strerror}: run this process as root, or give the device to its group",
            ) from error

    def _explain(self, error: OSError, exitinfo2: int) -> EvidenceSourceError:
        what = f"{self._device}: {os.strerror(error.errno or 0)}"
        if exitinfo2 != _NO_WORD:
            firmware, hypervisor = exitinfo2 & 0xFFFF_FFFF, exitinfo2 >> 32
            what += (
                f", firmware {firmware:#x} ({_FIRMWARE_ERRORS.get(firmware, 'no error' if not firmware else 'unknown')}"
                f"), hypervisor {hypervisor:#x} ({_VMM_ERRORS.get(hypervisor, 'no error' if not hypervisor else '?')})"
            )
        if exitinfo2 >> 32 == _VMM_BUSY or error.errno in (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT):
            return EvidenceSourceError(SourceCode.BUSY, f"{what}: the host throttles requests to the firmware")
        if error.errno == errno.ENOTTY:
            return EvidenceSourceError(
                SourceCode.FAILED,
                f"{what}: the guest's key to the firmware was given up after an earlier error, or the kernel is older "
                "than 5.19: see its log and restart the VM",
            )
        return EvidenceSourceError(SourceCode.FAILED, f"{what}: see the kernel's log")


def _report_of(response: bytes, report_data: bytes) -> bytes:
    """Return the report out of a response of the firmware.  (4)."""
    status, size = _RESPONSE_HEADER.unpack_from(response)
    report = response[_RESPONSE_HEADER.size : _RESPONSE_HEADER.size + size]
    if status != 0:
        raise EvidenceSourceError(
            SourceCode.FAILED, f"firmware refuses a report: {status:#x} ({_FIRMWARE_ERRORS.get(status, 'unknown')})"
        )
    if len(report) != size or report_data not in report:
        raise EvidenceSourceError(
            SourceCode.FAILED, f"firmware answers {size} bytes that are no report with the REPORT_DATA asked for"
        )
    return report
