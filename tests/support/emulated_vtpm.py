"""The vTPM of an Azure confidential VM, as far as evidence goes: four commands, behind a UNIX socket.

Follows "TPM 2.0 Library" revision 1.59, parts 2 and 3; its quotes are signed for real, by a key made here.  What it
does not do: other commands, authorisation by anything but an empty password, sessions.  swtpm does all that; this one
needs nothing installed, and can be told to misbehave.
"""

import contextlib
import hashlib
import os
import socketserver
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from struct import Struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

__all__ = ["EmulatedVtpm", "hcl_report", "served", "vtpm_key"]

HEADER = Struct(">HII")
NO_SESSIONS, SESSIONS = 0x8001, 0x8002
PASSWORD = bytes.fromhex("00000009 40000009 0000 00 0000".replace(" ", ""))
NV_READ, QUOTE, NV_READ_PUBLIC, PCR_READ = 0x14E, 0x158, 0x169, 0x17E
OWNER, HCL_INDEX, AK = 0x4000_0001, 0x0140_0001, 0x8100_0003
RC_HANDLE, RC_COMMAND_CODE, RC_NV_RANGE, RC_AUTH = 0x18B, 0x143, 0x146, 0x98E
OWNER_READ, AUTH_READ = 1 << 17, 1 << 18
MAX_DIGESTS = 8


@cache
def vtpm_key() -> rsa.RSAPrivateKey:
    """The attestation key: one for the test run, for making one is slow."""
    return rsa.generate_private_key(65537, 2048)


def hcl_report(kind: int, hardware_report: bytes, runtime_data: bytes = b"{}") -> bytes:
    """Make an HCL report: kind 2 for SEV-SNP, 4 for TDX.  REPORT_DATA becomes the hash of the runtime data."""
    hardware = bytearray(hardware_report.ljust(1184, b"\0"))
    at = {2: 0x50, 4: 128}.get(kind, 0)
    hardware[at : at + 32] = hashlib.sha256(runtime_data).digest()
    request = Struct("<IIIII").pack(20 + len(runtime_data), 1, kind, 1, len(runtime_data)) + runtime_data
    header = b"HCLA" + Struct("<IIII12x").pack(2, 32 + 1184 + len(request), 2, 0)
    return header + hardware + request


@dataclass
class EmulatedVtpm:
    """The TPM.

    Attributes:
        report: what NV index 0x01400001 holds; None where there is no such index.
        attributes: of that index.
        pcrs: SHA-256 bank.
        codes: response codes of the next commands, in order; 0 lets one pass.
        extend_after_quote: for how many quotes a PCR changes behind them.
        owner_password: whether the owner has one, so that an empty one is refused.
        commands: codes of all that came.
    """

    report: bytes | None
    attributes: int = OWNER_READ | AUTH_READ
    key: rsa.RSAPrivateKey = field(default_factory=vtpm_key)
    pcrs: list[bytes] = field(default_factory=lambda: [bytes([index]) * 32 for index in range(24)])
    codes: deque[int] = field(default_factory=deque)
    extend_after_quote: int = 0
    owner_password: bool = False
    commands: list[int] = field(default_factory=list)

    def __call__(self, command: bytes) -> bytes:
        """Answer one command."""
        tag, size, code = HEADER.unpack_from(command)
        assert size == len(command)
        self.commands.append(code)
        if self.codes and (refused := self.codes.popleft()):
            return HEADER.pack(NO_SESSIONS, HEADER.size, refused)
        body = command[HEADER.size :]
        match code:
            case 0x169:
                answer = self._nv_read_public(body)
            case 0x14E:
                answer = self._nv_read(body)
            case 0x17E:
                answer = self._pcr_read(body)
            case 0x158:
                answer = self._quote(body)
            case _:
                answer = RC_COMMAND_CODE
        if isinstance(answer, int):
            return HEADER.pack(NO_SESSIONS, HEADER.size, answer)
        if tag == SESSIONS:
            answer = len(answer).to_bytes(4, "big") + answer + bytes.fromhex("0000010000")
        return HEADER.pack(tag, HEADER.size + len(answer), 0) + answer

    def _nv_read_public(self, body: bytes) -> bytes | int:
        if self.report is None or body != HCL_INDEX.to_bytes(4, "big"):
            return RC_HANDLE
        public = Struct(">IHIHH").pack(HCL_INDEX, 0x000B, self.attributes, 0, len(self.report))
        return _sized(public) + _sized(b"\x00\x0b" + hashlib.sha256(public).digest())

    def _nv_read(self, body: bytes) -> bytes | int:
        authorisation, index = Struct(">II").unpack_from(body)
        assert body[8 : 8 + len(PASSWORD)] == PASSWORD
        size, offset = Struct(">HH").unpack(body[8 + len(PASSWORD) :])
        if self.report is None or index != HCL_INDEX:
            return RC_HANDLE
        allowed = self.attributes & (OWNER_READ if authorisation == OWNER else AUTH_READ)
        if not allowed or (authorisation == OWNER and self.owner_password):
            return RC_AUTH
        if offset + size > len(self.report):
            return RC_NV_RANGE
        return _sized(self.report[offset : offset + size])

    def _pcr_read(self, body: bytes) -> bytes | int:
        read = _selected(body)[:MAX_DIGESTS]
        digests = len(read).to_bytes(4, "big") + b"".join(_sized(self.pcrs[index]) for index in read)
        return bytes(4) + _selection(read) + digests

    def _quote(self, body: bytes) -> bytes | int:
        if body[:4] != AK.to_bytes(4, "big"):
            return RC_HANDLE
        assert body[4 : 4 + len(PASSWORD)] == PASSWORD
        rest = body[4 + len(PASSWORD) :]
        size = int.from_bytes(rest[:2], "big")
        qualifying_data, scheme, selection = rest[2 : 2 + size], rest[2 + size : 4 + size], rest[4 + size :]
        assert scheme == b"\x00\x10"
        digest = hashlib.sha256(b"".join(self.pcrs[index] for index in _selected(selection))).digest()
        message = b"\xffTCG\x80\x18" + _sized(b"\x00\x0b" + bytes(32)) + _sized(qualifying_data)
        message += bytes(17) + bytes(8) + selection + _sized(digest)
        if self.extend_after_quote:
            self.extend_after_quote -= 1
            self.pcrs[10] = os.urandom(32)
        signature = self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return _sized(message) + b"\x00\x14\x00\x0b" + _sized(signature)


@contextlib.contextmanager
def served(tpm: EmulatedVtpm, path: Path) -> Iterator[Path]:
    """Serve a TPM on a UNIX socket, one connection after the other."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while command := self.request.recv(4096):
                self.request.sendall(tpm(command))

    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join()


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _selected(selection: bytes) -> list[int]:
    assert selection[:7] == bytes.fromhex("00000001000b03")
    mask = int.from_bytes(selection[7:10], "little")
    return [index for index in range(24) if mask >> index & 1]


def _selection(indices: list[int]) -> bytes:
    mask = sum(1 << index for index in indices)
    return bytes.fromhex("00000001000b03") + mask.to_bytes(3, "little")
