"""One Intel TDX vector, and how it is written down."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from support.fake_intel import AT, INTEL

__all__ = ["COLLATERAL", "QUOTE", "SHARED", "Case", "accepted", "rejected", "undecided", "write_case"]

QUOTE: Final = INTEL.quote()
COLLATERAL: Final = INTEL.collateral()
SHARED: Final = {"quote.bin": QUOTE, "collateral.json": COLLATERAL}
"""Good inputs, written once beside the folders; a folder holds what is its own."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A quote, what it is held against, and the verdict.

    Attributes:
        name: number and what is wrong, as the folder is called.
        title: the same as a sentence.
        spec: section of docs/spec/attestation.md that decides.
        outcome: of the appraisal.
        code: why, where it is not accepted.
        dcap: whether dcap-qvl verifies quote and first collateral, apart from any policy; None where it is not asked.
    """

    name: str
    title: str
    spec: str
    outcome: Literal["accepted", "rejected", "undecided"]
    code: str | None
    dcap: bool | None
    quote: bytes = QUOTE
    collateral: tuple[bytes, ...] = (COLLATERAL,)
    event_logs: tuple[bytes, ...] = ()
    at: datetime = AT
    policy: dict[str, Any] | None = None
    exceptions: tuple[dict[str, str], ...] = ()
    report_data: bytes | None = None
    nonce: bytes | None = None


def accepted(name: str, title: str, spec: str, *, dcap: bool | None = True, **inputs: Any) -> Case:
    """Make a case that is accepted, by dcap-qvl too where nothing else is said."""
    return Case(name=name, title=title, spec=spec, outcome="accepted", code=None, dcap=dcap, **inputs)


def rejected(name: str, title: str, spec: str, code: str, *, dcap: bool | None = False, **inputs: Any) -> Case:
    """Make a case that is rejected, by dcap-qvl too where nothing else is said."""
    return Case(name=name, title=title, spec=spec, outcome="rejected", code=code, dcap=dcap, **inputs)


def undecided(name: str, title: str, spec: str, code: str, *, dcap: bool | None = None, **inputs: Any) -> Case:
    """Make a case that cannot be decided."""
    return Case(name=name, title=title, spec=spec, outcome="undecided", code=code, dcap=dcap, **inputs)


def write_case(case: Case, root: Path) -> None:
    """Write the folder of a case."""
    folder = root / case.name
    folder.mkdir()

    def write(name: str, data: bytes) -> str:
        shared = next((known for known, good in SHARED.items() if data == good), None)
        if shared is None:
            (folder / name).write_bytes(data)
        return name if shared is None else f"../{shared}"

    manifest: dict[str, Any] = {
        "title": case.title,
        "spec": case.spec,
        "expect": {"outcome": case.outcome, "code": case.code, "dcap_qvl": case.dcap},
        "verify_at": case.at.isoformat(),
        "quote": write("quote.bin", case.quote),
        "collateral": [write(f"collateral-{index}.json", data) for index, data in enumerate(case.collateral)],
        "event_logs": [write(f"event-log-{index}.bin", data) for index, data in enumerate(case.event_logs)],
        "policy": case.policy or {},
        "exceptions": list(case.exceptions),
        "report_data": None if case.report_data is None else case.report_data.hex(),
        "nonce": None if case.nonce is None else case.nonce.hex(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
