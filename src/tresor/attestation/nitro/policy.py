"""What is acceptable of AWS Nitro evidence (docs/spec/attestation.md, 7)."""

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["NitroPolicy"]

_Index = Annotated[str, Meta(pattern=r"\A([0-9]|[12][0-9]|3[01])\Z")]
_Register = Annotated[str, Meta(pattern=r"\A[0-9a-f]{96}\Z")]


class NitroPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for AWS Nitro evidence; an enclave in debug mode is refused under every one.

    Attributes:
        allowed_pcrs: index of a register, in decimal, to the values allowed for it, lower-case hexadecimal; each
            register named must be there and hold one of them.
        skip_pcrs: hold no register against anything: then the workload is not shown.
    """

    allowed_pcrs: dict[_Index, Annotated[tuple[_Register, ...], Meta(max_length=1024)]] = {}
    skip_pcrs: bool = True

    def __post_init__(self) -> None:
        if self.allowed_pcrs and self.skip_pcrs:
            raise ValueError("allowed_pcrs is given and skip_pcrs is true: say skip_pcrs = false to have it held")
