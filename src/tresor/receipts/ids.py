"""Receipt ids: UUIDs of version 7 (RFC 9562 section 5.7).

The time in front lets the store append to its index; the 74 random bits behind it make an id impossible to guess.
Random bytes are taken from the kernel in batches: a system call per receipt costs more than its hashes.
"""

import os
import time
from collections.abc import Iterator
from typing import Final

__all__ = ["new_receipt_id"]

_RANDOM_BYTES: Final = 10
_BATCH: Final = 128
_VERSION_7: Final = 0x7 << 76
_VARIANT: Final = 0x2 << 62
_RANDOM_MASK: Final = (0xFFF << 64) | ((1 << 62) - 1)


def _random_numbers() -> Iterator[int]:
    while True:
        batch = os.urandom(_RANDOM_BYTES * _BATCH)
        for at in range(0, len(batch), _RANDOM_BYTES):
            yield int.from_bytes(batch[at : at + _RANDOM_BYTES], "big")


_numbers = _random_numbers()


def new_receipt_id() -> str:
    """Return a new id; a process that forks after the first one must not share it with its child."""
    milliseconds = time.time_ns() // 1_000_000
    digits = f"{(milliseconds << 80) | _VERSION_7 | _VARIANT | (next(_numbers) & _RANDOM_MASK):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
