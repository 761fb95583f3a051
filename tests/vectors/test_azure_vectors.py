"""Every Azure vector through `appraise_azure`."""

import msgspec
import pytest
from generate_azure import Case, World, at, cases

from support.evidence import sample
from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.azure.verifier import appraise_azure
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.attestation.x509 import split_certificates

CASES = cases()
assert CASES, "no vector"


GENUINE = {
    None,
    "measurement_not_allowed",
    "secure_boot_off",
    "pcr_selection_not_allowed",
    "register_not_allowed",
    "report_data_mismatch",
    "nonce_mismatch",
}


@pytest.fixture(scope="session")
def world() -> World:
    return World()


def appraised(case: Case, world: World) -> AttestationResult:
    collateral, anchors = case.collateral(world), world.anchors
    if case.real is not None:
        chain = sample(case.real) / "certs.pem"
        collateral = Collateral(tuple(split_certificates(chain.read_bytes())) if chain.exists() else ())
        anchors = vendor_anchors()
    return appraise_azure(
        Evidence(EvidenceFormat.AZURE_VTPM, case.build(world)),
        collateral=collateral,
        policy=msgspec.convert(case.policy, AzurePolicy),
        snp=msgspec.convert(case.snp, SnpPolicy),
        tdx=msgspec.convert(case.tdx, TdxPolicy),
        expected=Expected(report_data=case.report_data, nonce=case.nonce),
        anchors=anchors,
        now=at(case),
    )


@pytest.mark.parametrize("name", CASES)
def test_vector(name: str, world: World) -> None:
    case = CASES[name]
    result = appraised(case, world)
    assert (result.outcome, result.code) == (case.outcome, case.code), result.checks
    # Whoever trusts the claim alone is not misled by evidence that nothing ties to the hardware.
    if case.outcome != "undecided":
        assert (result.claims.cpu_tee.status == "proven") == (case.code in GENUINE)
    assert result.claims.workload.status != "proven"
