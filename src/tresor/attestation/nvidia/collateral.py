"""What of a bag of collateral concerns NVIDIA devices: manifests and OCSP answers, found by content."""

from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.x509.ocsp import OCSPResponse

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError, EvidenceMalformedError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat
from tresor.attestation.nvidia.appraise import version_of
from tresor.attestation.nvidia.evidence_list import DeviceEvidence, parse_evidence_list
from tresor.attestation.nvidia.findings import check_of_error
from tresor.attestation.nvidia.ocsp import parse_ocsp, verify_ocsp
from tresor.attestation.nvidia.rim import Rim, RimKind, parse_rim
from tresor.attestation.nvidia.spdm import SpdmReport
from tresor.attestation.nvidia.verify import DeviceIdentity
from tresor.attestation.results import Check
from tresor.attestation.x509 import load_certificates, readable_certificates

__all__ = ["certificates_of", "devices_of", "fits", "is_answered", "is_for", "parse_answers", "parse_rims"]


_MAX_BAG: Final = 1024
"""Certificates of which each may be the one that signed: a signature is tried with each."""


def devices_of(evidence: Evidence) -> tuple[DeviceEvidence, ...]:
    """Return the devices of a list, or the one of a bare report.

    Raises:
        EvidenceMalformedError: the list is none.
    """
    if evidence.format is EvidenceFormat.NVIDIA_GPU_LIST:
        return parse_evidence_list(evidence.data)
    return (DeviceEvidence(architecture=None, nonce=None, report=evidence.data, certificates=None),)


def certificates_of(item: DeviceEvidence, collateral: Collateral) -> list[x509.Certificate]:
    """Return the certificates that came with a device, else all of the bag.

    Raises:
        EvidenceMalformedError: those that came with it cannot be read, or there are too many in the bag.
    """
    if item.certificates is None:
        if (count := len(collateral.certificates)) > _MAX_BAG:
            raise EvidenceMalformedError(
                AttestationCode.EVIDENCE_TOO_LARGE, f"{count} certificates, want at most {_MAX_BAG}"
            )
        return readable_certificates(collateral.certificates)
    return load_certificates(item.certificates)


def parse_rims(collateral: Collateral) -> tuple[dict[Rim, bytes], list[Check]]:
    """Return the manifests with the bytes they came from, and a failed check for each that is none."""
    rims: dict[Rim, bytes] = {}
    checks: list[Check] = []
    for position, data in enumerate(collateral.rims):
        try:
            rims[parse_rim(data)] = data
        except AttestationError as error:
            checks.append(check_of_error(f"rim[{position}]", error))
    return rims, checks


def parse_answers(collateral: Collateral) -> tuple[list[OCSPResponse], list[Check]]:
    """Return the OCSP responses, and a failed check for each that is none."""
    responses: list[OCSPResponse] = []
    checks: list[Check] = []
    for position, data in enumerate(collateral.ocsp_responses):
        try:
            responses.append(parse_ocsp(data))
        except AttestationError as error:
            checks.append(check_of_error(f"ocsp[{position}]", error))
    return responses, checks


def is_for(rim: Rim, kind: RimKind, device: DeviceIdentity, report: SpdmReport) -> bool:
    """Return whether a manifest is of this kind and for this chip, whatever its version."""
    return rim.kind == kind and rim.product in (device.chip, report.chip)


def fits(rim: Rim, kind: RimKind, device: DeviceIdentity, report: SpdmReport) -> bool:
    """Return whether a manifest is the one that a device asks for."""
    return is_for(rim, kind, device, report) and rim.version == version_of(report, kind)


def is_answered(certificate: x509.Certificate, issuer: x509.Certificate, responses: Iterable[OCSPResponse]) -> bool:
    """Return whether a responder's answer about a certificate is at hand, of whatever age and content."""
    try:
        return any(verify_ocsp(response, certificate, issuer=issuer) is not None for response in responses)
    except AttestationError:
        return False
