"""Several results in one: nothing bad is lost, nothing good is invented."""

from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.attestation.codes import AttestationCode
from tresor.attestation.join import join, without
from tresor.attestation.results import AttestationResult, Claim, Claims, failed, passed, undecided

GOOD: Final = passed("signature", "good")
BAD: Final = failed("signature", AttestationCode.SIGNATURE_INVALID, "bad")
OPEN: Final = undecided("collateral", AttestationCode.COLLATERAL_MISSING, "none")
STATUSES: Final = st.sampled_from(["proven", "refuted", "unknown"])


def claim(status: str) -> Claim:
    return Claim(status=status, source="hardware")  # type: ignore[arg-type]  # drawn from the three words


def result(tee: str, *checks: object, status: str = "proven") -> AttestationResult:
    claims = Claims(gpu_tee=claim(status)) if tee == "nvidia-gpu" else Claims(cpu_tee=claim(status), tcb=claim(status))
    return AttestationResult(
        tee=tee,
        checks=checks,  # type: ignore[arg-type]  # made by the helpers above
        claims=claims,
        measurements={"M": tee},
        not_checked={"gpu_tee": "no GPU is part of this"} if tee != "nvidia-gpu" else {"firmware": "no manifest"},
        report_data=b"r",
        valid_from=datetime(2026, 1, len(checks) + 1, tzinfo=UTC),
        valid_until=datetime(2026, 2, len(checks) + 1, tzinfo=UTC),
    )


def test_cpu_and_gpu() -> None:
    joined = join([("", result("tdx", GOOD)), ("gpus", result("nvidia-gpu", GOOD, GOOD))])
    assert (joined.tee, joined.outcome) == ("tdx+nvidia-gpu", "accepted")
    assert [check.check for check in joined.checks] == ["signature", "gpus.signature", "gpus.signature"]
    assert (joined.claims.cpu_tee.status, joined.claims.gpu_tee.status) == ("proven", "proven")
    assert joined.measurements == {"M": "tdx", "gpus.M": "nvidia-gpu"}
    assert joined.not_checked == {"firmware": "no manifest"}
    assert joined.report_data == b"r"
    assert joined.valid_from == datetime(2026, 1, 3, tzinfo=UTC)
    assert joined.valid_until == datetime(2026, 2, 2, tzinfo=UTC)


def test_two_of_a_kind() -> None:
    joined = join([("a", result("tdx", GOOD)), ("b", result("tdx", GOOD, status="unknown"))])
    assert joined.tee == "tdx"
    assert joined.claims.cpu_tee.status == "unknown"
    assert joined.report_data is None
    assert joined.not_checked == {"gpu_tee": "no GPU is part of this"}


def test_gpu_alone_says_nothing_of_a_cpu() -> None:
    joined = join([("", result("nvidia-gpu", GOOD))])
    assert joined.claims.cpu_tee.status == "unknown"
    assert joined.claims.gpu_tee.status == "proven"


def test_simulated_marks_the_whole() -> None:
    simulated = AttestationResult(tee="simulated", checks=(GOOD,), simulated=True)
    assert join([("", result("tdx", GOOD)), ("x", simulated)]).simulated


def test_nothing_joins_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to join"):
        join([])


def test_without_takes_items_out() -> None:
    assert without(result("tdx", GOOD), ("gpu_tee", "other")).not_checked == {}


@given(checks=st.lists(st.lists(st.sampled_from([GOOD, BAD, OPEN]), max_size=3), min_size=1, max_size=4))
def test_outcome_is_that_of_all_checks_together(checks: list[list[object]]) -> None:
    joined = join([("", result("tdx", *some)) for some in checks])
    flat = [check for some in checks for check in some]
    want = "rejected" if BAD in flat else "accepted" if flat and OPEN not in flat else "undecided"
    assert joined.outcome == want


@given(statuses=st.lists(STATUSES, min_size=1, max_size=4))
def test_a_claim_is_proven_only_where_all_prove_it(statuses: list[str]) -> None:
    joined = join([("", result("tdx", GOOD, status=status)) for status in statuses])
    want = "refuted" if "refuted" in statuses else "unknown" if "unknown" in statuses else "proven"
    assert joined.claims.cpu_tee.status == joined.claims.tcb.status == want
