"""TPM 2.0 quotes: bytes to fields (docs/spec/attestation.md, 5.4.2).

Implements TPMS_ATTEST with TPMS_QUOTE_INFO, TPML_PCR_SELECTION, and TPMT_SIGNATURE for RSA, of TCG's "TPM 2.0 Library,
Part 2: Structures", sections 10 and 11.  All integers are big-endian.  A structure is read strictly: each size must
fit, nothing may follow.  Nothing here is verified.
"""

from dataclasses import dataclass
from typing import Final, Literal

from cryptography.hazmat.primitives import hashes

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError

__all__ = ["ALG_SHA256", "PCRS", "PcrSelection", "TpmQuote", "TpmSignature", "parse_quote", "parse_signature"]

PCRS: Final = range(24)
"""The registers of a PC's TPM."""

ALG_SHA256: Final = 0x000B
_ALG_RSASSA: Final = 0x0014
_ALG_RSAPSS: Final = 0x0016
_SCHEMES: Final[dict[int, Literal["rsassa", "rsapss"]]] = {_ALG_RSASSA: "rsassa", _ALG_RSAPSS: "rsapss"}
_SIGNED_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {ALG_SHA256: hashes.SHA256(), 0x000C: hashes.SHA384()}
_BANK_BYTES: Final = {0x0004: 20, ALG_SHA256: 32, 0x000C: 48, 0x000D: 64}  # SHA-1 to SHA-512
_GENERATED: Final = 0xFF544347  # TPM_GENERATED_VALUE: what the TPM made itself, and was not handed to be signed
_ST_ATTEST_QUOTE: Final = 0x8018
_MAX_BANKS: Final = 16  # TPM2_NUM_PCR_BANKS
_SELECT_BYTES: Final = len(PCRS) // 8
_MAX_NAME_BYTES: Final = 2 + 64  # algorithm and digest
_MAX_DATA_BYTES: Final = 2 + 64  # TPM2B_DATA is as long as a TPMT_HA


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """Registers of one bank; `digest_bytes` is the size of each."""

    algorithm: int
    digest_bytes: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TpmQuote:
    """A TPMS_ATTEST of type quote.

    Attributes:
        signed: the structure as received: what the signature covers.
        extra_data: the qualifying data that the quote was asked for with.
        clock: milliseconds that the TPM has run.
        reset_count: how often the machine was reset.
        restart_count: how often it was resumed.
        selections: which registers were quoted; banks of which none was are left out.
        pcr_digest: digest of their values, one behind the other.
    """

    signed: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True)
class TpmSignature:
    """An RSA signature: scheme, digest, and the signature itself, as long as the modulus."""

    scheme: Literal["rsassa", "rsapss"]
    digest: hashes.HashAlgorithm
    signature: bytes


class _Reader:
    """Takes bytes from the front, and refuses to take what is not there."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise _malformed(f"{self._what} of {len(self._data)} bytes ends early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self, at_most: int) -> bytes:
        """A TPM2B: two bytes of size, then so many."""
        size = self.number(2)
        if size > at_most:
            raise _malformed(f"{self._what} holds a buffer of {size} bytes, want at most {at_most}")
        return self.take(size)

    def end(self) -> None:
        if self._at != len(self._data):
            raise _malformed(f"{self._what} has {len(self._data) - self._at} bytes behind its last field")


def parse_quote(data: bytes) -> TpmQuote:
    """Parse a TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE.

    Raises:
        EvidenceMalformedError: not made by the TPM itself, another type, a bank of an unknown digest, registers beyond
            23, or a length that contradicts another.
    """
    reader = _Reader(data, "TPMS_ATTEST")
    magic, kind = reader.number(4), reader.number(2)
    if magic != _GENERATED:
        raise _malformed(f"magic of TPMS_ATTEST is {magic:#x}, want {_GENERATED:#x}")
    if kind != _ST_ATTEST_QUOTE:
        raise _malformed(
            f"TPMS_ATTEST is of type {kind:#x}, want {_ST_ATTEST_QUOTE:#x} (quote)",
            AttestationCode.EVIDENCE_KIND_MISMATCH,
        )
    reader.sized(_MAX_NAME_BYTES)  # qualifiedSigner: tells the key by the hierarchy it was made in, unknown here
    extra_data = reader.sized(_MAX_DATA_BYTES)
    clock, reset_count, restart_count = reader.number(8), reader.number(4), reader.number(4)
    if (safe := reader.number(1)) > 1:
        raise _malformed(f"TPMI_YES_NO is {safe}")
    reader.number(8)  # firmwareVersion
    banks = reader.number(4)
    if banks > _MAX_BANKS:
        raise _malformed(f"TPML_PCR_SELECTION has {banks} banks, want at most {_MAX_BANKS}")
    selections = tuple(_selection(reader) for _ in range(banks))
    if len({selection.algorithm for selection in selections}) != banks:
        raise _malformed("a bank is selected twice")
    pcr_digest = reader.sized(_MAX_NAME_BYTES)
    reader.end()
    quoted = tuple(selection for selection in selections if selection.indices)
    return TpmQuote(data, extra_data, clock, reset_count, restart_count, quoted, pcr_digest)


def _selection(reader: _Reader) -> PcrSelection:
    algorithm, size = reader.number(2), reader.number(1)
    if algorithm not in _BANK_BYTES:
        raise _malformed(f"bank of the unknown digest {algorithm:#x}", AttestationCode.ALGORITHM_NOT_ALLOWED)
    if size > _SELECT_BYTES:
        raise _malformed(f"TPMS_PCR_SELECTION has {size} bytes of registers, want at most {_SELECT_BYTES}")
    mask = int.from_bytes(reader.take(size), "little")
    return PcrSelection(algorithm, _BANK_BYTES[algorithm], tuple(index for index in PCRS if mask >> index & 1))


def parse_signature(data: bytes, *, modulus_bytes: int) -> TpmSignature:
    """Parse a TPMT_SIGNATURE, or a bare RSASSA-PKCS1-v1_5 signature with SHA-256, told apart by their lengths.

    Raises:
        EvidenceMalformedError: neither, or another scheme or digest.
    """
    if len(data) == modulus_bytes:
        return TpmSignature("rsassa", hashes.SHA256(), data)
    reader = _Reader(data, "TPMT_SIGNATURE")
    algorithm, digest = reader.number(2), reader.number(2)
    if algorithm not in _SCHEMES or digest not in _SIGNED_HASHES:
        raise _malformed(
            f"signature scheme {algorithm:#x} with {digest:#x}, want RSASSA or RSAPSS with SHA-256 or SHA-384",
            AttestationCode.ALGORITHM_NOT_ALLOWED,
        )
    signature = reader.sized(modulus_bytes)
    reader.end()
    return TpmSignature(_SCHEMES[algorithm], _SIGNED_HASHES[digest], signature)


def _malformed(message: str, code: AttestationCode = AttestationCode.EVIDENCE_MALFORMED) -> EvidenceMalformedError:
    return EvidenceMalformedError(code, message)
