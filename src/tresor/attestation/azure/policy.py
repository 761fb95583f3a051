"""What is acceptable of Azure's vTPM (docs/spec/attestation.md, 5.4.5 and 7)."""

from typing import Annotated

import msgspec
from msgspec import Meta

from tresor.attestation.azure.tpm import PCRS

__all__ = ["AzurePolicy"]

_Index = Annotated[str, Meta(pattern=r"\A([0-9]|1[0-9]|2[0-3])\Z")]
_Register = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class AzurePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for the vTPM of an Azure confidential VM; `SnpPolicy` and `TdxPolicy` hold for the hardware beneath it.

    Whether a quote is that of Microsoft's vTPM is decided by MEASUREMENT or MRTD: only where those are held do the
    registers show a workload.

    Attributes:
        allowed_pcrs: index of a register of the SHA-256 bank, in decimal, to the values allowed for it, lower-case
            hexadecimal; each register named must be quoted and hold one of them.
        skip_pcrs: hold no register against anything: then the workload is not shown.
        required_pcrs: registers that must be quoted besides those; 0 to 7 are those of the firmware and its loader.
        require_secure_boot: UEFI Secure Boot must be on.
    """

    allowed_pcrs: dict[_Index, Annotated[tuple[_Register, ...], Meta(max_length=1024)]] = {}
    skip_pcrs: bool = True
    required_pcrs: Annotated[
        tuple[Annotated[int, Meta(ge=PCRS.start, lt=PCRS.stop)], ...], Meta(max_length=len(PCRS))
    ] = tuple(range(8))
    require_secure_boot: bool = True

    def __post_init__(self) -> None:
        if self.allowed_pcrs and self.skip_pcrs:
            raise ValueError("allowed_pcrs is given and skip_pcrs is true: say skip_pcrs = false to have it held")
