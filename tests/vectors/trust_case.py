"""One trust vector, and how it is written down."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from trust_material import AT, GOOD_BUNDLE, GOOD_MANIFEST, ROOT_JWK

__all__ = ["SHARED", "Case", "write_case"]

SHARED: Final = {"root.jwk": ROOT_JWK, "bundle.jws": GOOD_BUNDLE, "manifest.jws": GOOD_MANIFEST}
"""Good inputs, written once beside the folders; a folder holds what is its own."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A bundle, or a manifest under a bundle, what it is verified with, and the verdict.

    Attributes:
        name: number and what is wrong, as the folder is called.
        title: the same as a sentence.
        spec: section of docs/operations/release.md that decides.
        kind: what is verified.
        code: the code of the refusal; None where it is accepted.
        at: instant of verification.
        options: further arguments of `verify_bundle`.
        measured: registers to hold against a bundle in force.
    """

    name: str
    title: str
    spec: str
    kind: Literal["bundle", "manifest"] = "bundle"
    code: str | None
    bundle: bytes = GOOD_BUNDLE
    manifest: bytes = GOOD_MANIFEST
    root: bytes = ROOT_JWK
    at: str = AT
    options: dict[str, Any] | None = None
    measured: dict[str, str] | None = None


def write_case(case: Case, root: Path) -> None:
    """Write the folder of a case."""
    folder = root / case.name
    folder.mkdir()
    files = {"root": ("root.jwk", case.root), "bundle": ("bundle.jws", case.bundle)}
    if case.kind == "manifest":
        files["manifest"] = ("manifest.jws", case.manifest)
    arguments: dict[str, Any] = {}
    for argument, (name, data) in files.items():
        if data == SHARED[name]:
            arguments[argument] = f"../{name}"
        else:
            (folder / name).write_bytes(data)
            arguments[argument] = name
    manifest = {
        "title": case.title,
        "spec": case.spec,
        "kind": case.kind,
        "expect": {"outcome": "accepted" if case.code is None else "rejected", "code": case.code},
        "verify_at": case.at,
        "arguments": arguments,
        **({} if case.options is None else {"options": case.options}),
        **({} if case.measured is None else {"measured": case.measured}),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
