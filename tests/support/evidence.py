"""Evidence of real hardware for the tests: copies under tests/vectors/evidence, the rest beside the checkout."""

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

__all__ = ["facts", "sample", "verify_at"]

_COPIES = Path(__file__).parents[1] / "vectors" / "evidence"
_BESIDE = Path(__file__).parents[3] / "shared" / "evidence"


def sample(name: str) -> Path:
    """Return the folder of a sample such as `snp/milan-v3-vcek`; skip the test where its licence keeps it elsewhere."""
    for home in (_COPIES, _BESIDE):
        if (home / name).is_dir():
            return home / name
    pytest.skip(f"{name} is not copied into the project, and there is no {_BESIDE} beside it")


def facts(name: str) -> dict[str, Any]:
    """Return what is known to be true about a sample."""
    known: dict[str, Any] = msgspec.json.decode((sample(name) / "facts.json").read_bytes())
    return known


@cache
def verify_at(name: str) -> datetime:
    """Return the instant at which the verdict of a sample holds."""
    return datetime.fromisoformat(facts(name)["verify_at"])
