"""Keccak-256 as Ethereum uses it: the submission to the SHA-3 contest, whose padding FIPS 202 changed.

An Ethereum address is the last 20 bytes of this hash over a public key; `hashlib` has only the standard's padding.
For a few short messages per connection, not for bulk data.
"""

from typing import Final

__all__ = ["keccak_256"]

_RATE_BYTES: Final = 136
_MASK: Final = (1 << 64) - 1
_ROUND_CONSTANTS: Final = (
    0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000, 0x000000000000808B,
    0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008A, 0x0000000000000088,
    0x0000000080008009, 0x000000008000000A, 0x000000008000808B, 0x800000000000008B, 0x8000000000008089,
    0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
)  # fmt: skip
# FIPS 202, 3.2.2 and 3.2.3: lane x + 5y goes to y + 5(2x + 3y), turned by this many bits.
_ROTATIONS: Final = (
    0, 1, 62, 28, 27, 36, 44, 6, 55, 20, 3, 10, 43, 25, 39, 41, 45, 15, 21, 8, 18, 2, 61, 56, 14,
)  # fmt: skip


def keccak_256(message: bytes) -> bytes:
    """Return the 32 bytes of Keccak-256 of `message`."""
    return _sponge(message, 0x01)


def _sponge(message: bytes, suffix: int) -> bytes:
    """Return 32 bytes of the sponge of SHA3-256 (FIPS 202, 4), of which only `suffix` would be 6 in the standard."""
    padding = bytearray(_RATE_BYTES - len(message) % _RATE_BYTES)
    padding[0] |= suffix
    padding[-1] |= 0x80
    padded = message + bytes(padding)
    lanes = [0] * 25
    for start in range(0, len(padded), _RATE_BYTES):
        for lane in range(_RATE_BYTES // 8):
            at = start + 8 * lane
            lanes[lane] ^= int.from_bytes(padded[at : at + 8], "little")
        lanes = _permute(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[:4])


def _rotate(lane: int, bits: int) -> int:
    return ((lane << bits) | (lane >> (64 - bits))) & _MASK


def _permute(lanes: list[int]) -> list[int]:
    """Apply Keccak-f[1600] (FIPS 202, 3.3)."""
    for constant in _ROUND_CONSTANTS:
        columns = [lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20] for x in range(5)]
        mixed = [columns[x - 1] ^ _rotate(columns[(x + 1) % 5], 1) for x in range(5)]
        moved = [0] * 25
        for at in range(25):
            x, y = at % 5, at // 5
            moved[y + 5 * ((2 * x + 3 * y) % 5)] = _rotate(lanes[at] ^ mixed[x], _ROTATIONS[at])
        lanes = [
            moved[at] ^ (~moved[(at + 1) % 5 + at // 5 * 5] & moved[(at + 2) % 5 + at // 5 * 5]) for at in range(25)
        ]
        lanes[0] ^= constant
    return lanes
