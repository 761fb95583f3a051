"""Fixtures of the tests that run the real program; `support` says how to use them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from support.certificates import Tls, make_tls
from support.emulated_time import PassingTime
from support.router import LAST, Router, UpstreamEntry, chat, new_state, running_router, wait_until
from support.upstream import Upstream
from tresor.identity.sources.patience import Patience
from tresor.routing.health import BreakerPolicy

ALPHA_KEY = "alpha-secret-5f1d"


class StartRouter(Protocol):
    def __call__(
        self,
        upstreams: Sequence[UpstreamEntry],
        *,
        tls: Tls | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Router: ...


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def _alpha() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def _beta() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def alpha(_alpha: Upstream) -> Upstream:
    """The first candidate, fresh."""
    _alpha.reset()
    return _alpha


@pytest.fixture
def beta(_beta: Upstream) -> Upstream:
    """The second candidate, fresh."""
    _beta.reset()
    return _beta


@pytest.fixture(scope="session")
def _router(tmp_path_factory: pytest.TempPathFactory, tls: Tls, _alpha: Upstream, _beta: Upstream) -> Iterator[Router]:
    at_alpha: dict[str, str | Mapping[str, Any]] = {
        "m": "alpha-m",
        "solo": "alpha-solo",
        "embed": {"upstream_name": "alpha-embed", "type": "embedding"},
        "whisper": {"upstream_name": "alpha-whisper", "type": "transcription"},
    }
    entries = [
        UpstreamEntry(_alpha, "alpha", "eu", at_alpha, {"api_key_env": "ALPHA_KEY"}),
        UpstreamEntry(_beta, "beta", "us", {"m": "beta-m"}, LAST),
    ]
    folder = tmp_path_factory.mktemp("router")
    with running_router(folder, entries, tls=tls, environment={"ALPHA_KEY": ALPHA_KEY}) as router:
        yield router


@pytest.fixture
def router(_router: Router, alpha: Upstream, beta: Upstream) -> Router:
    """The router of this test process; both upstreams are fresh."""
    return _router


@pytest.fixture
def steady_router(router: Router, alpha: Upstream, beta: Upstream) -> Router:
    """The same, and its circuit breakers hold nothing against either upstream, whatever earlier tests did to them."""
    with router.connect() as wire:
        for mine, other in (("eu/alpha/m", "us/beta/m"), ("us/beta/m", "eu/alpha/m")):

            def serves(body: bytes = chat(mine, failover=[other])) -> bool:
                answer = wire.ask("POST", "/v1/chat/completions", key=router.key, body=body)
                return answer.json["tresor"]["failover"] is False

            wait_until(serves, f"{mine} rests no more")
            assert all(serves() for _ in range(BreakerPolicy().window))
    alpha.reset()
    beta.reset()
    return router


@pytest.fixture(scope="session")
def other_key(_router: Router) -> str:
    """An API key of another customer of that router."""
    return new_state(_router.config, "other")


@pytest.fixture
def start_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRouter]:
    """Start routers with settings of their own; they are stopped behind the test."""
    with ExitStack() as stack:

        def start(
            upstreams: Sequence[UpstreamEntry],
            *,
            tls: Tls | None = None,
            settings: Mapping[str, Mapping[str, Any]] | None = None,
            environment: Mapping[str, str] | None = None,
        ) -> Router:
            folder: Path = tmp_path_factory.mktemp("router")
            return stack.enter_context(
                running_router(folder, upstreams, tls=tls, settings=settings, environment=environment)
            )

        yield start


@pytest.fixture
def time() -> PassingTime:
    """Time that passes only where somebody sleeps."""
    return PassingTime()


@pytest.fixture
def patience(time: PassingTime) -> Patience:
    """Sources that wait without taking time."""
    return Patience(limit_s=20.0, clock=time.clock, sleep=time.sleep)
