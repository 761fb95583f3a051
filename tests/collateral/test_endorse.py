"""What was fetched before is used whether or not anybody is asked now."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from support.fake_nvidia import GPU
from tresor.attestation.evidence import Collateral, CollateralKind, Need
from tresor.collateral.cache import CollateralCache
from tresor.collateral.endorse import endorser

KEPT: Final = Need(kind=CollateralKind.CERTIFICATE, url="https://kdsintf.amd.com/kept")
GONE: Final = Need(kind=CollateralKind.CERTIFICATE, url="https://127.0.0.1:1/gone")
VCEK: Final = GPU.leaf.der


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    CollateralCache(tmp_path).put(KEPT, (VCEK,), now=datetime.now(UTC))
    return tmp_path


def kept(held: Collateral) -> tuple[Need, ...]:
    return () if held.certificates else (KEPT,)


def test_without_a_network_what_is_kept_is_used(directory: Path) -> None:
    endorse = endorser(directory, online=False)
    assert endorse(kept, Collateral()).certificates == (VCEK,)
    assert endorse(lambda _: (GONE,), Collateral()) == Collateral()


def test_while_the_network_rests_what_is_kept_is_used(directory: Path) -> None:
    endorse = endorser(directory, online=True)
    assert endorse(lambda _: (GONE,), Collateral()) == Collateral()
    assert endorse(kept, Collateral()).certificates == (VCEK,)


def test_without_a_directory_there_is_nothing() -> None:
    assert endorser(None, online=False)(kept, Collateral()) == Collateral()
