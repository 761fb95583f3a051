"""What an NVIDIA vector is: a `Case`, and the folder that it becomes."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from support.fake_nvidia import AT, NONCE

__all__ = ["Case", "write_case"]

Outcome = Literal["accepted", "rejected", "undecided"]
_FORMATS: Final = {"report": "nvidia-gpu-report", "list": "nvidia-gpu-evidence", "eat": "nvidia-nras-eat"}
_ENDINGS: Final = {"report": "bin", "list": "json", "eat": "json"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Evidence, what it is held against, and the verdict.

    Attributes:
        name: number and what is wrong, as the folder is called.
        spec: section of docs/spec/attestation.md that decides.
        code: why it is not accepted; None where it is.
        claim: what is said of `gpu_tee`.
        certificates: PEM text; likewise `rims`, `ocsp` and `jwks`, one document each.
    """

    name: str
    title: str
    spec: str
    kind: Literal["report", "list", "eat"]
    evidence: bytes
    outcome: Outcome
    claim: Literal["proven", "refuted", "unknown"]
    code: str | None = None
    at: datetime = AT
    policy: dict[str, Any] | None = None
    nonce: bytes | None = NONCE
    certificates: bytes = b""
    rims: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()
    jwks: tuple[bytes, ...] = ()


def write_case(case: Case, root: Path) -> None:
    """Write the folder of a case."""
    folder = root / case.name
    folder.mkdir()
    files = {f"evidence.{_ENDINGS[case.kind]}": case.evidence}
    collateral: dict[str, list[str]] = {}
    for member, ending, documents in (
        ("certificates", "pem", (case.certificates,) if case.certificates else ()),
        ("rims", "xml", case.rims),
        ("ocsp_responses", "der", case.ocsp),
        ("jwks", "json", case.jwks),
    ):
        named = {f"{member}-{number}.{ending}": data for number, data in enumerate(documents)}
        files |= named
        if named:
            collateral[member] = list(named)
    manifest = {
        "title": case.title,
        "spec": case.spec,
        "expect": {"outcome": case.outcome, "code": case.code, "gpu_tee": case.claim},
        "verify_at": case.at.isoformat(),
        "format": _FORMATS[case.kind],
        "evidence": next(iter(files)),
        "collateral": collateral,
        "policy": case.policy or {},
        "nonce": None if case.nonce is None else case.nonce.hex(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
