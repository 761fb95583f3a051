"""Bits of one good sample, flipped: nothing verifies, and each is refused for a reason that fits its place.

All bits of the HCL report's headers, of the quote and of its signature; of every other byte one bit, which one
depending on its place.  The hardware report inside has its own test.
"""

from collections.abc import Iterator

import pytest

from support.evidence import sample, verify_at
from support.fake_tpm import azure_document
from tresor.attestation.azure.documents import AzureDocument, parse_document
from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.azure.verifier import appraise_azure
from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.tdx.policy import TdxPolicy

NAME = "azure/snp-milan-userdata"
RUNTIME_DATA = range(1236, 1236 + 1110)
HEADER = {
    AttestationCode.EVIDENCE_MALFORMED,
    AttestationCode.EVIDENCE_VERSION_UNSUPPORTED,
    AttestationCode.EVIDENCE_KIND_MISMATCH,
    AttestationCode.ALGORITHM_NOT_ALLOWED,
    AttestationCode.RESERVED_NOT_ZERO,
    AttestationCode.RUNTIME_DATA_MISMATCH,  # hash type 1 becomes 3
}
HCL_REPORT = {
    "header": (range(32), range(8), HEADER),
    "request": (range(1216, 1236), range(8), HEADER),
    "runtime data": (RUNTIME_DATA, None, {AttestationCode.RUNTIME_DATA_MISMATCH}),
    "rest": (range(RUNTIME_DATA.stop, 2600), None, {AttestationCode.RESERVED_NOT_ZERO}),
}
# A length or a list may break the structure before its signature is looked at.
MESSAGE = {
    AttestationCode.SIGNATURE_INVALID,
    AttestationCode.EVIDENCE_MALFORMED,
    AttestationCode.EVIDENCE_KIND_MISMATCH,
    AttestationCode.ALGORITHM_NOT_ALLOWED,
}


def document() -> AzureDocument:
    return parse_document((sample(NAME) / "evidence.json").read_bytes())


def flips(data: bytes, places: range, bits: range | None) -> Iterator[tuple[bytes, int, int]]:
    for place in places:
        for bit in bits or ((place * 5) % 8,):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            yield bytes(flipped), place, bit


def code_of(hcl_report: bytes, message: bytes, signature: bytes, pcrs: tuple[bytes, ...]) -> object:
    quote = {"message": message.hex(), "signature": signature.hex(), "pcrs": [value.hex() for value in pcrs]}
    result = appraise_azure(
        Evidence(EvidenceFormat.AZURE_VTPM, azure_document(hcl_report, quote)),
        collateral=Collateral(certificates=document().certificates),
        policy=AzurePolicy(),
        snp=SnpPolicy(),
        tdx=TdxPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(NAME),
    )
    return result.code


@pytest.mark.parametrize("part", HCL_REPORT)
def test_no_flipped_bit_of_the_hcl_report_verifies(part: str) -> None:
    good, (places, bits, expected) = document(), HCL_REPORT[part]
    assert good.quote is not None
    for flipped, place, bit in flips(good.hcl_report, places, bits):
        code = code_of(flipped, good.quote.message, good.quote.signature, good.quote.pcrs)
        assert code in expected, (place, bit, code)


def test_no_flipped_bit_of_the_quote_verifies() -> None:
    good = document()
    assert good.quote is not None
    for flipped, place, bit in flips(good.quote.message, range(len(good.quote.message)), range(8)):
        code = code_of(good.hcl_report, flipped, good.quote.signature, good.quote.pcrs)
        assert code in MESSAGE, (place, bit, code)


def test_no_flipped_bit_of_its_signature_verifies() -> None:
    good = document()
    assert good.quote is not None
    for flipped, place, bit in flips(good.quote.signature, range(len(good.quote.signature)), None):
        code = code_of(good.hcl_report, good.quote.message, flipped, good.quote.pcrs)
        assert code == AttestationCode.SIGNATURE_INVALID, (place, bit, code)


def test_no_flipped_bit_of_a_register_verifies() -> None:
    good = document()
    assert good.quote is not None
    for index, value in enumerate(good.quote.pcrs):
        for flipped, place, bit in flips(value, range(index % 8, 32, 8), None):
            pcrs = (*good.quote.pcrs[:index], flipped, *good.quote.pcrs[index + 1 :])
            code = code_of(good.hcl_report, good.quote.message, good.quote.signature, pcrs)
            assert code == AttestationCode.PCR_DIGEST_MISMATCH, (index, place, bit, code)
