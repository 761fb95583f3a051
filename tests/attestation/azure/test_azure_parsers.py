"""Any bytes give a value or our error, and what is read is what was written."""

import base64
import contextlib
import hashlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fake_amd import AT, make_report
from support.fake_tpm import PCRS, azure_document, fake_tpm, hcl_report
from tresor.attestation.azure.abi import ReportType, parse_hcl_report, parse_runtime_data
from tresor.attestation.azure.documents import MAX_DOCUMENT_BYTES, UnverifiedQuote, parse_document
from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.azure.tpm import parse_quote, parse_signature
from tresor.attestation.azure.verifier import appraise_azure, needs
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.encodings import base64url_encode

TPM = fake_tpm()
RUNTIME_DATA = TPM.runtime_data()
HCL = hcl_report(2, make_report(), RUNTIME_DATA)
MESSAGE = TPM.attest(b"qualifying data")
DOCUMENT = azure_document(HCL, TPM.quote())

plain = st.none() | st.booleans() | st.integers(-1, 300) | st.text(max_size=8)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)
PARSERS = {
    "document": (parse_document, DOCUMENT),
    "hcl_report": (parse_hcl_report, HCL),
    "runtime_data": (parse_runtime_data, RUNTIME_DATA),
    "quote": (parse_quote, MESSAGE),
    "signature": (lambda data: parse_signature(data, modulus_bytes=256), TPM.sign_tpmt(MESSAGE)),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=2048))
def test_any_bytes(name: str, data: bytes) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        PARSERS[name][0](data)


@pytest.mark.parametrize("name", PARSERS)
@given(place=st.integers(0, 4096), inserted=st.binary(max_size=8), removed=st.integers(0, 8))
def test_any_bytes_inside_good_ones(name: str, place: int, inserted: bytes, removed: int) -> None:
    parse, good = PARSERS[name]
    place %= len(good)
    with contextlib.suppress(EvidenceMalformedError):
        parse(good[:place] + inserted + good[place + removed :])


@given(st.sampled_from(["hcl_report_b64", "tpm_quote_b64", "tdx_quote_b64", "vcek_chain_pem"]), anything)
def test_any_member_of_our_form(name: str, value: Any) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        parse_document(json.dumps({"hcl_report_b64": "SENMQQ==", name: value}).encode())


@given(st.sampled_from(["quote", "report", "vcek", "td_quote", "version", "tpm_quote", "hcl_report"]), anything)
def test_any_member_of_other_forms(name: str, value: Any) -> None:
    forms: tuple[dict[str, Any], ...] = (
        {"version": 1, "tpm_quote": TPM.quote(), "hcl_report": "SENMQQ"},
        {"quote": {}, "report": []},
    )
    for form in forms:
        with contextlib.suppress(EvidenceMalformedError):
            parse_document(json.dumps({**form, name: value}).encode())


@given(st.sampled_from(["keys", "vm-configuration", "user-data"]), anything)
def test_any_member_of_runtime_data(name: str, value: Any) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        parse_runtime_data(TPM.runtime_data(**{name: value}))


@given(st.sampled_from(["kid", "kty", "n", "e"]), plain)
def test_any_member_of_the_key(name: str, value: Any) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        parse_runtime_data(TPM.runtime_data(keys=[TPM.jwk(**{name: value}) if name != "kid" else {"kid": value}]))


@given(st.binary(max_size=1024), st.integers(0, 64), st.sampled_from([2, 4]))
def test_what_is_written_is_read(runtime_data: bytes, tail: int, kind: int) -> None:
    hardware = make_report()[: 1184 if kind == 2 else 1024]
    read = parse_hcl_report(hcl_report(kind, hardware, runtime_data, tail=bytes(tail)))
    assert (read.report_type, read.hardware_report, read.runtime_data) == (ReportType(kind), hardware, runtime_data)


@given(st.binary(max_size=64), st.sets(st.integers(0, 23)))
def test_a_quote_is_read(extra_data: bytes, indices: set[int]) -> None:
    pcrs = {index: PCRS[index] for index in sorted(indices)}
    quote = parse_quote(TPM.attest(extra_data, pcrs))
    assert (quote.extra_data, quote.clock, quote.reset_count, quote.restart_count) == (extra_data, 123_456, 7, 1)
    assert [selection.indices for selection in quote.selections] == ([tuple(pcrs)] if pcrs else [])
    assert quote.pcr_digest == hashlib.sha256(b"".join(pcrs.values())).digest()


@given(st.binary(max_size=256), st.binary(max_size=64), st.lists(st.binary(max_size=64), max_size=24))
def test_all_forms_read_the_same(report: bytes, message: bytes, pcrs: list[bytes]) -> None:
    report, signature = b"HCLA" + report, message[::-1]
    quote = {"message": message.hex(), "signature": signature.hex(), "pcrs": [value.hex() for value in pcrs]}
    unversioned = {
        "quote": {"message": list(message), "signature": list(signature), "pcrs": [list(value) for value in pcrs]},
        "report": list(report),
    }
    forms = [
        azure_document(report, quote),
        json.dumps({"version": 2, "tpm_quote": quote, "hcl_report": base64url_encode(report)}).encode(),
        json.dumps({"version": 1, "tpm_quote": quote, "hcl_report": base64.b64encode(report).decode()}).encode(),
        json.dumps(unversioned).encode(),
    ]
    for form in forms:
        read = parse_document(form)
        assert (read.hcl_report, read.quote) == (report, UnverifiedQuote(message, signature, tuple(pcrs)))


@given(st.binary(max_size=512) | st.just(b"HCLA").flatmap(lambda magic: st.binary().map(lambda rest: magic + rest)))
def test_no_bytes_make_the_verifier_raise(data: bytes) -> None:
    evidence = Evidence(EvidenceFormat.AZURE_VTPM, data)
    assert needs(evidence, Collateral()) == ()
    result = appraise_azure(
        evidence,
        collateral=Collateral(certificates=(data,), tdx=(data,)),
        policy=AzurePolicy(),
        snp=SnpPolicy(),
        tdx=TdxPolicy(),
        expected=Expected(),
        anchors=vendor_anchors(),
        now=AT,
    )
    assert (result.tee, result.outcome) == ("unknown", "rejected")


@pytest.mark.parametrize(
    "data",
    [
        b"[" * (MAX_DOCUMENT_BYTES - 1),
        b'{"report": [' + b"1," * 250_000 + b"1]}",
        json.dumps({"hcl_report_b64": "A" * 500_000}).encode(),
        json.dumps({"hcl_report_b64": "", "vcek_chain_pem": "-----BEGIN CERTIFICATE-----\n" * 18_000}).encode(),
        b'{"version": ' + b"9" * 500_000 + b"}",
    ],
    ids=["nested", "numbers", "base64", "pem", "digits"],
)
def test_a_large_document_does_not_cost_much(data: bytes) -> None:
    began = time.perf_counter()
    with contextlib.suppress(EvidenceMalformedError):
        parse_document(data)
    assert time.perf_counter() - began < 10
