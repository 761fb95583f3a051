"""What is acceptable of Intel TDX evidence (docs/spec/attestation.md, 5.2.3 and 7)."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

__all__ = ["TD_ATTRIBUTES", "XFAM_BITS", "TdxPolicy"]

TD_ATTRIBUTES: Final = {
    "ICSSD": 16,
    "SERVTD_EXT": 17,
    "LASS": 27,
    "SEPT_VE_DISABLE": 28,
    "MIGRATABLE": 29,
    "PKS": 30,
    "KL": 31,
    "TPA": 62,
    "PERFMON": 63,
}
"""Bits of TDATTRIBUTES that a policy may allow (348551, table "TD attributes"); 0 to 7 make a domain debuggable."""

XFAM_BITS: Final = 0x0006_DBE7
"""State components that a domain may use on any processor so far: x87 to AVX-512, PT, PKRU, CET, UINTR, LBR, AMX."""

_Attribute = Literal["ICSSD", "SERVTD_EXT", "LASS", "SEPT_VE_DISABLE", "MIGRATABLE", "PKS", "KL", "TPA", "PERFMON"]
_Register = Literal["RTMR0", "RTMR1", "RTMR2", "RTMR3"]
_Status = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
]
_Svn = Annotated[int, Meta(ge=0, le=255)]
_Measurements = Annotated[
    tuple[Annotated[str, Meta(pattern=r"\A[0-9a-f]{96}\Z")], ...],
    Meta(max_length=1024),
]


class TdxPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for Intel TDX evidence; a domain in debug or profiling mode is refused under every one.

    Measurements are 96 lower-case hexadecimal digits.  A list holds a register once its `skip_` member is false; an
    empty list then allows nothing.  A platform that Intel has revoked, or whose TCB is below every level that Intel
    has published, is refused under every policy.

    Attributes:
        allowed_mrtds: initial memory: the virtual firmware.
        skip_mrtd: do not hold MRTD against anything.
        allowed_rtmrs: register to its values; each register named must hold one of them.
        skip_rtmrs: hold no register against anything.
        allowed_mrseams: TDX modules; Intel's TCB information judges them, too.
        skip_mrseam: leave the module to Intel's TCB information.
        allowed_mrconfigids: values of MRCONFIGID, in which dstack puts the hash of its compose document.
        skip_mrconfigid: do not hold MRCONFIGID against anything.
        allowed_mrowners: values of MROWNER.
        skip_mrowner: do not hold MROWNER against anything.
        allowed_mrownerconfigs: values of MROWNERCONFIG.
        skip_mrownerconfig: do not hold MROWNERCONFIG against anything.
        allowed_mrservicetds: service domains that may be bound besides none.
        allowed_attributes: bits of TDATTRIBUTES that may be set, by name.
        require_sept_ve_disable: the host must not be able to raise #VE in the domain by taking pages away: no kernel
            of today stands that.  Only a guest under a paravisor (Azure) does without.
        allowed_xfam: bits of XFAM that may be set; x87 and SSE always are.
        min_tee_tcb_svn: up to 16 components of TEE_TCB_SVN in the order of the wire; each is compared alone.
        allowed_tcb_statuses: statuses by Intel's collateral that are acceptable without further reason.
        allowed_advisories: advisories that are acceptable; a status all of whose advisories are allowed is so, too.
        min_tcb_evaluation_data_number: lowest number of the collateral that counts: an older one is a roll-back.
        allow_dynamic_platform: packages may be added to the platform after it was registered.
        allow_cached_keys: platform root keys may be cached by Intel's registration service.
        allow_smt: simultaneous multithreading may be on.
        require_event_log: evidence without an event log is undecided.
    """

    allowed_mrtds: _Measurements = ()
    skip_mrtd: bool = True
    allowed_rtmrs: dict[_Register, _Measurements] = {}
    skip_rtmrs: bool = True
    allowed_mrseams: _Measurements = ()
    skip_mrseam: bool = True
    allowed_mrconfigids: _Measurements = ()
    skip_mrconfigid: bool = True
    allowed_mrowners: _Measurements = ()
    skip_mrowner: bool = True
    allowed_mrownerconfigs: _Measurements = ()
    skip_mrownerconfig: bool = True
    allowed_mrservicetds: _Measurements = ()
    allowed_attributes: tuple[_Attribute, ...] = ("ICSSD", "LASS", "SEPT_VE_DISABLE", "PKS", "KL", "PERFMON")
    require_sept_ve_disable: bool = True
    allowed_xfam: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = XFAM_BITS
    min_tee_tcb_svn: Annotated[tuple[_Svn, ...], Meta(max_length=16)] = ()
    allowed_tcb_statuses: tuple[_Status, ...] = ("UpToDate",)
    allowed_advisories: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    min_tcb_evaluation_data_number: Annotated[int, Meta(ge=0)] = 0
    allow_dynamic_platform: bool = True
    allow_cached_keys: bool = True
    allow_smt: bool = True
    require_event_log: bool = False

    def __post_init__(self) -> None:
        for name in ("mrtd", "rtmrs", "mrseam", "mrconfigid", "mrowner", "mrownerconfig"):
            given = f"allowed_{name}" if name == "rtmrs" else f"allowed_{name}s"
            if getattr(self, given) and getattr(self, f"skip_{name}"):
                raise ValueError(f"{given} is given and skip_{name} is true: say skip_{name} = false to have it held")
