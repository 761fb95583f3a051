"""Do genuine reports, manifests and tokens show what is wanted?  Steps (5) to (9) of docs/spec/attestation.md, 5.3.

CC mode and developer tools: a GPU answers GET_MEASUREMENTS in confidential computing mode only, and newer drivers
report which one (`mode`).  No field says whether developer tools are on; they show as measurements that no manifest of
NVIDIA's holds.  NVIDIA's own verifiers state `secboot` and `dbgstat` on this ground and no other.

Checks that could make sense and are not made: the PDIs and port maps of NVLink against each other (their meaning is not
published); CHIP_SKU against the product (no public list).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from tresor.attestation.codes import AttestationCode
from tresor.attestation.nvidia.nras import DeviceClaims, OverallClaims
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.nvidia.rim import Rim, RimKind
from tresor.attestation.nvidia.spdm import SpdmReport
from tresor.attestation.nvidia.verify import DeviceIdentity, architecture_of
from tresor.attestation.results import Check, failed, passed, undecided
from tresor.attestation.x509 import fingerprint

__all__ = [
    "PUBLIC_NONCE",
    "appraise_count",
    "appraise_device",
    "appraise_device_claims",
    "appraise_distinct",
    "appraise_measurements",
    "appraise_nonce",
    "appraise_overall",
    "appraise_token_nonce",
    "appraise_versions",
    "rim_ids",
    "version_of",
    "wanted_rims",
]

# The nonce of NVIDIA's documentation and test data: evidence that carries it may be years old.
PUBLIC_NONCE: Final = bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")
_NVDEC0_INDEX = 35


def version_of(report: SpdmReport, kind: RimKind) -> str | None:
    """Return the version whose manifest of `kind` a report asks for."""
    return report.vbios_version if kind == "vbios" else report.driver_version


def wanted_rims(device: DeviceIdentity) -> tuple[RimKind, ...]:
    """Return the kinds of manifest that cover a device; an NVSwitch has no driver of its own to measure."""
    return ("vbios",) if device.is_switch else ("driver", "vbios")


def rim_ids(report: SpdmReport, device: DeviceIdentity) -> dict[RimKind, str]:
    """Return the names under which NVIDIA serves the manifests of a device."""
    board = (report.project, report.project_sku, report.chip_sku)
    if device.is_switch:
        board = ("5612", "0002", "890")  # the one board there is; LS10 does not report it
    bios = f"NV_{'SWITCH_BIOS' if device.is_switch else 'GPU_VBIOS'}"
    ids: dict[RimKind, str] = {}
    if report.driver_version is not None:
        chip = "CC_DRIVER_" + (report.chip or "GB100") if device.architecture == "BLACKWELL" else "DRIVER_GH100"
        ids["driver"] = f"NV_GPU_{chip}_{report.driver_version}"
    if None not in board:
        ids["vbios"] = "_".join((bios, *(str(part).upper() for part in board), report.vbios_version.replace(".", "")))
    return ids


def appraise_nonce(
    reports: Sequence[SpdmReport], stated: Sequence[bytes | None], expected: bytes | None, policy: NvidiaPolicy
) -> list[Check]:
    """Hold the nonces of all devices against each other, against what the sender says, and against the caller's.

    Args:
        reports: of all devices.
        stated: the nonce that the document states beside each report, where it does.
        expected: the caller's challenge, 32 bytes; None where there was none.
        policy: whether the public nonce is refused without a challenge.
    """
    code = AttestationCode.NONCE_MISMATCH
    nonces = {report.nonce for report in reports}
    got = " and ".join(sorted(nonce.hex() for nonce in nonces))
    if len(nonces) != 1:
        return [failed("nonce", code, f"devices carry different nonces: {got}")]
    (nonce,) = nonces
    if any(other not in (None, nonce) for other in stated):
        return [failed("nonce", code, f"the document states another nonce than {got}")]
    return _appraise_one_nonce(nonce, expected, policy)


def _appraise_one_nonce(nonce: bytes, expected: bytes | None, policy: NvidiaPolicy) -> list[Check]:
    if expected is not None and nonce != expected:
        return [failed("nonce", AttestationCode.NONCE_MISMATCH, f"nonce is {nonce.hex()}, want {expected.hex()}")]
    if nonce == PUBLIC_NONCE and (expected is not None or policy.refuse_public_nonce):
        return [failed("nonce", AttestationCode.NONCE_PUBLIC, f"nonce {nonce.hex()} is NVIDIA's published example")]
    return [passed("nonce", f"nonce is {nonce.hex()}")] if expected is not None else []


def appraise_count(gpus: int, policy: NvidiaPolicy) -> list[Check]:
    """Check that there are as many GPUs as the policy wants."""
    if policy.gpu_count is None:
        return []
    if gpus != policy.gpu_count:
        return [failed("gpu_count", AttestationCode.GPU_COUNT_MISMATCH, f"{gpus} GPUs, want {policy.gpu_count}")]
    return [passed("gpu_count", f"{gpus} GPUs")]


def appraise_distinct(devices: Sequence[DeviceIdentity]) -> list[Check]:
    """Check that no device stands twice.

    The boot ROM's certificate is the device: its leaf may differ from one start to the next.
    """
    count = Counter(fingerprint(device.chain[1]) for device in devices)
    twice = [digest for digest, times in count.items() if times > 1]
    if twice:
        return [
            failed(
                "devices",
                AttestationCode.GPU_DUPLICATE,
                f"{len(devices)} reports of {len(count)} devices: {', '.join(twice)} stands more than once",
            )
        ]
    return [passed("devices", f"{len(devices)} different devices")]


def appraise_device(
    name: str, device: DeviceIdentity, report: SpdmReport, policy: NvidiaPolicy, *, stated: str | None = None
) -> list[Check]:
    """Hold one device against the policy: architecture and mode.

    Args:
        name: what the device is called in checks, such as `gpu[0]`.
        device: what its certificates say.
        report: what it signed.
        policy: what is acceptable.
        stated: what the sender calls its architecture, upper case.
    """
    checks = [_appraise_architecture(f"{name}.architecture", device, policy, stated)]
    mode = f"{name}.mode"
    if report.mode == "unknown":
        checks.append(failed(mode, AttestationCode.CC_MODE_OFF, "no confidential computing mode that is known"))
    elif not policy.allow_protected_pcie and not device.is_switch:
        code = AttestationCode.ATTRIBUTES_NOT_ALLOWED
        if report.protected_pcie or report.mode == "ppcie":
            checks.append(failed(mode, code, "protected PCIe mode is on"))
        elif report.protected_pcie is None and report.mode is None:
            checks.append(undecided(mode, code, "the driver does not report whether protected PCIe mode is on"))
        else:
            checks.append(passed(mode, "protected PCIe mode is off"))
    return checks


def _appraise_architecture(name: str, device: DeviceIdentity, policy: NvidiaPolicy, stated: str | None) -> Check:
    code = AttestationCode.GPU_ARCHITECTURE_MISMATCH
    if stated not in (None, device.architecture):
        return failed(name, code, f"presented as {stated}, certified as {device.architecture} ({device.chip})")
    if device.architecture not in policy.architectures:
        allowed = ", ".join(policy.architectures) or "none"
        return failed(name, code, f"{device.architecture} ({device.chip}) is not allowed; allowed: {allowed}")
    return passed(name, f"{device.architecture} ({device.chip})")


def appraise_versions(name: str, driver: str | None, vbios: str | None, policy: NvidiaPolicy) -> list[Check]:
    """Hold the versions of one GPU against the floors; those of NVSwitches count in another order and have none."""
    floors = (("driver", driver, policy.min_driver_version, 10), ("vbios", vbios, policy.min_vbios_version, 16))
    return [
        _appraise_floor(f"{name}.{what}", got, floor, base) for what, got, floor, base in floors if floor is not None
    ]


def _appraise_floor(name: str, got: str | None, floor: str, base: int) -> Check:
    parts = [] if got is None else got.split(".")
    try:
        reached = [int(part, base) for part in parts] >= [int(part, base) for part in floor.split(".")]
    except ValueError:  # a driver branch with letters in its version has no place in the order
        reached = False
    if not reached:
        return failed(name, AttestationCode.TCB_BELOW_FLOOR, f"version is {got}, want {floor} or later")
    return passed(name, f"version {got} is not below {floor}")


def appraise_measurements(name: str, report: SpdmReport, rims: Sequence[Rim]) -> list[Check]:
    """Hold the measurements of one device against the golden values of its manifests, all of them.

    Every active index of every manifest must be measured as one of its values; no index may stand in two manifests.
    Index 35 measures NVDEC0, and is left out where the report says that NVDEC0 is disabled.
    """
    code = AttestationCode.FIRMWARE_MEASUREMENT_MISMATCH
    count = Counter(index for rim in rims for index in rim.golden)
    wrong = [f"index {index} stands in {times} manifests" for index, times in sorted(count.items()) if times > 1]
    if report.nvdec0_disabled:
        del count[_NVDEC0_INDEX]
    wrong += [
        f"index {index} differs from {rim.kind} {rim.version}"
        for rim in rims
        for index, golden in sorted(rim.golden.items())
        if index in count and report.measurements.get(index) not in golden
    ]
    if wrong:
        return [failed(name, code, "; ".join(wrong))]
    return [passed(name, f"{len(count)} golden measurements of {' and '.join(rim.kind for rim in rims)}")]


def appraise_overall(claims: OverallClaims, names: Sequence[str]) -> list[Check]:
    """Hold the overall token against the devices that came with it, and look at its verdict."""
    stated, came = ", ".join(sorted(claims.submods)), ", ".join(sorted(names))
    if stated == came:
        devices = passed("devices", f"{len(names)} devices, each with its token")
    else:
        detail = f"the overall token speaks of {stated}; tokens came of {came}"
        devices = failed("devices", AttestationCode.TOKEN_SUBMODULE_MISMATCH, detail)
    if claims.overall:
        return [devices, passed("result", "NVIDIA's overall result is positive")]
    return [devices, failed("result", AttestationCode.GPU_RESULT_NEGATIVE, "NVIDIA's overall result is negative")]


def appraise_token_nonce(claims: OverallClaims, expected: bytes | None, policy: NvidiaPolicy) -> list[Check]:
    """Hold the nonce of a token against the caller's challenge."""
    return _appraise_one_nonce(bytes.fromhex(claims.eat_nonce), expected, policy)


def appraise_device_claims(name: str, claims: DeviceClaims, policy: NvidiaPolicy) -> list[Check]:
    """Hold what NVIDIA states of one device against what a good device has, whatever the overall result says."""
    negative = AttestationCode.GPU_RESULT_NEGATIVE
    wrong = [f"{refused} is false" for refused in claims.refused]
    if claims.error is not None:
        wrong.append(f"error {claims.error.get('code')} {claims.error.get('message')}")
    if claims.measres != "success":
        wrong.append(f"measres is {claims.measres}, want success")
    if claims.secboot is not True:
        wrong.append(f"secboot is {claims.secboot}, want True")
    wrong += [
        f"{chain} is {found.status}, {found.ocsp_status}, want valid, good"
        for chain, found in claims.chains.items()
        if (found.status, found.ocsp_status) != ("valid", "good")
    ]
    checks = [failed(f"{name}.result", negative, "; ".join(wrong))] if wrong else []
    if claims.hwmodel is not None and architecture_of(claims.hwmodel.replace("_", "")) not in policy.architectures:
        code = AttestationCode.GPU_ARCHITECTURE_MISMATCH
        checks.append(failed(f"{name}.architecture", code, f"{claims.hwmodel[:32]!r} is not allowed"))
    if claims.dbgstat != "disabled":
        code = negative if claims.dbgstat is None else AttestationCode.DEBUG_ENABLED
        checks.append(failed(f"{name}.debug", code, f"dbgstat is {claims.dbgstat}, want disabled"))
    return checks or [passed(f"{name}.result", "measurements match, secure boot, debug disabled, by NVIDIA's word")]
