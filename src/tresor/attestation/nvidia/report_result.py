"""The appraisal of reports in one result: steps (1) to (9) of docs/spec/attestation.md, 5.3.

Checks of a device are named after it (`gpu[0].signature`, `switch[1].chain`), so that no device hides behind another.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.ocsp import OCSPResponse

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Expected
from tresor.attestation.nvidia.appraise import (
    PUBLIC_NONCE,
    appraise_count,
    appraise_device,
    appraise_distinct,
    appraise_measurements,
    appraise_nonce,
    appraise_versions,
    rim_ids,
    version_of,
    wanted_rims,
)
from tresor.attestation.nvidia.collateral import certificates_of, fits, is_for, parse_answers, parse_rims
from tresor.attestation.nvidia.evidence_list import DeviceEvidence
from tresor.attestation.nvidia.findings import TEE, check_of_error, gpu_claim, nonce_reason
from tresor.attestation.nvidia.holds import HELD_RIMS
from tresor.attestation.nvidia.ocsp import appraise_answers
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.nvidia.rim import GenuineRim, Rim, RimKind, verify_rim
from tresor.attestation.nvidia.spdm import SpdmReport, parse_report
from tresor.attestation.nvidia.verify import (
    DeviceIdentity,
    select_leaf,
    verify_device_chain,
    verify_fwid,
    verify_signature,
)
from tresor.attestation.results import AttestationResult, Check, Claims, failed, passed, undecided
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.x509 import validity

__all__ = ["ReportAppraisal"]

_SWITCH: Final = "LS10"


@dataclass(frozen=True, slots=True, repr=False)
class _Device:
    """A device whose chain, signature and FWID hold.

    Attributes:
        name: what it is called in checks.
        stated_architecture: what the sender calls it; likewise `stated_nonce`.
    """

    name: str
    report: SpdmReport
    identity: DeviceIdentity
    stated_architecture: str | None
    stated_nonce: bytes | None


class ReportAppraisal:
    """One appraisal: what it is made with, and what it has found so far.

    Checks stand in two lists: `_identity` are those on which it rests that the devices are NVIDIA's, and the claim
    `gpu_tee` with it; `_checks` are all the others.  `_spans` are the validities of whatever was relied on.
    """

    def __init__(
        self, *, collateral: Collateral, policy: NvidiaPolicy, expected: Expected, anchors: TrustAnchors, now: datetime
    ) -> None:
        self._collateral = collateral
        self._policy = policy
        self._expected = expected
        self._anchors = anchors
        self._now = now
        self._responses: list[OCSPResponse] = []
        self._identity: list[Check] = []
        self._checks: list[Check] = []
        self._omitted: dict[str, list[str]] = {}
        self._spans: list[tuple[datetime, datetime]] = []
        self._measured: set[str] = set()

    def appraise(self, items: Sequence[DeviceEvidence]) -> AttestationResult:
        """Appraise all devices of one piece of evidence, of which there is at least one."""
        self._responses, bad_answers = parse_answers(self._collateral)
        rims, bad_rims = parse_rims(self._collateral)
        self._checks += bad_answers + bad_rims
        devices = self._verify(items)
        if devices:
            self._identity += appraise_distinct([device.identity for device in devices])
            self._checks += appraise_nonce(  # (6)
                [device.report for device in devices],
                [device.stated_nonce for device in devices],
                self._expected.nonce,
                self._policy,
            )
        gpus = [device for device in devices if not device.identity.is_switch]
        self._checks += appraise_count(len(gpus), self._policy)
        for device in devices:  # (7)
            identity, report, stated = device.identity, device.report, device.stated_architecture
            self._checks += appraise_device(device.name, identity, report, self._policy, stated=stated)
        for gpu in gpus:
            self._checks += appraise_versions(
                gpu.name, gpu.report.driver_version, gpu.report.vbios_version, self._policy
            )
        self._appraise_firmware(devices, rims)
        return self._result(devices, gpus=len(gpus))

    def _omit(self, item: str, reason: str) -> None:
        reasons = self._omitted.setdefault(item, [])
        if reason not in reasons:
            reasons.append(reason)

    def _verify(self, items: Sequence[DeviceEvidence]) -> list[_Device]:
        """Verify each device by itself; what fails for one stops that one only."""
        devices: list[_Device] = []
        numbers = {"gpu": itertools.count(), "switch": itertools.count()}
        for item in items:
            kind = "switch" if item.architecture == _SWITCH else "gpu"
            name = f"{kind}[{next(numbers[kind])}]"
            step = "report"
            try:
                report = parse_report(item.report)  # (1)
                self._identity.append(passed(f"{name}.{step}", f"{len(report.measurements)} measurements"))
                step = "chain"
                certificates = certificates_of(item, self._collateral)
                leaf = select_leaf(certificates, report)
                roots = self._anchors.nvidia_device
                identity = verify_device_chain(leaf, certificates, roots=roots, now=self._now)  # (2)
                detail = f"{leaf.subject.rfc4514_string()}, to the pinned root"
                self._identity.append(passed(f"{name}.{step}", detail))
                step = "signature"
                verify_signature(report, leaf)  # (3)
                self._identity.append(passed(f"{name}.{step}", "ECDSA P-384 with SHA-384 by the leaf"))
                step = "fwid"
                if verify_fwid(report, leaf):  # (4)
                    self._identity.append(passed(f"{name}.{step}", "FWID of report and leaf are equal"))
                else:
                    self._omit(step, f"{name} reports none")
            except AttestationError as error:
                self._identity.append(check_of_error(f"{name}.{step}", error))
                continue
            self._spans.append(validity(identity.chain))
            self._appraise_revocation(name, identity.chain[1:], self._identity)  # (5)
            devices.append(_Device(name, report, identity, item.architecture, item.nonce))
        return devices

    def _appraise_revocation(self, name: str, chain: Sequence[x509.Certificate], checks: list[Check]) -> bool:
        """Look at the answers about every certificate of a chain but its root.

        Returns:
            Whether a fresh answer says good of each.
        """
        name = f"{name}.revocation"
        answered = 0
        for certificate, issuer in itertools.pairwise(chain):
            detail = f"no answer about serial {certificate.serial_number:x}"
            open_check = undecided(name, AttestationCode.REVOCATION_UNKNOWN, detail)
            try:
                answer = appraise_answers(certificate, issuer, self._responses, now=self._now)
            except AttestationError as error:
                if error.code is not AttestationCode.OCSP_EXPIRED:
                    checks.append(check_of_error(name, error))
                    continue
                answer, open_check = None, check_of_error(name, error)
            if answer is not None:
                answered += 1
                self._spans.append((answer.valid_from, answer.valid_until))
            elif self._policy.require_revocation:  # that nobody answered in time says nothing against the device
                self._checks.append(open_check)
            else:
                self._omit("revocation", f"no fresh answers about {name.removesuffix('.revocation')}")
        if settled := answered == len(chain) - 1:
            checks.append(passed(name, f"{answered} certificates are good by fresh answers"))
        return settled

    def _appraise_firmware(self, devices: Sequence[_Device], rims: Mapping[Rim, bytes]) -> None:
        """Hold the measurements of every device against the manifests it asks for."""
        wanted = [r for r in rims if any(fits(r, r.kind, d.identity, d.report) for d in devices)]
        verified = {rim: self._verify_rim(rim, rims[rim]) for rim in wanted}  # (8)
        settled = {
            rim
            for rim, genuine in verified.items()
            if genuine is not None and self._appraise_revocation(f"rim[{rim.version}]", genuine.chain, self._checks)
        }
        for device in devices:
            name, report, identity = f"{device.name}.firmware", device.report, device.identity
            usable: list[Rim] = []
            for kind in wanted_rims(identity):
                fitting = [rim for rim in verified if fits(rim, kind, identity, report)]
                good = [rim for rim in fitting if verified[rim] is not None]
                # Boards of one product may have VBIOSes of one version: the manifest that matches is the board's.
                good.sort(key=lambda rim: appraise_measurements("", report, [rim])[0].status != "ok")
                usable += good[:1]
                if not fitting:
                    self._no_manifest(device, kind, [r for r in rims if r not in verified])
            if usable:  # (9)
                found = appraise_measurements(name, report, usable)
                self._checks += found
                if found[0].status == "ok" and len(usable) == len(wanted_rims(identity)):
                    self._measured.add(device.name)
            driver = rim_ids(report, identity).get("driver", "")
            if driver in HELD_RIMS and not any(rim.kind == "driver" for rim in settled.intersection(usable)):
                code = AttestationCode.CERTIFICATE_ON_HOLD
                self._identity.append(undecided(f"{device.name}.hold", code, f"{driver}: {HELD_RIMS[driver]}"))

    def _verify_rim(self, rim: Rim, data: bytes) -> GenuineRim | None:
        name = f"rim[{rim.version}]"
        try:
            genuine = verify_rim(data, anchors=self._anchors, now=self._now)
        except AttestationError as error:
            self._checks.append(check_of_error(name, error))
            return None
        self._checks.append(passed(name, f"{rim.kind} of {rim.product}, signed by NVIDIA"))
        self._spans.append(validity(genuine.chain))
        return genuine

    def _no_manifest(self, device: _Device, kind: RimKind, strangers: Sequence[Rim]) -> None:
        """Say that no manifest fits; where one was given for this chip that fits no device, that is a contradiction."""
        name, version = f"{device.name}.firmware", version_of(device.report, kind)
        others = sorted(r.version for r in strangers if is_for(r, kind, device.identity, device.report))
        if others:
            detail = f"{kind} is {version}, the manifest is of {', '.join(others)}"
            self._checks.append(failed(name, AttestationCode.FIRMWARE_VERSION_MISMATCH, detail))
        elif self._policy.require_rims:
            detail = f"no manifest of {kind} {version}"
            self._checks.append(undecided(name, AttestationCode.COLLATERAL_MISSING, detail))
        else:
            self._omit("firmware_measurements", f"no manifest of {kind} {version}")

    def _result(self, devices: Sequence[_Device], *, gpus: int) -> AttestationResult:
        nonces = {device.report.nonce for device in devices}
        if self._expected.nonce is None and nonces:
            self._omit("nonce", nonce_reason(public=PUBLIC_NONCE in nonces))
        if any(device.name not in self._measured for device in devices):
            self._omit("devtools", "only measurements that match NVIDIA's manifests show that developer tools are off")
        details = {"gpus": str(gpus)}
        measurements: dict[str, str] = {}
        for device in devices:
            details |= self._details(device)
            measurements[f"{device.name}.MEASUREMENT_RECORD"] = device.report.record_sha384
            if device.report.fwid is not None:
                measurements[f"{device.name}.FWID"] = device.report.fwid.hex()
        return AttestationResult(
            tee=TEE,
            checks=(*self._identity, *self._checks),
            claims=Claims(
                gpu_tee=gpu_claim(self._identity, "hardware", gpus=gpus, proven=f"chains and signatures; GPUs: {gpus}")
            ),
            measurements=measurements,
            not_checked={item: "; ".join(reasons) for item, reasons in self._omitted.items()},
            report_data=nonces.pop() if len(nonces) == 1 else None,
            valid_from=max((begins for begins, _ in self._spans), default=None),
            valid_until=min((ends for _, ends in self._spans), default=None),
            details=details,
        )

    def _details(self, device: _Device) -> dict[str, str]:
        report, measured = device.report, device.name in self._measured
        facts = {
            "architecture": device.identity.architecture,
            "chip": device.identity.chip,
            "ueid": str(device.identity.leaf.serial_number),
            "driver": report.driver_version,
            "vbios": report.vbios_version,
            "mode": report.mode,
            "protected_pcie": {True: "on", False: "off", None: None}[report.protected_pcie],
            "firmware_measurements": "proven" if measured else "unknown",
            "devtools": "off" if measured else "unknown",
        }
        return {f"{device.name}.{fact}": value for fact, value in facts.items() if value is not None}
