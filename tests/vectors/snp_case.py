"""One SEV-SNP vector, and how it is written down."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from support.fake_amd import AT

__all__ = ["Case", "Inputs", "write_case"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A report and what it is held against.

    Attributes:
        roots: product line to the DER of its ARK; without it AMD's own are pinned.
    """

    report: bytes
    certificates: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    roots: Mapping[str, bytes] | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    report_data: bytes | None = None
    nonce: bytes | None = None
    at: datetime = AT


@dataclass(frozen=True)
class Case:
    """Inputs, made when they are wanted, and their verdict.

    Attributes:
        name: number and what is wrong, as the folder is called.
        title: the same as a sentence.
        inputs: makes them.
        not_ok: checks that do not hold, each with its code, in order; all of them.
        outcome: `accepted`, `rejected` or `undecided`.
    """

    name: str
    title: str
    inputs: Callable[[], Inputs]
    not_ok: tuple[tuple[str, str], ...] = ()
    outcome: str = "rejected"

    @property
    def spec(self) -> str:
        """Section of docs/spec/attestation.md that decides: well-formed, genuine, acceptable."""
        return {"0": "5.1", "1": "5.1.1", "5": "5.1.3", "6": "5.1.3"}.get(self.name[0], "5.1.2")


def write_case(case: Case, root: Path) -> None:
    """Write the folder of a case."""
    folder = root / case.name
    folder.mkdir()
    inputs = case.inputs()
    files: dict[str, list[str]] = {"certificates": [], "crls": []}
    (folder / "report.bin").write_bytes(inputs.report)
    for kind, documents in (("certificates", inputs.certificates), ("crls", inputs.crls)):
        for number, document in enumerate(documents):
            name = f"{kind}-{number}.der"
            (folder / name).write_bytes(document)
            files[kind].append(name)
    roots = None if inputs.roots is None else {product: f"ark-{product}.der" for product in inputs.roots}
    for product, der in (inputs.roots or {}).items():
        (folder / f"ark-{product}.der").write_bytes(der)
    manifest = {
        "title": case.title,
        "spec": case.spec,
        "expect": {"outcome": case.outcome, "not_ok": case.not_ok},
        "verify_at": inputs.at.isoformat(),
        "report": "report.bin",
        **files,
        "roots": roots,
        "policy": inputs.policy,
        "report_data": None if inputs.report_data is None else inputs.report_data.hex(),
        "nonce": None if inputs.nonce is None else inputs.nonce.hex(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
