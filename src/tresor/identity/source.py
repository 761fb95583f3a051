"""How this process gets evidence about itself: what every source promises (docs/spec/attestation.md, 6.5).

TresorError
└── EvidenceSourceError          this machine gave no evidence; `code` says of which kind the reason is

One implementation per way to the hardware stands in `tresor.identity.sources`; `sources.detect` chooses among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, Protocol

from tresor.attestation.blocks import Tee
from tresor.errors import TresorError

__all__ = [
    "REPORT_DATA_BYTES",
    "CollectedEvidence",
    "EvidencePart",
    "EvidenceSource",
    "EvidenceSourceError",
    "SourceCode",
]

REPORT_DATA_BYTES: Final = 64

EvidencePart = Literal["snp_report", "tdx_quote", "tpm_quote", "hcl_report"]
"""Evidence by the name it has in the envelope, where `_b64` follows it (contract section 6).

`snp_report` and `tdx_quote` are as the hardware made them, `hcl_report` as the paravisor did.  `tpm_quote` is JSON:
`{"message": TPMS_ATTEST, "signature": RSASSA signature, "pcrs": [24 values of the SHA-256 bank]}`, all hexadecimal.
"""


class SourceCode(StrEnum):
    """Of which kind the reason is."""

    UNAVAILABLE = "source_unavailable"
    """The interface is not there, or not for this process: an operator has to change something."""
    BUSY = "source_busy"
    """The hardware, or what stands before it, did not answer in time: it may on another try."""
    INTERFERED = "source_interfered"
    """Another process wrote into our requests, each time they were made."""
    FAILED = "source_failed"
    """The interface is there and refuses, or answers what it should not."""


class EvidenceSourceError(TresorError):
    """This machine gave no evidence.  The message says what was tried and what an operator can do."""

    def __init__(self, code: SourceCode, message: str) -> None:
        super().__init__(message)
        self.code: SourceCode = code


@dataclass(frozen=True, slots=True)
class CollectedEvidence:
    """Evidence that binds one REPORT_DATA, as the hardware gave it: unverified.

    Attributes:
        tee: what made it.
        parts: bytes by their name in the envelope.
        certificates: DER certificates that came with it (VCEK or VLEK, ASK, ARK), of unknown worth and in no order;
            empty where the host hands out none.
    """

    tee: Tee
    parts: Mapping[EvidencePart, bytes]
    certificates: tuple[bytes, ...] = ()


class EvidenceSource(Protocol):
    """A way to evidence about the machine that this process runs in.

    `collect` blocks: at most for its patience and, where a call into the kernel has begun, until that returns (a
    minute for the SNP driver, half a minute for the TDX driver).  It is not to be called by two threads at a time.
    Nothing is kept on the machine between two calls.
    """

    @property
    def tee(self) -> Tee:
        """What makes the evidence; the same for the life of the source."""
        ...

    def collect(self, report_data: bytes) -> CollectedEvidence:
        """Have the hardware sign `report_data`, which is 64 bytes.

        The evidence is not verified, but is known to hold `report_data`, or for a vTPM its SHA-384.

        Raises:
            EvidenceSourceError: there is none.
        """
        ...
