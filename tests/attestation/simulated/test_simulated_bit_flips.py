"""Every bit of one good simulated report, flipped: nothing verifies, and each is refused for what stands there.

No bit of the 1184 bytes is free: what its maker does not choose has one value, and the rest is signed.
"""

from datetime import UTC, datetime

import pytest

from support.flips import flips, remembered
from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.simulated.layout import MEASUREMENT_PREFIX
from tresor.attestation.simulated.verifier import appraise_simulated
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.x509 import build_chain
from tresor.identity.simulated import SimulatedRoot

NOW = datetime(2026, 6, 1, 12, 30, tzinfo=UTC)
ROOT = SimulatedRoot.create(NOW)
PROCESSOR = ROOT.issue(NOW)
REPORT = PROCESSOR.report(bytes(range(64)), b"\x11" * 32)
WORLD = TrustAnchors(amd={}, simulated=(ROOT.certificate,))

REPORT_DATA, MEASUREMENT, SIGNED, SIGNATURE = 0x50, 0x90, 0x2A0, 0x330
DISHONEST = {
    AttestationCode.EVIDENCE_KIND_MISMATCH,
    AttestationCode.EVIDENCE_VERSION_UNSUPPORTED,
    AttestationCode.ALGORITHM_NOT_ALLOWED,
    AttestationCode.RESERVED_NOT_ZERO,
}
INVALID = {AttestationCode.SIGNATURE_INVALID}
REGIONS = {
    "version to signature algorithm and TCB": (0, REPORT_DATA, DISHONEST),
    "REPORT_DATA": (REPORT_DATA, MEASUREMENT, INVALID),
    "MEASUREMENT, what says SIMULATED": (
        MEASUREMENT,
        MEASUREMENT + len(MEASUREMENT_PREFIX),
        {AttestationCode.EVIDENCE_KIND_MISMATCH},
    ),
    "MEASUREMENT, the rest": (MEASUREMENT + len(MEASUREMENT_PREFIX), MEASUREMENT + 48, INVALID),
    "HOST_DATA to mitigations": (MEASUREMENT + 48, SIGNED, DISHONEST),
    "signature": (SIGNED, SIGNATURE, INVALID),
    "behind the signature": (SIGNATURE, 0x4A0, {AttestationCode.RESERVED_NOT_ZERO}),
}


def code_of(report: bytes) -> object:
    return appraise_simulated(
        Evidence(EvidenceFormat.SIMULATED, report),
        collateral=Collateral(certificates=PROCESSOR.certificates),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=WORLD,
        now=NOW,
    ).code


def test_regions_are_the_whole_report() -> None:
    assert [place for first, behind, _ in REGIONS.values() for place in range(first, behind)] == list(
        range(len(REPORT))
    )
    assert code_of(REPORT) is None


@pytest.mark.parametrize("region", REGIONS)
def test_every_bit(region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The certificates are the same in all of these appraisals, and a pure function verifies their chain.
    chain = remembered(build_chain, lambda leaf, *_, **__: leaf)
    monkeypatch.setattr("tresor.attestation.simulated.verify.build_chain", chain)
    first, behind, codes = REGIONS[region]
    for place, bit, flipped in flips(REPORT, range(first, behind)):
        assert (code := code_of(flipped)) in codes, (hex(place), bit, code)
