"""Any bytes into any parser: our error or a value."""

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.fake_intel import AT, INTEL, body, make_quote, sgx_extension
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.tdx.abi import parse_quote, parse_tdreport
from tresor.attestation.tdx.collateral import PcsAnswer, assemble, parse_collateral
from tresor.attestation.tdx.event_log import MAX_EVENTS, MAX_LOG_BYTES, parse_event_log, replay
from tresor.attestation.tdx.pck import parse_pck
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.attestation.tdx.verifier import appraise_tdx, needs

QUOTE = INTEL.quote()
COLLATERAL = INTEL.collateral()
ANCHORS = TrustAnchors(amd={}, intel=(INTEL.root.certificate,))
LOG_HEADER = bytes.fromhex("0000000003000000" + "00" * 20 + "21000000") + b"Spec ID Event03\0" + bytes(8)
LOG_HEADER += bytes.fromhex("01000000" + "0c003000" + "00")


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Cut and overwrite good bytes, so that more than the first check is reached."""
    data = bytearray(good[: draw(st.integers(0, len(good)))] if draw(st.booleans()) else good)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


def appraised(quote: bytes, collateral: bytes = COLLATERAL, *logs: bytes) -> AttestationResult:
    return appraise_tdx(
        Evidence(EvidenceFormat.TDX_QUOTE, quote, logs),
        collateral=Collateral(tdx=(collateral,)),
        policy=TdxPolicy(),
        expected=Expected(),
        anchors=ANCHORS,
        now=AT,
    )


@given(st.binary(max_size=1400) | mutated(QUOTE) | mutated(INTEL.quote(version=5)))
@example(b"\x03\x00")
def test_any_bytes_are_a_quote_or_our_error(data: bytes) -> None:
    needs(Evidence(EvidenceFormat.TDX_QUOTE, data), Collateral())
    with contextlib.suppress(AttestationError):
        quote = parse_quote(data)
        assert data.startswith(quote.raw)
        assert quote.raw.startswith(quote.signed)
        assert not data[len(quote.raw) :].strip(b"\0")


@given(mutated(QUOTE))
def test_any_quote_gives_a_result(data: bytes) -> None:
    result = appraised(data)
    same = data.startswith(QUOTE[:632]) and result.details.get("signed_sha256") == parse_quote(QUOTE).signed_sha256
    assert same or result.outcome != "accepted"


@given(st.binary(max_size=300) | mutated(sgx_extension(INTEL.platform)))
@example(b"\x30\x82\x20\x00" * 400)
def test_any_extension_is_a_platform_or_our_error(data: bytes) -> None:
    certificate = INTEL.issue("Intel SGX PCK Certificate", INTEL.platform_ca, extension=data).certificate
    with contextlib.suppress(AttestationError):
        assert len(parse_pck(certificate).fmspc) == 6


@given(st.binary(max_size=1100) | st.binary(min_size=1024, max_size=1024))
def test_any_bytes_are_a_tdreport_or_our_error(data: bytes) -> None:
    with contextlib.suppress(AttestationError):
        parse_tdreport(data)


@given(st.binary(max_size=400) | mutated(COLLATERAL))
def test_any_bytes_are_collateral_or_our_error(data: bytes) -> None:
    with contextlib.suppress(AttestationError):
        parse_collateral(data)
    if appraised(QUOTE, data).outcome == "accepted":
        assert parse_collateral(data).tcb_info == parse_collateral(COLLATERAL).tcb_info


@given(st.binary(max_size=200), st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=3))
def test_any_answers_are_assembled_or_our_error(answer: bytes, headers: dict[str, str]) -> None:
    with contextlib.suppress(AttestationError):
        assemble(*[PcsAnswer(answer, headers)] * 4)


@given(st.binary(max_size=400) | mutated(LOG_HEADER + bytes.fromhex("01000000080000800100000" + "00c00" + "11" * 52)))
def test_any_bytes_are_an_event_log_or_our_error(data: bytes) -> None:
    with contextlib.suppress(AttestationError):
        assert all(len(register) == 48 for register in replay(parse_event_log(data)))


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_any_json_is_an_event_log_or_our_error(value: object) -> None:
    with contextlib.suppress(AttestationError):
        parse_event_log(msgspec.json.encode([value]))


def test_parse_is_the_reverse_of_making() -> None:
    made = body(report_data=bytes(range(64, 128)), rtmr3=b"\3" * 48)
    quote = parse_quote(INTEL.quote(td=made))
    assert quote.body == made
    again = make_quote(pck=INTEL.pck, certification=(quote.certification_type, quote.certification_data), td=made)
    assert again == quote.raw


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (parse_event_log, b"[" * MAX_LOG_BYTES),
        (parse_event_log, b"[" * (MAX_LOG_BYTES + 1)),
        (parse_event_log, LOG_HEADER + (bytes([1]) + bytes(11)) * 300_000),
        (parse_event_log, LOG_HEADER + b"\1\0\0\0\3\0\0\0\1\0\0\0\x0c\0" + b"\1" * (MAX_LOG_BYTES - 100)),
        (parse_event_log, LOG_HEADER + (b"\1\0\0\0\1\0\0\0\1\0\0\0\x0c\0" + bytes(52)) * (MAX_EVENTS + 1)),
        (parse_collateral, b'{"pck_crl":' + b"[" * 100_000),
        (parse_collateral, b" " * (5 << 20)),
    ],
    ids=["nested", "too large", "no digests", "one huge event", "too many events", "nested collateral", "large"],
)
def test_hostile_sizes_are_refused(parse: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(AttestationError):
        parse(data)
