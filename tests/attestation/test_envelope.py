"""Envelopes: strict where they are read, and the same again after they stood in a receipt by digest."""

import base64
from typing import Any, get_args

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.ceremony import Ceremony, simulated_ceremony
from tresor.attestation.blocks import RouterAttestation, Tee
from tresor.attestation.codes import AttestationCode
from tresor.attestation.envelope import (
    MAX_ENVELOPE_BYTES,
    TRUST_BUNDLE,
    Envelope,
    Part,
    block_of,
    collateral_of,
    envelope_of,
    evidence_of,
    parse_envelope,
    parts_of,
)
from tresor.attestation.errors import AttestationError, EvidenceMalformedError, EvidenceUndecidedError
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat
from tresor.encodings import digest_string

SPKI = b"\1" * 32
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


@pytest.fixture(scope="module")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> Ceremony:
    return simulated_ceremony(tmp_path_factory.mktemp("ceremony"))


@pytest.fixture(scope="module")
def members(ceremony: Ceremony) -> dict[str, Any]:
    return ceremony.members(SPKI, KEY)


def envelope(members: dict[str, Any], **changes: Any) -> Envelope:
    kept = {name: value for name, value in (members | changes).items() if value is not ...}
    return parse_envelope(msgspec.json.encode(kept))


def held(envelope: Envelope) -> dict[str, bytes]:
    return {digest_string(part.data): part.data for part in parts_of(envelope)}


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "tresor.attestation/v2"},
        {"schema": ...},
        {"tee": "nitro"},
        {"workload": ...},
        {"workload_identity_manifest_jws": ...},
        {"receipt_key": ...},
        {"tls_spki_sha256": "00"},
        {"nonce": "0" * 62},
        {"nonce": "A" * 64},
        {"max_age_seconds": "600"},
        {"max_age_seconds": True},
        {"issued_at": 1_772_366_400},
        {"issued_at": "2026-02-30T00:00:00Z"},
        {"issued_at": "9999-12-31T23:59:59Z"},
        {"issued_at": "0001-01-01T00:00:00Z"},
        {"snp_report_b64": ""},
        {"collateral": [{"media_type": "text/plain", "data": "AAAA"}]},
        {"collateral": [{"media_type": "application/pkix-crl", "data": "AAAA"}] * 57},
    ],
    ids=str,
)
def test_what_is_no_envelope(members: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(EvidenceMalformedError) as refused:
        envelope(members, **change)
    assert refused.value.code == AttestationCode.EVIDENCE_MALFORMED


def test_json_that_can_be_read_in_two_ways(members: dict[str, Any]) -> None:
    good = msgspec.json.encode(members)
    for text in (good[:-1] + b',"tee":"sev-snp"}', b"\xef\xbb\xbf" + good, good + b"{}", good.replace(b"600", b"NaN")):
        with pytest.raises(EvidenceMalformedError):
            parse_envelope(text)


def test_an_envelope_that_is_too_large() -> None:
    with pytest.raises(EvidenceMalformedError) as refused:
        parse_envelope(b" " * (MAX_ENVELOPE_BYTES + 1))
    assert refused.value.code == AttestationCode.EVIDENCE_TOO_LARGE


def test_members_that_are_not_known_say_nothing(members: dict[str, Any]) -> None:
    assert envelope(members, simulated=False, verified=True) == envelope(members)


@given(st.binary(max_size=512))
def test_any_bytes_are_an_envelope_or_our_error(data: bytes) -> None:
    with pytest.raises(EvidenceMalformedError):
        parse_envelope(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=70), st.lists),
)
def test_any_member_is_taken_or_refused_as_ours(members: dict[str, Any], data: st.DataObject, value: object) -> None:
    name = data.draw(st.sampled_from([*members, "tdx_quote_b64", "hcl_report_b64", "tpm_quote_b64", "collateral"]))
    try:
        parsed = envelope(members, **{name: value})
        block = block_of(parsed, parts_of(parsed))
        collateral_of(parsed)
        evidence_of(parsed)
    except AttestationError:
        return
    assert envelope_of(block, held(parsed)) == parsed


# The form in receipts.


def full(members: dict[str, Any]) -> Envelope:
    crl = {"media_type": "application/pkix-crl", "data": base64.b64encode(b"crl").decode()}
    return envelope(members, nonce="0" * 64, collateral=[crl, {**crl, "media_type": "application/rim+xml"}])


def test_there_and_back_again(members: dict[str, Any]) -> None:
    for whole in (envelope(members), full(members)):
        block = block_of(whole, parts_of(whole))
        wire = msgspec.convert(msgspec.json.decode(msgspec.json.encode(block)), RouterAttestation)
        assert envelope_of(wire, held(whole)) == whole
        assert {reference.digest for reference in block.evidence} == set(held(whole))
        assert all(len(held(whole)[reference.digest]) == reference.size for reference in block.evidence)


@pytest.mark.parametrize("number", range(5))
def test_a_part_that_is_not_at_hand_leaves_it_open(members: dict[str, Any], number: int) -> None:
    whole = full(members)
    parts = parts_of(whole)
    kept = {digest: data for digest, data in held(whole).items() if digest != digest_string(parts[number].data)}
    with pytest.raises(EvidenceUndecidedError) as undecided:
        envelope_of(block_of(whole, parts), kept)
    assert undecided.value.code == AttestationCode.EVIDENCE_MISSING


def test_the_trust_bundle_is_no_part_of_the_envelope(members: dict[str, Any]) -> None:
    whole = envelope(members)
    block = block_of(whole, (*parts_of(whole), Part(TRUST_BUNDLE, "application/jose", b"a.b.c")))
    assert envelope_of(block, held(whole)) == whole


@pytest.mark.parametrize(
    "extra",
    [Part("snp_report", "a/b", b"another"), Part("quote", "a/b", b"unknown"), Part("collateral", "text/html", b"x")],
    ids=lambda part: part.type,
)
def test_parts_that_no_envelope_has(members: dict[str, Any], extra: Part) -> None:
    whole = envelope(members)
    block = block_of(whole, (*parts_of(whole), extra))
    with pytest.raises(EvidenceMalformedError):
        envelope_of(block, held(whole) | {digest_string(extra.data): extra.data})


@pytest.mark.parametrize("data", [b"a.b.c", b"\xff" * 9, bytes(1 << 18)], ids=len)
def test_a_part_that_is_not_what_its_type_says(members: dict[str, Any], data: bytes) -> None:
    whole = envelope(members)
    parts = [p._replace(data=data) if p.type == "workload_identity_manifest" else p for p in parts_of(whole)]
    block = block_of(whole, tuple(parts))
    try:
        again = envelope_of(block, {digest_string(part.data): part.data for part in parts})
    except EvidenceMalformedError:
        return
    assert again.workload_identity_manifest_jws == data.decode("ascii", "replace")  # which no key signed


# Evidence and endorsements.


@pytest.mark.parametrize("tee", get_args(Tee))
def test_every_tee_has_its_evidence_or_is_malformed(members: dict[str, Any], tee: str) -> None:
    some = dict.fromkeys(("snp_report_b64", "tdx_quote_b64", "hcl_report_b64", "tpm_quote_b64"), "AAAA")
    assert isinstance(evidence_of(envelope(members, tee=tee, **some)), Evidence)
    with pytest.raises(EvidenceMalformedError):
        evidence_of(envelope(members, tee=tee, **dict.fromkeys(some, ...)))


def test_simulated_evidence_is_never_that_of_a_processor(members: dict[str, Any]) -> None:
    assert evidence_of(envelope(members)).format is EvidenceFormat.SIMULATED
    assert evidence_of(envelope(members, tee="sev-snp")).format is EvidenceFormat.SNP_REPORT


@pytest.mark.parametrize("text", ["AAA", "AA=A", "A A=", "AA==\n", "ÄÄÄÄ", "AA-_"])
def test_base64_has_one_alphabet(members: dict[str, Any], text: str) -> None:
    with pytest.raises(EvidenceMalformedError):
        evidence_of(envelope(members, snp_report_b64=text))


def test_endorsements_by_their_kind(members: dict[str, Any]) -> None:
    found = collateral_of(full(members))
    assert (found.crls, found.rims, len(found.certificates)) == ((b"crl",), (b"crl",), 2)
    none = collateral_of(envelope(members, vcek_chain_pem=...))
    assert none == Collateral()
    assert {kind.value for kind in CollateralKind} >= {"application/pkix-crl", "application/rim+xml"}
