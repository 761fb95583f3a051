"""What is acceptable of NVIDIA evidence (docs/spec/attestation.md, 7)."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["NvidiaPolicy"]

_DriverVersion = Annotated[str, Meta(pattern=r"\A[0-9]{1,5}(\.[0-9]{1,5}){1,3}\Z")]
_VbiosVersion = Annotated[str, Meta(pattern=r"\A[0-9A-F]{2}(\.[0-9A-F]{2}){4}\Z")]
_Architecture = Literal["HOPPER", "BLACKWELL", "LS10"]


class NvidiaPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for NVIDIA GPUs and NVSwitches, and for the tokens of NVIDIA's remote verifier.

    Attributes:
        architectures: families that are allowed; `LS10` is the NVSwitch of Hopper machines.
        gpu_count: how many GPUs there must be, no fewer and no more; None leaves their number open.
        min_driver_version: lowest driver, such as `570.86.15`, compared number by number; None sets no floor.
        min_vbios_version: lowest GPU VBIOS, such as `96.00.9F.00.01`, compared pair by pair; None sets no floor.
        allow_protected_pcie: accept GPUs in protected PCIe mode, in which NVLink between them is not encrypted.
        refuse_public_nonce: refuse the nonce that NVIDIA publishes in its examples also where no nonce is expected.
        require_rims: every measurement must have been held against NVIDIA's driver and VBIOS manifests.
        require_revocation: every certificate between leaf and root, the manifests' included, needs a fresh answer
            `good`.
    """

    architectures: Annotated[tuple[_Architecture, ...], Meta(max_length=16)] = ("HOPPER", "BLACKWELL", "LS10")
    gpu_count: Annotated[int, Meta(ge=1, le=64)] | None = None
    min_driver_version: _DriverVersion | None = None
    min_vbios_version: _VbiosVersion | None = None
    allow_protected_pcie: bool = True
    refuse_public_nonce: bool = False
    require_rims: bool = False
    require_revocation: bool = False
