"""Every bit of one good sample, flipped: nothing verifies, and each is refused for a reason that fits its place.

No bit is free: of the HCL report, the hardware signs its report and in it a hash of the runtime data, and all the rest
has one value; the attestation key of the runtime data signs the quote, and the quote a digest of the registers.

All bits of each part stand before the function that verifies it; one bit of every byte, and all bits of headers, before
the whole appraisal.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import TypeAlias, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.evidence import sample, verify_at
from support.fake_tpm import azure_document
from support.flips import IdealKey, every_bit, flips, one_bit, remembered, slices
from tresor.attestation.azure.abi import parse_hcl_report
from tresor.attestation.azure.documents import AzureDocument, UnverifiedQuote, parse_document
from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.azure.verifier import appraise_azure
from tresor.attestation.azure.verify import verify_quote, verify_runtime_data
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.snp import verifier as snp_verifier
from tresor.attestation.snp.abi import parse_report
from tresor.attestation.snp.certificates import find_endorsements
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.verify import verify_report_signature
from tresor.attestation.tdx.policy import TdxPolicy

NAME = "azure/snp-milan-userdata"
CODE = AttestationCode
HEADER = {
    CODE.EVIDENCE_MALFORMED,
    CODE.EVIDENCE_VERSION_UNSUPPORTED,
    CODE.EVIDENCE_KIND_MISMATCH,
    CODE.ALGORITHM_NOT_ALLOWED,
    CODE.RESERVED_NOT_ZERO,
    CODE.RUNTIME_DATA_MISMATCH,  # hash type 1 becomes 3
}
HARDWARE_REPORT = {
    CODE.SIGNATURE_INVALID,
    CODE.EVIDENCE_VERSION_UNSUPPORTED,
    CODE.ALGORITHM_NOT_ALLOWED,
    CODE.RESERVED_NOT_ZERO,
    # The whole appraisal reads the report, and seeks its certificate, before it verifies the signature.
    CODE.CERTIFICATE_TCB_MISMATCH,
    CODE.CHIP_ID_MISMATCH,
    CODE.COLLATERAL_MISMATCH,
    CODE.ROOT_NOT_PINNED,
    CODE.SIGNER_NOT_ALLOWED,
}
# A length or a list may break the structure before its signature is looked at.
MESSAGE = {CODE.SIGNATURE_INVALID, CODE.EVIDENCE_MALFORMED, CODE.EVIDENCE_KIND_MISMATCH, CODE.ALGORITHM_NOT_ALLOWED}

QUOTE = {"message": MESSAGE, "signature": {CODE.SIGNATURE_INVALID}, "pcrs": {CODE.PCR_DIGEST_MISMATCH}}

BitsOf: TypeAlias = Callable[[int], Iterable[int]]

HCL_REPORT_BYTES = 2600
HARDWARE_REPORT_AT, REQUEST_AT, RUNTIME_DATA_AT, RUNTIME_DATA_END = 32, 1216, 1236, 2346
HCL_REPORT = (
    (range(HARDWARE_REPORT_AT), every_bit, HEADER),
    *((places, one_bit, HARDWARE_REPORT) for places in slices(REQUEST_AT, HARDWARE_REPORT_AT)),
    (range(REQUEST_AT, RUNTIME_DATA_AT), every_bit, HEADER),
    *((places, one_bit, {CODE.RUNTIME_DATA_MISMATCH}) for places in slices(RUNTIME_DATA_END, RUNTIME_DATA_AT)),
    (range(RUNTIME_DATA_END, HCL_REPORT_BYTES), every_bit, {CODE.RESERVED_NOT_ZERO}),
)


@cache
def document() -> AzureDocument:
    return parse_document((sample(NAME) / "evidence.json").read_bytes())


@cache
def good_quote() -> UnverifiedQuote:
    quote = document().quote
    assert quote is not None
    return quote


def flipped_quotes(part: str, bits: BitsOf) -> Iterator[tuple[object, UnverifiedQuote]]:
    """Yield where a bit of the good quote was flipped, and the quote."""
    good = good_quote()
    if part == "message":
        for place, bit, flipped in flips(good.message, bits=bits):
            yield (place, bit), replace(good, message=flipped)
        return
    if part == "signature":
        for place, bit, flipped in flips(good.signature, bits=bits):
            yield (place, bit), replace(good, signature=flipped)
        return
    for index, value in enumerate(good.pcrs):
        for place, bit, flipped in flips(value, bits=bits):
            yield (index, place, bit), replace(good, pcrs=(*good.pcrs[:index], flipped, *good.pcrs[index + 1 :]))


def code_of(hcl_report: bytes, quote: UnverifiedQuote) -> object:
    members = {
        "message": quote.message.hex(),
        "signature": quote.signature.hex(),
        "pcrs": [value.hex() for value in quote.pcrs],
    }
    return appraise_azure(
        Evidence(EvidenceFormat.AZURE_VTPM, azure_document(hcl_report, members)),
        collateral=Collateral(certificates=document().certificates),
        policy=AzurePolicy(),
        snp=SnpPolicy(),
        tdx=TdxPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=verify_at(NAME),
    ).code


def code_raised_by(function: Callable[[], object]) -> object:
    try:
        function()
    except AttestationError as error:
        return error.code
    return None


def parse_and_verify(report: bytes, key: ec.EllipticCurvePublicKey) -> None:
    verify_report_signature(parse_report(report), key)


@pytest.fixture(autouse=True)
def _one_appraisal_for_each_hardware_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most flips leave the hardware report as it is, and its appraisal is a pure function."""
    appraise = remembered(snp_verifier.appraise_snp, lambda evidence, **_: evidence.data)
    monkeypatch.setattr(snp_verifier, "appraise_snp", appraise)


def test_unchanged_it_is_accepted() -> None:
    assert code_of(document().hcl_report, good_quote()) is None
    assert len(document().hcl_report) == HCL_REPORT_BYTES
    assert [place for places, *_ in HCL_REPORT for place in places] == list(range(HCL_REPORT_BYTES))


@pytest.mark.parametrize(("places", "bits", "codes"), HCL_REPORT, ids=[str(region[0]) for region in HCL_REPORT])
def test_no_byte_of_the_hcl_report_is_free(places: range, bits: BitsOf, codes: set[AttestationCode]) -> None:
    for place, bit, flipped in flips(document().hcl_report, places, bits=bits):
        assert (code := code_of(flipped, good_quote())) in codes, (place, bit, code)


@pytest.mark.parametrize("part", QUOTE)
def test_no_byte_of_the_quote_is_free(part: str) -> None:
    for where, quote in flipped_quotes(part, one_bit):
        assert (code := code_of(document().hcl_report, quote)) in QUOTE[part], (where, code)


def test_every_bit_of_the_hardware_report_is_signed() -> None:
    """Another sample's bits stand before the whole appraisal of such reports, with the real key."""
    (endorsement,), _ = find_endorsements(document().certificates)
    key = cast("ec.EllipticCurvePublicKey", IdealKey(endorsement.public_key))
    good = document().hcl_report[HARDWARE_REPORT_AT:REQUEST_AT]
    parse_and_verify(good, key)
    for place, bit, flipped in flips(good):
        code = code_raised_by(partial(parse_and_verify, flipped, key))
        assert code in HARDWARE_REPORT, (place, bit, code)


def test_every_bit_of_the_runtime_data_is_hashed() -> None:
    good = parse_hcl_report(document().hcl_report)
    report_data = parse_report(good.hardware_report).report_data
    for place, bit, flipped in flips(good.runtime_data):
        report = replace(good, runtime_data=flipped)
        code = code_raised_by(partial(verify_runtime_data, report, report_data))
        assert code == CODE.RUNTIME_DATA_MISMATCH, (place, bit, code)


@pytest.mark.parametrize("part", QUOTE)
def test_every_bit_of_the_quote_is_signed(part: str) -> None:
    good = parse_hcl_report(document().hcl_report)
    ak = verify_runtime_data(good, parse_report(good.hardware_report).report_data).ak
    for where, quote in flipped_quotes(part, every_bit):
        assert (code := code_raised_by(partial(verify_quote, quote, ak))) in QUOTE[part], (where, code)
