"""Whatever lies together: what counts, what does not, and that neither hides."""

import base64
import gzip
import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.evidence import sample
from support.fake_amd import AT as AMD_AT
from support.fake_amd import fake_amd, make_report
from support.fake_intel import AT, INTEL, body
from support.fake_nvidia import GPU, eat, evidence_list, jwks, nras_key, ocsp, report, rim
from support.fake_nvidia import NONCE as GPU_NONCE
from support.fake_providers import ANCHORS, COMPOSE, NONCE, OTHER, SPKI, dstack, event_log, gpu_entries, tinfoil
from tresor.attestation.evidence import CollateralKind
from tresor.attestation.folder import File, Folder, appraise_folder, gather, needs
from tresor.attestation.policy import STRICT
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors

QUOTE: Final = INTEL.quote()
COLLATERAL: Final = INTEL.collateral()
GPU_LIST: Final = evidence_list((GPU, report()))
GOOD: Final = (QUOTE, COLLATERAL)


def folder_of(*contents: bytes, named: bool = False) -> Folder:
    return gather(File(f"file{number}", data, named) for number, data in enumerate(contents))


def appraised(*contents: bytes, named: bool = False, nonce: bytes | None = None, **options: Any) -> AttestationResult:
    given: dict[str, Any] = {"policy": STRICT, "anchors": ANCHORS, "now": AT} | options
    return appraise_folder(folder_of(*contents, named=named), nonce=nonce, **given)


def codes(result: AttestationResult) -> list[str]:
    return [str(check.code) for check in result.checks if check.status != "ok"]


# --- Evidence and what belongs to it


def test_one_piece_has_no_word_before_its_checks() -> None:
    result = appraised(*GOOD)
    assert (result.outcome, result.tee) == ("accepted", "tdx")
    assert "MRTD" in result.measurements
    assert "quote_signature" in {check.check for check in result.checks}


def test_order_and_duplicates_do_not_matter() -> None:
    assert appraised(*reversed(GOOD), QUOTE, COLLATERAL) == appraised(*GOOD)


def test_cpu_and_gpu_that_nothing_ties() -> None:
    result = appraised(*GOOD, GPU_LIST)
    assert (result.outcome, result.tee) == ("accepted", "tdx+nvidia-gpu")
    assert {"tdx-quote.MRTD", "nvidia-gpu-evidence.gpu[0].FWID"} <= result.measurements.keys()


def test_two_quotes_are_numbered() -> None:
    result = appraised(*GOOD, INTEL.quote(td=body(report_data=bytes(64))))
    assert {"tdx-quote1.MRTD", "tdx-quote2.MRTD"} <= result.measurements.keys()


def test_one_bad_piece_rejects_the_whole() -> None:
    forged = bytearray(QUOTE)
    forged[600] ^= 1
    result = appraised(*GOOD, bytes(forged))
    assert (result.outcome, result.code) == ("rejected", "signature_invalid")


def test_the_event_log_of_the_only_quote() -> None:
    events, (rtmr0, rtmr1, rtmr2, rtmr3) = event_log(("compose-hash", b"x"))
    quote = INTEL.quote(td=body(rtmr0=rtmr0, rtmr1=rtmr1, rtmr2=rtmr2, rtmr3=rtmr3))
    log = json.dumps(events).encode()
    assert appraised(quote, COLLATERAL, log).outcome == "accepted"
    assert codes(appraised(*GOOD, log)) == ["event_log_mismatch"]
    two = appraised(quote, *GOOD, log)
    assert two.outcome == "accepted"
    assert "event_log" in two.not_checked


def test_answer_of_the_dstack_socket() -> None:
    events, (rtmr0, rtmr1, rtmr2, rtmr3) = event_log(("compose-hash", b"x"))
    quote = INTEL.quote(td=body(rtmr0=rtmr0, rtmr1=rtmr1, rtmr2=rtmr2, rtmr3=rtmr3))
    answer = json.dumps({"quote": quote.hex(), "event_log": json.dumps(events), "vm_config": "{}"}).encode()
    result = appraised(answer, COLLATERAL)
    assert result.outcome == "accepted"
    assert any(check.check == "event_log" for check in result.checks)


# --- Nonces


def test_a_noted_nonce_is_expected() -> None:
    bound = INTEL.quote(td=body(report_data=bytes(32) + NONCE))
    assert appraised(bound, COLLATERAL, NONCE.hex().encode()).outcome == "accepted"
    assert codes(appraised(bound, COLLATERAL, OTHER.hex().encode())) == ["nonce_mismatch"]
    assert codes(appraised(bound, COLLATERAL, nonce=OTHER)) == ["nonce_mismatch"]


def test_a_noted_nonce_is_expected_of_an_answer() -> None:
    assert appraised(tinfoil(), COLLATERAL, NONCE.hex().encode()).outcome == "accepted"
    assert codes(appraised(tinfoil(), COLLATERAL, OTHER.hex().encode())) == ["nonce_mismatch"]


# --- Tokens of NVIDIA's verifier


def token(challenge: bytes, **claims: Any) -> bytes:
    device = {"GPU-0": _device_token(challenge)}
    return eat(device, eat_nonce=challenge.hex(), **claims)


def _device_token(challenge: bytes) -> str:
    from support.fake_nvidia import device_claims  # noqa: PLC0415 - next to its only use
    from support.fake_nvidia import token as signed  # noqa: PLC0415 - likewise

    return signed(device_claims(eat_nonce=challenge.hex()))


def test_a_token_about_these_gpus_counts() -> None:
    good = appraised(GPU_LIST, token(GPU_NONCE), jwks())
    assert good.outcome == "accepted"
    assert "nras.result" in {check.check for check in good.checks}
    assert "gpu_evidence" not in good.not_checked
    bad = appraised(GPU_LIST, token(GPU_NONCE, **{"x-nvidia-overall-att-result": False}), jwks())
    assert (bad.outcome, bad.code) == ("rejected", "gpu_result_negative")


def test_a_token_about_the_gpus_of_an_answer_counts() -> None:
    answer = tinfoil(gpus=gpu_entries(NONCE))
    assert appraised(answer, COLLATERAL, token(NONCE), jwks()).outcome == "accepted"
    bad = appraised(answer, COLLATERAL, token(NONCE, **{"x-nvidia-overall-att-result": False}), jwks())
    assert bad.code == "gpu_result_negative"


@pytest.mark.parametrize("positive", [True, False])
def test_a_token_about_other_gpus_is_reported_and_not_counted(*, positive: bool) -> None:
    result = appraised(GPU_LIST, token(OTHER, **{"x-nvidia-overall-att-result": positive}), jwks())
    assert result.outcome == "accepted"
    assert not any(check.check.startswith("nras") for check in result.checks)
    assert OTHER.hex() in result.not_checked["nras"]
    assert ("accepted" if positive else "gpu_result_negative") in result.not_checked["nras"]


def test_a_token_alone_is_evidence() -> None:
    assert appraised(token(OTHER), jwks()).outcome == "accepted"
    assert codes(appraised(token(OTHER, **{"x-nvidia-overall-att-result": False}), jwks()))[0] == "gpu_result_negative"
    assert codes(appraised(token(OTHER), jwks(), nonce=NONCE)) == ["nonce_mismatch"]
    assert "gpu_evidence" in appraised(token(OTHER), jwks()).not_checked


def test_a_token_beside_other_evidence_counts() -> None:
    result = appraised(*GOOD, token(OTHER, **{"x-nvidia-overall-att-result": False}), jwks())
    assert result.code == "gpu_result_negative"


def test_a_token_that_cannot_be_read_counts_as_bad() -> None:
    broken = json.dumps([["JWT", "a.b.c"], {"GPU-0": "a.b.c"}]).encode()
    assert appraised(GPU_LIST, broken, jwks()).outcome == "rejected"


# --- What is not known


def test_prose_beside_evidence_is_named_and_not_used() -> None:
    result = appraised(*GOOD, b"# What lies here\n")
    assert result.outcome == "accepted"
    assert result.not_checked["files"] == "file2: not of a known kind"


def test_named_as_evidence_it_is_refused() -> None:
    assert codes(appraised(*GOOD, b"# What lies here\n", named=True)) == ["evidence_unknown"]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("content", [b"", b"prose", b"\x00\x01", b"{}", b"[1]"])
def test_only_unknown_content_is_refused(content: bytes, *, named: bool) -> None:
    assert codes(appraised(content, named=named)) == ["evidence_unknown"]


def test_endorsements_beside_something_unknown_are_no_pass() -> None:
    """What cannot be recognised may have been the evidence: only its endorsements are good."""
    assert codes(appraised(COLLATERAL, QUOTE[:8])) == ["evidence_unknown"]


def test_broken_json_in_a_folder_is_refused() -> None:
    assert codes(appraised(COLLATERAL, tinfoil()[:-1])) == ["evidence_malformed"]
    assert codes(appraised(*GOOD, tinfoil()[:-1])) == ["evidence_malformed"]


def test_a_file_that_is_too_long_is_refused() -> None:
    assert codes(appraised(*GOOD, bytes((8 << 20) + 1))) == ["evidence_too_large"]


def test_a_bomb_is_refused() -> None:
    assert codes(appraised(*GOOD, gzip.compress(bytes(32 << 20)))) == ["evidence_too_large"]


@pytest.mark.parametrize("content", [json.dumps(event_log()[0]).encode(), NONCE.hex().encode()])
def test_what_belongs_to_absent_evidence_is_undecided(content: bytes) -> None:
    result = appraised(content)
    assert (result.outcome, result.code) == ("undecided", "evidence_missing")


def test_nothing_at_all_is_no_pass() -> None:
    assert appraised().outcome == "rejected"


# --- Endorsements alone


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ([COLLATERAL], []),
        ([rim()], []),
        ([INTEL.root.pem.encode(), INTEL.platform_ca.pem.encode()], []),
        ([bytes.fromhex(INTEL.crl(INTEL.root)), INTEL.platform_ca.pem.encode(), INTEL.root.pem.encode()], []),
        ([GPU.pem], []),
        ([nras_key().chain[1].der], []),
        ([INTEL.collateral(tcb_info_signature="00" * 64)], ["collateral_signature_invalid"]),
        ([rim().replace(b'colloquialVersion="550', b'colloquialVersion="551')], ["collateral_signature_invalid"]),
        ([INTEL.platform_ca.pem.encode()], []),
        ([INTEL.pck.pem.encode()], ["endorsement_missing"]),
        ([bytes.fromhex(INTEL.crl(INTEL.platform_ca))], ["endorsement_missing"]),
        ([ocsp(GPU.chain[1])], ["evidence_missing"]),
        ([jwks()], ["evidence_missing"]),
        ([fake_amd().vcek().der], ["evidence_missing"]),
        ([b"\x30\x05\x30\x03\xa0\x01\x02"], ["certificate_malformed"]),
        ([b"\x30\x05\x30\x03\x02\x01\x02"], ["collateral_malformed"]),
    ],
    ids=range(16),
)
def test_endorsements_alone(contents: list[bytes], found: list[str]) -> None:
    result = appraised(*contents)
    assert codes(result) == found
    assert "evidence" in result.not_checked
    assert {claim.status for claim in (result.claims.cpu_tee, result.claims.gpu_tee, result.claims.tcb)} == {"unknown"}


def test_a_certificate_that_a_list_names_is_revoked() -> None:
    crl = bytes.fromhex(INTEL.crl(INTEL.root, revoked=[INTEL.platform_ca]))
    assert codes(appraised(crl, INTEL.platform_ca.pem.encode(), INTEL.root.pem.encode())) == ["certificate_revoked"]


def test_expired_certificates_count_only_where_nothing_else_does() -> None:
    later = INTEL.valid[1].replace(year=INTEL.valid[1].year + 1)
    assert codes(appraised(INTEL.root.pem.encode(), now=later)) == ["certificate_expired"]
    assert set(codes(appraised(INTEL.root.pem.encode(), GPU.pem, now=later))) <= {"certificate_expired"}


def test_an_old_certificate_beside_its_successor() -> None:
    folder = sample("roots/others")
    old, new = ((folder / f"azure_tpm_intermediate_{n}.pem").read_bytes() for n in ("01", "03"))
    at = datetime(2026, 6, 1, tzinfo=UTC)
    result = appraised(old, new, anchors=vendor_anchors(), now=at)
    assert result.outcome == "accepted"
    assert "CA - 01 expired" in result.not_checked["expired_certificates"]
    assert codes(appraised(old, anchors=vendor_anchors(), now=at)) == ["certificate_expired"]


def test_expired_collateral_counts_always() -> None:
    at = datetime(2026, 6, 1, tzinfo=UTC)
    assert codes(appraised(COLLATERAL, INTEL.root.pem.encode(), now=at)) == ["collateral_expired"]


# --- Intel's raw answers


def raw_answers(*without: str) -> list[bytes]:
    folder = sample("tdx/pcs-raw-20260629")
    names = ("tcb.json", "qe_identity.json", "pckcrl.der", "rootca.crl.der", "headers.json")
    return [(folder / name).read_bytes() for name in names if name not in without]


def test_raw_answers_are_one_document() -> None:
    folder = folder_of(*raw_answers())
    assert len(folder.collateral.tdx) == 1
    assert folder.collateral.crls == ()
    result = appraised(*raw_answers(), anchors=vendor_anchors(), now=datetime(2026, 6, 29, 2, 13, 4, tzinfo=UTC))
    assert (result.outcome, result.tee) == ("accepted", "tdx")


@pytest.mark.parametrize("name", ["qe_identity.json", "pckcrl.der", "rootca.crl.der", "headers.json"])
def test_raw_answers_that_are_not_complete(name: str) -> None:
    result = appraised(*raw_answers(name), anchors=vendor_anchors(), now=datetime(2026, 6, 29, 3, tzinfo=UTC))
    assert "collateral_malformed" in codes(result)


# --- Needs


def test_needs_of_everything_that_lies_there() -> None:
    answer = dstack(gpus=gpu_entries(NONCE))
    wanted = needs(folder_of(answer, make_report(), token(OTHER)))
    assert {need.kind for need in wanted} >= {CollateralKind.TDX, CollateralKind.CERTIFICATE, CollateralKind.JWKS}
    tdx = next(need for need in wanted if need.kind is CollateralKind.TDX)
    assert len(tdx.also) == 3
    assert not [need for need in needs(folder_of(*GOOD)) if need.kind is CollateralKind.TDX]


def test_needs_of_nothing() -> None:
    assert needs(folder_of(b"{", b"prose", tinfoil()[:-1])) == ()


# --- Mixtures

AMD: Final = fake_amd()
CHIP: Final = AMD.vcek()


def test_snp_beside_its_chain() -> None:
    result = appraised(CHIP.sign(make_report()), CHIP.der, *AMD.issuers, anchors=AMD.anchors, now=AMD_AT)
    assert (result.outcome, result.tee) == ("accepted", "sev-snp")


def test_vendors_do_not_vouch_for_each_other() -> None:
    assert appraised(*GOOD, anchors=AMD.anchors).outcome == "rejected"
    assert appraised(CHIP.sign(make_report()), CHIP.der, now=AMD_AT).outcome == "rejected"


PIECES: Final = (
    *GOOD,
    GPU_LIST,
    token(GPU_NONCE),
    jwks(),
    tinfoil(),
    dstack(compose=COMPOSE),
    rim(),
    NONCE.hex().encode(),
    base64.b64encode(QUOTE),
    INTEL.root.pem.encode(),
    b"prose",
    SPKI,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=40)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=5), noise=st.integers(0, 2**32), cut=st.integers(0, 400))
def test_any_mixture_gets_a_result(pieces: Iterable[bytes], noise: int, cut: int) -> None:
    draw = random.Random(noise)  # noqa: S311 - test data
    contents = []
    for piece in pieces:
        data = bytearray(piece[: len(piece) - (cut if draw.random() < 0.2 else 0)])
        if data and draw.random() < 0.4:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        contents.append(bytes(data))
    assert appraised(*contents).outcome in {"accepted", "rejected", "undecided"}
