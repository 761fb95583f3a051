"""The ioctls of /dev/sev-guest as drivers/virt/coco/sev-guest/sev-guest.c of Linux has them, with host and firmware.

Reads and writes the caller's memory at the addresses that the request holds, as the kernel would.  Stands in for
fcntl.ioctl inside one process; /dev/null serves as the device, which another process cannot be given in this way.
"""

import ctypes
import errno
import os
from collections import deque
from dataclasses import dataclass, field
from struct import Struct

__all__ = ["EmulatedSevGuest"]

REQUEST = Struct("<B7xQQQ")
EXT_REPORT = Struct("<64sI28sQI4x")
SNP_GET_REPORT, SNP_GET_EXT_REPORT = 0xC0205300, 0xC0205302
BLOB_MAX = 0x4000
PAGE = 0x1000
RESPONSE_BYTES = 4000
VMM_INVALID_LEN, VMM_BUSY = 1 << 32, 2 << 32
INVALID_PARAM = 0x16


@dataclass
class EmulatedSevGuest:
    """Driver, host and firmware.

    Attributes:
        table: certificates that the host hands out.
        blob_max: most room for certificates that the driver takes.
        level: VMPL of the guest; firmware refuses reports for more privileged ones.
        errors: (errno, exitinfo2) of the next requests, in order.  The driver gives up its key behind each, unless
            exitinfo2 is 0xff, for then nothing was sent.
        status: of the firmware's response.
        size: REPORT_SIZE of the response.
        invalid_len_errno: EIO since Linux 6.3, ENOSPC before.
        extended: whether the driver knows SNP_GET_EXT_REPORT with room for certificates.
    """

    table: bytes = b""
    blob_max: int = BLOB_MAX
    level: int = 0
    errors: deque[tuple[int, int]] = field(default_factory=deque)
    status: int = 0
    size: int = 1184
    invalid_len_errno: int = errno.EIO
    extended: bool = True
    key_given_up: bool = False
    requests: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, descriptor: int, command: int, argument: bytearray) -> int:
        """ioctl(2): the argument is written back whether or not the call fails."""
        os.fstat(descriptor)
        version, request, response, _ = REQUEST.unpack(argument)
        number, exitinfo2 = self._run(command, version, request, response)
        if exitinfo2:
            argument[:] = REQUEST.pack(version, request, response, exitinfo2)
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    def _run(self, command: int, version: int, request: int, response: int) -> tuple[int, int]:
        if version == 0 or command not in (SNP_GET_REPORT, SNP_GET_EXT_REPORT):
            return errno.EINVAL if version == 0 else errno.ENOTTY, 0xFF
        user_data, vmpl, reserved, certs_address, certs_len = EXT_REPORT.unpack(ctypes.string_at(request, 112))
        assert not any(reserved)
        if command == SNP_GET_REPORT:
            certs_address = certs_len = 0
        self.requests.append((command, certs_len))
        if certs_len and (certs_len > self.blob_max or certs_len % PAGE or not self.extended):
            return errno.EINVAL, 0xFF
        if self.key_given_up:
            return errno.ENOTTY, 0xFF
        if self.errors:
            number, exitinfo2 = self.errors.popleft()
            self.key_given_up = exitinfo2 not in (0xFF, VMM_BUSY)
            return number, exitinfo2
        if command == SNP_GET_EXT_REPORT and len(self.table) > certs_len:
            wanted = -(-len(self.table) // PAGE) * PAGE
            ctypes.memmove(request, EXT_REPORT.pack(user_data, vmpl, reserved, certs_address, wanted), 112)
            return self.invalid_len_errno, VMM_INVALID_LEN
        if certs_len:
            ctypes.memmove(certs_address, self.table.ljust(certs_len, b"\0"), certs_len)
        ctypes.memmove(response, self._response(user_data, vmpl), RESPONSE_BYTES)
        return 0, 0

    def _response(self, user_data: bytes, vmpl: int) -> bytes:
        status = self.status or (INVALID_PARAM if vmpl < self.level else 0)
        report = bytearray(1184)
        report[0x50:0x90] = user_data
        answer = (
            status.to_bytes(4, "little") + self.size.to_bytes(4, "little") + bytes(24) + (b"" if status else report)
        )
        return answer.ljust(RESPONSE_BYTES, b"\0")
