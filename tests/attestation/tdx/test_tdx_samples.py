"""Quotes of real platforms: verdicts, values, claims, exceptions."""

import base64
from datetime import datetime, timedelta

import msgspec
import pytest

from support.evidence import facts, sample, verify_at
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError, EvidenceMalformedError, EvidenceUndecidedError
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult, PolicyException
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.tdx.abi import parse_quote, parse_tdreport
from tresor.attestation.tdx.collateral import PcsAnswer, assemble, parse_collateral, pcs_urls
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.attestation.tdx.verifier import appraise_tdx, needs
from tresor.attestation.tdx.verify import verify_collateral, verify_quote, verify_signature

GOOD = "tdx/v4-uptodate"
GCE = "tdx/v4-gce-with-event-log"
OUT_OF_DATE = "tdx/v4-outofdate"
PCS = "tdx/pcs-raw-20260629"
ROOTS = vendor_anchors().intel


def evidence(name: str, *logs: bytes) -> Evidence:
    return Evidence(EvidenceFormat.TDX_QUOTE, (sample(name) / "quote.bin").read_bytes(), logs)


def bag(*names: str) -> Collateral:
    return Collateral(tdx=tuple((sample(name) / "collateral.json").read_bytes() for name in names))


def appraised(
    name: str,
    *,
    at: datetime | None = None,
    collateral: Collateral | None = None,
    policy: TdxPolicy | None = None,
    exceptions: tuple[PolicyException, ...] = (),
    expected: Expected | None = None,
    logs: tuple[bytes, ...] = (),
) -> AttestationResult:
    if collateral is None:
        collateral = bag(name) if (sample(name) / "collateral.json").exists() else Collateral()
    return appraise_tdx(
        evidence(name, *logs),
        collateral=collateral,
        policy=policy or TdxPolicy(),
        exceptions=exceptions,
        expected=expected or Expected(),
        anchors=vendor_anchors(),
        now=at or verify_at(name),
    )


@pytest.mark.parametrize(
    ("name", "outcome", "code"),
    [
        (GOOD, "accepted", None),
        ("tdx/v5-uptodate", "accepted", None),
        (OUT_OF_DATE, "rejected", AttestationCode.TCB_STATUS_NOT_ALLOWED),
        ("tdx/v4-debug", "rejected", AttestationCode.DEBUG_ENABLED),
        ("tdx/v5-tcb-below-every-level", "rejected", AttestationCode.TCB_BELOW_FLOOR),
        ("tdx/sgx-v3-not-a-td", "rejected", AttestationCode.EVIDENCE_KIND_MISMATCH),
        (GCE, "undecided", AttestationCode.COLLATERAL_MISSING),
    ],
)
def test_verdict(name: str, outcome: str, code: AttestationCode | None) -> None:
    result = appraised(name)
    assert (result.outcome, result.code) == (outcome, code)


@pytest.mark.parametrize(
    "name", [GOOD, "tdx/v5-uptodate", OUT_OF_DATE, "tdx/v4-debug", "tdx/v5-tcb-below-every-level", GCE]
)
def test_values(name: str) -> None:
    known = facts(name)["quote"]
    quote = parse_quote(evidence(name).data)
    names = ("attr", "mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "report_data", "tcbsvn", "mrseam", "mrconfig", "xfam")
    body = quote.body
    values = (body.tdattributes, body.mrtd, *body.rtmrs, body.report_data, body.tee_tcb_svn, body.mrseam)
    found = dict(zip(names, (*values, body.mrconfigid, body.xfam), strict=True))
    assert {key: value.hex() for key, value in found.items() if key in known} == {
        key: known[key] for key in names if key in known
    }
    assert quote.version == known["v"]
    signed = verify_signature(quote, roots=ROOTS, now=verify_at(name))
    assert signed.platform.fmspc.hex().upper() == known["fmspc"]
    assert signed.platform.ca == known["ca"]
    assert [str(one.not_valid_before_utc.date()) for one in signed.chain] == [start for _, start, _ in known["pck"]]


@pytest.mark.parametrize("name", [GOOD, "tdx/v5-uptodate", OUT_OF_DATE])
def test_tcb_as_dcap_qvl_says(name: str) -> None:
    known = facts(name)
    result = appraised(name)
    assert result.details["tcb_status"] == known["dcap_qvl_0_7_0"]["tcb_status"]
    assert result.details["advisories"] == ", ".join(known["dcap_qvl_0_7_0"]["advisories"])
    assert result.details["tcb_evaluation_data_number"] == str(known["collateral"]["tcb_eval_number"])
    assert result.details["second_verifier"] == "dcap-qvl agrees"
    ends = [known["collateral"][part][1] for part in ("tcb_info", "qe_identity", "pck_crl", "root_crl")]
    assert result.valid_until == min(map(datetime.fromisoformat, ends))


def test_claims_and_what_was_not_checked() -> None:
    result = appraised(GOOD)
    assert (result.claims.cpu_tee.status, result.claims.tcb.status, result.claims.workload.status) == (
        "proven",
        "proven",
        "unknown",
    )
    assert set(result.not_checked) == {"workload", "event_log", "tls_binding", "nonce"}
    assert result.details["signed_sha256"] == parse_quote(evidence(GOOD).data).signed_sha256


def test_nothing_is_claimed_of_a_quote_without_collateral() -> None:
    result = appraised(GCE)
    assert {claim.status for claim in (result.claims.cpu_tee, result.claims.tcb, result.claims.workload)} == {"unknown"}
    assert (result.measurements, result.report_data) == ({}, None)
    assert {"tcb", "revocation"} <= set(result.not_checked)


@pytest.mark.parametrize(
    ("after", "code"),
    [
        (timedelta(days=31), AttestationCode.COLLATERAL_EXPIRED),
        (timedelta(days=-2), AttestationCode.COLLATERAL_NOT_YET_VALID),
        (timedelta(days=4000), AttestationCode.CERTIFICATE_EXPIRED),
    ],
)
def test_at_another_time(after: timedelta, code: AttestationCode) -> None:
    assert appraised(GOOD, at=verify_at(GOOD) + after).code == code


def test_one_second_beyond_the_tcb_information() -> None:
    issued, ends = map(datetime.fromisoformat, facts(GOOD)["collateral"]["tcb_info"])
    second = timedelta(seconds=1)
    assert appraised(GOOD, at=ends + second).code == AttestationCode.COLLATERAL_EXPIRED
    assert appraised(GOOD, at=issued - second).code == AttestationCode.COLLATERAL_NOT_YET_VALID


def test_collateral_of_another_platform() -> None:
    result = appraised(GOOD, collateral=bag("tdx/v5-tcb-below-every-level"))
    assert (result.outcome, result.code) == ("undecided", AttestationCode.COLLATERAL_MISSING)


def test_an_exception_is_shown_and_ends() -> None:
    until = verify_at(OUT_OF_DATE) + timedelta(days=7)
    exception = PolicyException(weakness="OutOfDate", until=until, reason="the provider is moving")
    result = appraised(OUT_OF_DATE, exceptions=(exception,))
    assert (result.outcome, result.exceptions) == ("accepted", (exception,))
    assert result.claims.tcb.status == "unknown"
    assert "OutOfDate" in result.not_checked["tcb"]
    assert result.valid_until == until
    assert "INTEL-SA-01036" in result.details["advisories"]
    assert appraised(OUT_OF_DATE, exceptions=(exception,), at=until).outcome == "rejected"


def test_an_exception_ends_at_an_instant_and_not_at_a_time_of_day_somewhere() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"weakness": "OutOfDate", "until": "2026-05-01T00:00:00", "reason": ""}, PolicyException)


@pytest.mark.parametrize("left_out", [None, "INTEL-SA-01099"])
def test_all_advisories_or_none(left_out: str | None) -> None:
    until = verify_at(OUT_OF_DATE) + timedelta(days=7)
    advisories = facts(OUT_OF_DATE)["dcap_qvl_0_7_0"]["advisories"]
    exceptions = tuple(
        PolicyException(weakness=item, until=until, reason="known") for item in advisories if item != left_out
    )
    result = appraised(OUT_OF_DATE, exceptions=exceptions)
    assert (result.outcome == "accepted") == (left_out is None)


@pytest.mark.parametrize(("configuration", "status"), [(True, "proven"), (False, "unknown")])
def test_workload_needs_more_than_firmware(*, configuration: bool, status: str) -> None:
    known = facts(GOOD)["quote"]
    policy = TdxPolicy(
        allowed_mrtds=(known["mrtd"],),
        skip_mrtd=False,
        allowed_rtmrs={"RTMR1": (known["rtmr1"],)} if configuration else {},
        skip_rtmrs=not configuration,
    )
    result = appraised(GOOD, policy=policy)
    assert (result.outcome, result.claims.workload.status) == ("accepted", status)


def test_workload_is_refuted_by_another_value() -> None:
    result = appraised(GOOD, policy=TdxPolicy(allowed_mrtds=("00" * 48,), skip_mrtd=False))
    assert (result.code, result.claims.workload.status) == (AttestationCode.MEASUREMENT_NOT_ALLOWED, "refuted")


def test_every_mismatch_is_listed() -> None:
    result = appraised(
        "tdx/v4-debug",
        policy=TdxPolicy(skip_mrtd=False, min_tee_tcb_svn=(4,), allow_smt=False, min_tcb_evaluation_data_number=19),
        expected=Expected(report_data=bytes(64), nonce=b"nonce"),
        logs=(b"[]",),
    )
    failed = [check.check for check in result.checks if check.status == "failed"]
    expected = ["debug", "mrtd", "tee_tcb_svn", "report_data", "nonce", "event_log", "tcb_status", "tcb_evaluation"]
    assert failed == [*expected, "smt"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda log: log, None),
        (lambda log: log.replace(b"TdxTable", b"tdxTable"), None),  # what stands beside a digest is not measured
        (lambda log: log[:0x5F] + b"x" + log[0x60:], AttestationCode.EVENT_LOG_MISMATCH),
        (lambda log: log[: 0x20 + 0x21] + log[0xAD:], AttestationCode.EVENT_LOG_MISMATCH),
    ],
    ids=["as it was", "data changed", "digest changed", "event dropped"],
)
def test_event_log_of_the_firmware(change: object, code: AttestationCode | None) -> None:
    assert callable(change)
    log = change((sample(GCE) / "ccel_data.dat").read_bytes())
    (check,) = (check for check in appraised(GCE, logs=(log,)).checks if check.check == "event_log")
    assert check.code == code


@pytest.mark.parametrize("name", ["bundles/dstack-tdx-8gpu-tls-20260629", "bundles/dstack-tdx-8gpu-address-20260610"])
def test_event_log_of_dstack(name: str) -> None:
    document = msgspec.json.decode((sample(name) / "attestation.json").read_bytes())
    nonce = bytes.fromhex(document["request_nonce"])
    result = appraise_tdx(
        Evidence(
            EvidenceFormat.TDX_QUOTE,
            bytes.fromhex(document["intel_quote"]),
            (msgspec.json.encode(document["event_log"]),),
        ),
        collateral=bag(name),
        policy=TdxPolicy(require_event_log=True),
        expected=Expected(nonce=nonce),
        anchors=vendor_anchors(),
        now=verify_at(name),
    )
    assert (result.outcome, result.code) == ("accepted", None)


def test_a_tdreport_says_the_same_as_its_quote() -> None:
    document = msgspec.json.decode((sample("azure/tdx-2023") / "evidence.json").read_bytes())
    hcl, td_quote = (base64.b64decode(document[name] + "===", altchars=b"-_") for name in ("hcl_report", "td_quote"))
    report, quote = parse_tdreport(hcl[32 : 32 + 1024]), parse_quote(td_quote)
    names = [name for name in quote.body.__dataclass_fields__ if name not in {"tee_tcb_svn2", "mrservicetd"}]
    assert [getattr(report.body, name) for name in names] == [getattr(quote.body, name) for name in names]
    with pytest.raises(EvidenceMalformedError, match="HASH"):
        parse_tdreport(hcl[32 : 32 + 600] + b"\xff" + hcl[32 + 601 : 32 + 1024])
    with pytest.raises(EvidenceUndecidedError):
        verify_quote(quote, collateral=Collateral(), roots=ROOTS, now=verify_at("azure/tdx-2023"))


def answers() -> list[PcsAnswer]:
    folder = sample(PCS)
    recorded = msgspec.json.decode((folder / "headers.json").read_bytes())
    return [PcsAnswer((folder / name).read_bytes(), entry["headers"]) for name, entry in recorded.items()]


def test_answers_of_intels_service_make_collateral() -> None:
    document = assemble(*answers())
    collateral = parse_collateral(document)
    genuine = verify_collateral(collateral, roots=ROOTS, now=verify_at(PCS))
    assert collateral.fmspc.hex() == "90c06f000000"
    assert genuine.valid_from <= verify_at(PCS) <= genuine.valid_until
    with pytest.raises(EvidenceForgedError):
        verify_collateral(collateral, roots=ROOTS, now=genuine.valid_until + timedelta(seconds=1))
    with pytest.raises(EvidenceForgedError):
        verify_collateral(collateral, roots=(), now=verify_at(PCS))


def test_addresses_are_those_that_were_recorded() -> None:
    recorded = msgspec.json.decode((sample(PCS) / "headers.json").read_bytes())
    assert list(pcs_urls(bytes.fromhex("90c06f000000"), "platform")) == [entry["url"] for entry in recorded.values()]


@pytest.mark.parametrize(
    "change",
    [
        {0: PcsAnswer(b"{}", {})},
        {0: PcsAnswer(b"\xff", {})},
        {2: PcsAnswer(b"", {})},
        {1: "no headers"},
        {1: "not text"},
    ],
)
def test_answers_that_make_none(change: dict[int, PcsAnswer | str]) -> None:
    parts = answers()
    for index, part in change.items():
        headers = {} if part == "no headers" else {"sgx-enclave-identity-issuer-chain": "%FF"}
        parts[index] = part if isinstance(part, PcsAnswer) else PcsAnswer(parts[index].body, headers)
    with pytest.raises(EvidenceMalformedError):
        assemble(*parts)


def test_what_a_quote_needs() -> None:
    (need,) = needs(evidence(GCE), bag(GOOD))
    urls = pcs_urls(bytes.fromhex("00806f050000"), "platform")
    assert (need.kind, need.required, (need.url, *need.also)) == (CollateralKind.TDX, True, tuple(urls))
    assert needs(evidence(GOOD), bag(GOOD)) == ()
    assert needs(evidence(GOOD), Collateral(tdx=(b"{}",))) != ()
    assert needs(Evidence(EvidenceFormat.TDX_QUOTE, b"none"), Collateral()) == ()


@pytest.mark.parametrize("name", ["mrtd", "mrseam", "mrconfigid", "mrowner", "mrownerconfig"])
def test_a_policy_that_names_values_and_skips_them_is_contradictory(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"skip_{name} = false"):
        msgspec.convert({f"allowed_{name}s": ["00" * 48]}, TdxPolicy)


@pytest.mark.parametrize(
    "policy",
    [
        {"allowed_rtmrs": {"RTMR1": ["00" * 48]}},
        {"allowed_rtmrs": {"RTMR4": ["00" * 48]}, "skip_rtmrs": False},
        {"allowed_mrtds": ["AB" * 48], "skip_mrtd": False},
        {"allowed_tcb_statuses": ["Revoked"]},
        {"allowed_tcb_statuses": ["NotSupported"]},
        {"allowed_attributes": ["DEBUG"]},
        {"min_tee_tcb_svn": [256]},
        {"min_tcb_svn": []},
    ],
)
def test_policies_that_are_refused(policy: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(policy, TdxPolicy)
