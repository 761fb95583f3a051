"""Sources that wait without taking time."""

import pytest

from support.emulated_time import PassingTime
from tresor.identity.sources.patience import Patience


@pytest.fixture
def time() -> PassingTime:
    return PassingTime()


@pytest.fixture
def patience(time: PassingTime) -> Patience:
    return Patience(limit_s=20.0, clock=time.clock, sleep=time.sleep)
