"""One receipt vector, and how it is written down."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from receipt_material import AT, JWKS, RELEASE_ROOT, REQUEST, RESPONSE, STREAM, STREAM_REQUEST

__all__ = ["SHARED", "Case", "write_case"]

SHARED: Final = {
    "jwks.json": JWKS,
    "request.json": REQUEST,
    "response.json": RESPONSE,
    "stream-request.json": STREAM_REQUEST,
    "stream-response.sse": STREAM,
    "release-root.pem": RELEASE_ROOT,
}
"""Good inputs, written once beside the folders; a folder holds what is its own."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A receipt, what it is verified with, and the verdict.

    Attributes:
        name: number and what is wrong, as the folder is called.
        title: the same as a sentence.
        spec: section of docs/spec/receipt.md that decides.
        expect: `accept`, or the code of the refusal.
        also: further codes that are reported with it.
        require: hops that must be attested; given with the release root.
    """

    name: str
    title: str
    spec: str
    receipt: bytes
    expect: str = "accept"
    also: tuple[str, ...] = ()
    jwks: bytes = JWKS
    request: bytes | None = None
    response: bytes | None = None
    nonce: str | None = None
    at: str = AT
    require: str | None = None


def write_case(case: Case, root: Path) -> None:
    """Write the folder of a case."""
    folder = root / case.name
    folder.mkdir()
    arguments: dict[str, Any] = {"at": case.at}
    receipt_name = "receipt.json" if case.receipt.lstrip()[:1] == b"{" else "token.txt"
    for argument, name, data in (
        ("receipt", receipt_name, case.receipt),
        ("jwks", "jwks.json", case.jwks),
        ("request", "request.bin", case.request),
        ("response", "response.bin", case.response),
    ):
        if data is None:
            continue
        shared = next((name for name, good in SHARED.items() if data == good), None)
        if shared is None:
            (folder / name).write_bytes(data)
        arguments[argument] = name if shared is None else f"../{shared}"
    if case.nonce is not None:
        arguments["nonce"] = case.nonce
    if case.require is not None:
        arguments |= {"release_root": "../release-root.pem", "require": case.require}
    manifest: dict[str, Any] = {
        "title": case.title,
        "spec": case.spec,
        "expect": case.expect,
        **({"also": list(case.also)} if case.also else {}),
        "exit": 0 if case.expect == "accept" else 1,
        "arguments": arguments,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
