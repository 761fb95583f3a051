"""What Intel's collateral says of a platform (docs/spec/attestation.md, 5.2.5).

Implements the TCB evaluation of Intel's "PCS API, version 4" ("Get TDX TCB Info", "Enclave Identity") as Intel's own
quote verification library does it: level of the platform, level of the TDX module, level of the quoting enclave, and
their convergence to one status.  dcap-qvl does the same a second time in `verify.py`, and the two must agree.

Collateral and quote must be genuine before they come here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError
from tresor.attestation.tdx.abi import QeReport, TdBody
from tresor.attestation.tdx.collateral import (
    IsvLevel,
    QeIdentity,
    TcbInfo,
    TcbLevel,
    TcbStatus,
    TdxCollateral,
    TdxModule,
    TdxModuleIdentity,
)
from tresor.attestation.tdx.pck import PckPlatform

__all__ = ["TcbVerdict", "check_module", "check_qe", "evaluate_tcb"]

_QE_DEBUG: Final = 0x02  # ATTRIBUTES.DEBUG of SGX

_OUT_OF_DATE: Final = {
    TcbStatus.UP_TO_DATE: TcbStatus.OUT_OF_DATE,
    TcbStatus.SW_HARDENING_NEEDED: TcbStatus.OUT_OF_DATE,
    TcbStatus.CONFIGURATION_NEEDED: TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
}
"""Status of a platform to its status with a component that is out of date; others stay what they are."""

_CONFIGURATION: Final = frozenset(status for status in TcbStatus if "Configuration" in status)


@dataclass(frozen=True, slots=True)
class TcbVerdict:
    """What the collateral says.

    Attributes:
        status: of platform, TDX module and quoting enclave together; `NotSupported` where one of them is below every
            level that Intel has published.
        advisories: of all levels that were matched, in the order met, each once.
        tcb_date: day of the oldest level matched: all weaknesses known then are dealt with; None where none matched.
    """

    status: TcbStatus
    advisories: tuple[str, ...] = ()
    tcb_date: datetime | None = None


_NOT_SUPPORTED: Final = TcbVerdict(TcbStatus.NOT_SUPPORTED)


def check_qe(report: QeReport, identity: QeIdentity) -> None:
    """Check that the enclave that signed is Intel's quoting enclave for trust domains.

    Without this any enclave on a genuine processor could have signed whatever it liked.

    Raises:
        EvidenceForgedError: it is another enclave, or one in debug mode.
    """
    mask = int.from_bytes(bytes.fromhex(identity.miscselect_mask), "little")
    got = {
        "MRSIGNER": report.mrsigner,
        "ISVPRODID": report.isvprodid,
        "MISCSELECT": report.miscselect & mask,
        "ATTRIBUTES": _masked(report.attributes, bytes.fromhex(identity.attributes_mask)),
        "DEBUG": report.attributes[0] & _QE_DEBUG,
    }
    want = {
        "MRSIGNER": bytes.fromhex(identity.mrsigner),
        "ISVPRODID": identity.isvprodid,
        "MISCSELECT": int.from_bytes(bytes.fromhex(identity.miscselect), "little") & mask,
        "ATTRIBUTES": _masked(bytes.fromhex(identity.attributes), bytes.fromhex(identity.attributes_mask)),
        "DEBUG": 0,
    }
    if wrong := [name for name, value in got.items() if value != want[name]]:
        raise EvidenceForgedError(
            AttestationCode.QE_IDENTITY_MISMATCH,
            f"{', '.join(wrong)} of the quoting enclave not as in Intel's QE identity",
        )


def check_module(body: TdBody, tcb_info: TcbInfo) -> None:
    """Check that Intel signed the TDX module, by its signer and attributes.

    Raises:
        EvidenceForgedError: another signer, or other attributes.
    """
    module: TdxModule = _module_identity(body.tee_tcb_svn, tcb_info) or tcb_info.tdx_module
    if body.mrsignerseam != bytes.fromhex(module.mrsigner):
        raise EvidenceForgedError(
            AttestationCode.SIGNER_NOT_ALLOWED, f"MRSIGNERSEAM is {body.mrsignerseam.hex()}, want {module.mrsigner}"
        )
    # Bits outside the mask must be zero: Intel's library asks nothing of them, dcap-qvl does.
    mask = bytes.fromhex(module.attributes_mask)
    if body.seamattributes != _masked(bytes.fromhex(module.attributes), mask):
        raise EvidenceForgedError(
            AttestationCode.ATTRIBUTES_NOT_ALLOWED,
            f"SEAMATTRIBUTES are {body.seamattributes.hex()}, want {module.attributes}",
        )


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(value, mask, strict=True))


def evaluate_tcb(body: TdBody, qe_report: QeReport, platform: PckPlatform, collateral: TdxCollateral) -> TcbVerdict:
    """Say what Intel's collateral says of a platform.

    Args:
        body: report on the domain, for the SVNs of the TDX module.
        qe_report: report on the quoting enclave.
        platform: content of the PCK certificate, for the SVNs of the processor.
        collateral: genuine collateral for its FMSPC.
    """
    qe_level = _isv_level(qe_report.isvsvn, collateral.qe_identity.tcb_levels)
    launch = _platform_levels(body.tee_tcb_svn, platform, collateral.tcb_info)
    if qe_level is None or launch is None:
        return _NOT_SUPPORTED
    levels = (*launch, qe_level)
    status = _converge(levels)
    if body.tee_tcb_svn2 is not None:
        # The module was updated beneath a running domain: what counts now must have a level, too.
        current = _platform_levels(body.tee_tcb_svn2, platform, collateral.tcb_info)
        if current is None:
            return _NOT_SUPPORTED
        status = _after_update(status, _converge((*current, qe_level)))
    return TcbVerdict(
        status=status,
        advisories=tuple(dict.fromkeys(advisory for level in levels for advisory in level.advisory_ids)),
        tcb_date=min(level.tcb_date for level in levels),
    )


def _platform_levels(
    svn: bytes, platform: PckPlatform, tcb_info: TcbInfo
) -> tuple[TcbLevel] | tuple[TcbLevel, IsvLevel] | None:
    """Return the level of the platform, and that of its TDX module where Intel judges it apart; None if none is met.

    With a major version above 0 the first two components, those of the module, are left to its own levels.
    """
    ordered = sorted(tcb_info.tcb_levels, key=_height, reverse=True)
    skip = 2 if svn[1] > 0 else 0
    level = next((level for level in ordered if _meets(svn, skip, platform, level)), None)
    if level is None:
        return None
    if svn[1] == 0:
        return (level,)
    module = _module_identity(svn, tcb_info)
    module_level = None if module is None else _isv_level(svn[0], module.tcb_levels)
    return None if module_level is None else (level, module_level)


def _height(level: TcbLevel) -> tuple[list[int], int, list[int]]:
    """Intel's library does not rely on the order in the document, but sorts by this."""
    tcb = level.tcb
    return [item.svn for item in tcb.sgxtcbcomponents], tcb.pcesvn, [item.svn for item in tcb.tdxtcbcomponents]


def _meets(svn: bytes, skip: int, platform: PckPlatform, level: TcbLevel) -> bool:
    """Compare component by component: as one number a platform could make up for an old part by a new one."""
    sgx, pcesvn, tdx = _height(level)
    return (
        platform.pcesvn >= pcesvn
        and all(got >= want for got, want in zip(platform.cpusvn, sgx, strict=True))
        and all(got >= want for got, want in zip(svn[skip:], tdx[skip:], strict=True))
    )


def _module_identity(svn: bytes, tcb_info: TcbInfo) -> TdxModuleIdentity | None:
    """Return what Intel says of the module's major version; nothing for version 0, or where it says nothing."""
    wanted = f"TDX_{svn[1]:02X}"
    found = (module for module in tcb_info.tdx_module_identities if module.id.upper() == wanted)
    return next(found, None) if svn[1] > 0 else None


def _isv_level(isvsvn: int, levels: Sequence[IsvLevel]) -> IsvLevel | None:
    return next((level for level in levels if isvsvn >= level.tcb.isvsvn), None)


def _converge(levels: Sequence[TcbLevel | IsvLevel]) -> TcbStatus:
    """Join the platform's status with its components': of these only OutOfDate and Revoked count."""
    status = levels[0].tcb_status
    for component in levels[1:]:
        if TcbStatus.REVOKED in {component.tcb_status, status}:
            return TcbStatus.REVOKED
        if component.tcb_status == TcbStatus.OUT_OF_DATE:
            status = _OUT_OF_DATE.get(status, status)
    return status


def _after_update(launch: TcbStatus, current: TcbStatus) -> TcbStatus:
    """Join what counted at launch with what counts now: a domain launched on an old TCB is not healed by an update."""
    if TcbStatus.REVOKED in {launch, current}:
        return TcbStatus.REVOKED
    if launch in _OUT_OF_DATE.values() and current in _OUT_OF_DATE:
        configuration = {launch, current} & _CONFIGURATION
        return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED if configuration else TcbStatus.TD_RELAUNCH_ADVISED
    return launch
