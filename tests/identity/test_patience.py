from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.emulated_time import PassingTime
from tresor.identity.source import EvidenceSourceError, SourceCode
from tresor.identity.sources.patience import Patience


def failing(codes: Iterator[SourceCode]) -> str:
    code = next(codes, None)
    if code is not None:
        raise EvidenceSourceError(code, "no")
    return "done"


def test_what_passes_is_tried_again(patience: Patience, time: PassingTime) -> None:
    codes = iter([SourceCode.BUSY, SourceCode.INTERFERED, SourceCode.BUSY])
    assert patience.until_done(lambda: failing(codes)) == "done"
    assert 0.05 * (1 + 2 + 4) / 2 <= time.now <= 0.05 * (1 + 2 + 4)


@pytest.mark.parametrize("code", [SourceCode.UNAVAILABLE, SourceCode.FAILED])
def test_what_does_not_pass_is_not_tried_again(patience: Patience, time: PassingTime, code: SourceCode) -> None:
    with pytest.raises(EvidenceSourceError) as caught:
        patience.until_done(lambda: failing(iter([code])))
    assert (caught.value.code, time.now) == (code, 0.0)


@given(limit=st.floats(0, 20), pause=st.floats(0.01, 10), longest=st.floats(0.01, 10))
def test_no_attempt_begins_behind_the_limit(limit: float, pause: float, longest: float) -> None:
    time = PassingTime()
    patience = Patience(limit_s=limit, pause_s=pause, longest_pause_s=longest, clock=time.clock, sleep=time.sleep)
    begun: list[float] = []

    def attempt() -> None:
        begun.append(time.now)
        raise EvidenceSourceError(SourceCode.BUSY, "no")

    with pytest.raises(EvidenceSourceError) as caught:
        patience.until_done(attempt)
    assert caught.value.code == SourceCode.BUSY
    assert begun[0] == 0.0
    assert begun[-1] <= limit
