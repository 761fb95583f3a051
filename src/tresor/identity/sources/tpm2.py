"""The four TPM 2.0 commands that evidence from a vTPM takes, over /dev/tpmrm0.

Implements, from TCG's "TPM 2.0 Library", revision 1.59: the framing of commands and responses (part 1, section 18),
password sessions with an empty password (part 1, section 19.4), and TPM2_NV_ReadPublic, TPM2_NV_Read, TPM2_PCR_Read and
TPM2_Quote (part 3).  All integers are big-endian.  A response is read strictly: each size must fit, nothing may follow.

Sessions with a key are left out.  Their HMAC would guard against somebody between this process and the TPM, which is
the paravisor of the same guest; and what counts is signed.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final, Self

from tresor.identity.source import EvidenceSourceError, SourceCode

__all__ = ["RC_HANDLE", "NvPublic", "Quote", "Tpm2", "TpmDevice", "TpmRefusedError", "Transmit"]

Transmit = Callable[[bytes], bytes]
"""Send one command, return its response.  Raises OSError."""

_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_NV_READ, _QUOTE, _NV_READ_PUBLIC, _PCR_READ = 0x14E, 0x158, 0x169, 0x17E
_RH_OWNER = 0x4000_0001
_RS_PW = 0x4000_0009
_ALG_SHA256, _ALG_NULL, _ALG_RSASSA = 0x000B, 0x0010, 0x0014

_AUTH_READ = 1 << 18  # TPMA_NV_AUTHREAD
RC_HANDLE: Final = 0x08B

_HEADER = Struct(">HII")  # tag, size of all, command or response code
_EMPTY_PASSWORD = Struct(">IIHBH").pack(9, _RS_PW, 0, 0, 0)
_MAX_RESPONSE_BYTES = 4096  # TPM2_MAX_RESPONSE_SIZE; the kernel's buffer
_NV_CHUNK_BYTES = 512  # every TPM reads so much at once; many read more
_PCRS = range(24)
_RETRIED: Final = {
    0x902: "OBJECT_MEMORY",
    0x903: "SESSION_MEMORY",
    0x904: "MEMORY",
    0x908: "YIELDED",
    0x909: "CANCELED",
    0x90A: "TESTING",
    0x920: "NV_RATE",
    0x922: "RETRY",
    0x923: "NV_UNAVAILABLE",
}
_CODES: Final = _RETRIED | {
    RC_HANDLE: "HANDLE: there is no such object",
    0x082: "ATTRIBUTES",
    0x08E: "AUTH_FAIL",
    0x095: "SIZE",
    0x0A2: "BAD_AUTH",
    0x101: "FAILURE: the TPM is in failure mode",
    0x100: "INITIALIZE",
    0x120: "DISABLED",
    0x143: "COMMAND_CODE: the TPM does not know this command",
    0x146: "NV_RANGE",
    0x148: "NV_LOCKED",
    0x149: "NV_AUTHORIZATION",
    0x14A: "NV_UNINITIALIZED",
    0x921: "LOCKOUT",
}
_FORMAT_ONE = 0x080  # an error with a parameter, handle or session number in bits 6 and 8 to 11


class TpmRefusedError(EvidenceSourceError):
    """The TPM answered a command with a response code.

    Attributes:
        response_code: without the number of the parameter at fault and without the layer that added it.
    """

    def __init__(self, command: str, code: int) -> None:
        self.response_code = code & (0x0BF if code & _FORMAT_ONE else 0xFFF)
        super().__init__(
            SourceCode.BUSY if self.response_code in _RETRIED else SourceCode.FAILED,
            f"TPM refuses {command}: {code:#05x} ({_CODES.get(self.response_code, 'unknown')})",
        )


@dataclass(frozen=True, slots=True)
class NvPublic:
    """What TPM2_NV_ReadPublic tells: attributes (TPMA_NV), and the size of the data in bytes."""

    attributes: int
    size: int


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote.

    Attributes:
        message: TPMS_ATTEST, as signed.
        signature: RSASSA-PKCS1-v1_5 with SHA-256 over it.
    """

    message: bytes
    signature: bytes


class TpmDevice:
    """A TPM behind a device file or a stream socket; usable as `Transmit`.

    Args:
        descriptor: open for reading and writing; owned from now on.
        timeout_s: how long a command may take, in seconds.
    """

    def __init__(self, descriptor: int, *, timeout_s: float = 30.0) -> None:
        self._descriptor = descriptor
        self._timeout_s = timeout_s

    @classmethod
    def open(cls, path: Path, *, timeout_s: float = 30.0) -> Self:
        """Open a device file, such as /dev/tpmrm0, or connect to a UNIX socket.

        Raises:
            OSError: that fails.
        """
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout_s)
                connection.connect(str(path))
                return cls(connection.detach(), timeout_s=timeout_s)
        return cls(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), timeout_s=timeout_s)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def __call__(self, command: bytes) -> bytes:
        """Send a command and wait for its response.

        Raises:
            OSError: EPIPE where the TPM ends before its response does, ETIMEDOUT where it takes too long.
        """
        if os.write(self._descriptor, command) != len(command):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        response, end = b"", time.monotonic() + self._timeout_s
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        while len(response) < _HEADER.size or len(response) < min(_size_of(response), _MAX_RESPONSE_BYTES):
            if not ready.poll(max(0.0, end - time.monotonic()) * 1000):
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            chunk = os.read(self._descriptor, _MAX_RESPONSE_BYTES)
            if not chunk:
                raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
            response += chunk
        return response


class Tpm2:
    """The commands.

    Every method raises `EvidenceSourceError`: `TpmRefusedError` for a response code, busy where trying again may help.
    """

    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit

    def nv_read_public(self, index: int) -> NvPublic:
        """TPM2_NV_ReadPublic."""
        response = _Reader(self._execute("NV_ReadPublic", _NV_READ_PUBLIC, [index], b""))
        public = _Reader(response.sized())
        response.sized()  # the name of the index
        response.end()
        public.number(4)  # the index
        public.number(2)  # the algorithm of its name
        attributes = public.number(4)
        public.sized()  # its policy
        size = public.number(2)
        public.end()
        return NvPublic(attributes, size)

    def nv_read(self, index: int, public: NvPublic) -> bytes:
        """TPM2_NV_Read, in chunks, all of what `public` says is there."""
        authorisation = index if public.attributes & _AUTH_READ else _RH_OWNER
        data = b""
        while len(data) < public.size:
            want = min(public.size - len(data), _NV_CHUNK_BYTES)
            parameters = want.to_bytes(2, "big") + len(data).to_bytes(2, "big")
            response = _Reader(self._execute("NV_Read", _NV_READ, [authorisation, index], parameters, password=True))
            chunk = response.sized()
            response.end()
            if len(chunk) != want:
                raise _unreadable(f"{len(chunk)} bytes of NV index {index:#x}, want {want}")
            data += chunk
        return data

    def pcr_read(self) -> tuple[bytes, ...]:
        """TPM2_PCR_Read of the SHA-256 bank, PCR 0 to 23; they may change between two of its commands."""
        values: dict[int, bytes] = {}
        while len(values) < len(_PCRS):
            wanted = [index for index in _PCRS if index not in values]
            response = _Reader(self._execute("PCR_Read", _PCR_READ, [], _selection(wanted)))
            response.number(4)  # how often PCRs have changed
            read = response.selected()
            digests = [response.sized() for _ in range(response.number(4, at_most=8))]
            response.end()
            if not read or not set(read) <= set(wanted) or len(digests) != len(read):
                raise _unreadable(f"PCRs {read} of the SHA-256 bank, want {wanted}")
            values |= zip(read, digests, strict=True)
        return tuple(values[index] for index in _PCRS)

    def quote(self, key: int, qualifying_data: bytes) -> Quote:
        """TPM2_Quote of PCR 0 to 23 of the SHA-256 bank, with the key's own scheme, which must be RSASSA with SHA-256.

        Args:
            key: persistent handle of a restricted signing key with an empty password.
            qualifying_data: what the quote is to bind, at most 64 bytes.
        """
        parameters = len(qualifying_data).to_bytes(2, "big") + qualifying_data
        parameters += _ALG_NULL.to_bytes(2, "big") + _selection(_PCRS)
        response = _Reader(self._execute("Quote", _QUOTE, [key], parameters, password=True))
        message = response.sized()
        algorithm, digest = response.number(2), response.number(2)
        if (algorithm, digest) != (_ALG_RSASSA, _ALG_SHA256):
            raise _unreadable(f"signature scheme {algorithm:#x} with {digest:#x}, want RSASSA with SHA-256")
        signature = response.sized()
        response.end()
        return Quote(message, signature)

    def _execute(
        self, name: str, code: int, handles: Sequence[int], parameters: bytes, *, password: bool = False
    ) -> bytes:
        """Run one command; return the parameters of its response."""
        body = b"".join(handle.to_bytes(4, "big") for handle in handles)
        body += (_EMPTY_PASSWORD if password else b"") + parameters
        tag = _SESSIONS if password else _NO_SESSIONS
        try:
            raw = self._transmit(_HEADER.pack(tag, _HEADER.size + len(body), code) + body)
        except OSError as error:
            passing = error.errno in (errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT)
            raise EvidenceSourceError(
                SourceCode.BUSY if passing else SourceCode.FAILED, f"TPM does not answer {name}: {error.strerror}"
            ) from error
        response = _Reader(raw)
        got, size, response_code = response.number(2), response.number(4), response.number(4)
        if size != len(raw):
            raise _unreadable(f"a response of {len(raw)} bytes that says {size}")
        if response_code != 0:
            raise TpmRefusedError(name, response_code)
        if got != tag:
            raise _unreadable(f"a response with tag {got:#x}, want {tag:#x}")
        if not password:
            return response.rest()
        answer = response.take(response.number(4))
        response.sized()  # nonce
        response.number(1)  # attributes of the session
        response.sized()  # HMAC
        response.end()
        return answer


class _Reader:
    """Reads a structure front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise _unreadable(f"a structure of {len(self._data)} bytes that ends early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int, *, at_most: int | None = None) -> int:
        value = int.from_bytes(self.take(size), "big")
        if at_most is not None and value > at_most:
            raise _unreadable(f"a list of {value}, want at most {at_most}")
        return value

    def sized(self) -> bytes:
        """A TPM2B: two bytes of size, then so many."""
        return self.take(self.number(2))

    def selected(self) -> list[int]:
        """A TPML_PCR_SELECTION of the SHA-256 bank alone: which PCRs it selects."""
        if self.number(4) != 1 or self.number(2) != _ALG_SHA256:
            raise _unreadable("PCRs of other banks than SHA-256")
        mask = int.from_bytes(self.take(self.number(1, at_most=4)), "little")
        return [index for index in range(mask.bit_length()) if mask >> index & 1]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise _unreadable(f"{len(self._data) - self._at} bytes behind a structure")


def _selection(indices: Iterable[int]) -> bytes:
    """Encode a TPML_PCR_SELECTION of the SHA-256 bank."""
    mask = sum(1 << index for index in indices)
    return Struct(">IHB").pack(1, _ALG_SHA256, 3) + mask.to_bytes(3, "little")


def _size_of(response: bytes) -> int:
    size: int = _HEADER.unpack_from(response)[1]
    return size


def _unreadable(what: str) -> EvidenceSourceError:
    return EvidenceSourceError(SourceCode.FAILED, f"TPM answers what cannot be read: {what}")
