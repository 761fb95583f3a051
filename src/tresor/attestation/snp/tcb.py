"""TCB versions: eight security version numbers in eight bytes (AMD 56860, section 2.2, "TCB Version").

The eight bytes are no number: which part stands where depends on the product, and a platform is at least as new as a
floor only if each of its parts is.  As 64-bit integers {4, 0, 24, 219} exceeds {5, 0, 0, 0}.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError

__all__ = ["LAYOUTS", "TCB_BYTES", "Component", "Product", "Tcb"]

Product = Literal["Milan", "Genoa", "Turin"]
Component = Literal["fmc", "bl", "tee", "snp", "ucode"]

TCB_BYTES = 8

LAYOUTS: Final[Mapping[Product, Mapping[Component, int]]] = {
    "Milan": {"bl": 0, "tee": 1, "snp": 6, "ucode": 7},
    "Genoa": {"bl": 0, "tee": 1, "snp": 6, "ucode": 7},
    "Turin": {"fmc": 0, "bl": 1, "tee": 2, "snp": 3, "ucode": 7},
}
"""Product line to the byte at which each part stands; the bytes between are reserved."""


@dataclass(frozen=True, slots=True)
class Tcb:
    """A TCB version of one product line.

    Attributes:
        parts: security version numbers, each 0 to 255: boot loader of the secure processor (`bl`), its operating
            system (`tee`), SNP firmware (`snp`), CPU microcode (`ucode`); on Turin also the FMC's boot loader (`fmc`).
    """

    parts: Mapping[Component, int]

    @classmethod
    def parse(cls, raw: bytes, product: Product) -> Self:
        """Read the eight bytes of a report's field.

        Raises:
            EvidenceMalformedError: a reserved byte is not zero: not a TCB of this product.
        """
        layout = LAYOUTS[product]
        if any(byte for index, byte in enumerate(raw) if index not in layout.values()):
            raise EvidenceMalformedError(
                AttestationCode.RESERVED_NOT_ZERO,
                f"TCB version {raw.hex()} has reserved bytes that {product} leaves zero",
            )
        return cls({name: raw[index] for name, index in layout.items()})

    def encode(self, product: Product) -> bytes:
        """Return the eight bytes of a report's field."""
        by_index = {index: self.parts[name] for name, index in LAYOUTS[product].items()}
        return bytes(by_index.get(index, 0) for index in range(TCB_BYTES))

    def below(self, floor: Mapping[Component, int]) -> list[Component]:
        """Return the parts that are below `floor`; a part that this TCB does not have is below every floor."""
        return [name for name, want in floor.items() if self.parts.get(name, -1) < want]

    def __str__(self) -> str:
        return " ".join(f"{name}={number}" for name, number in self.parts.items())
