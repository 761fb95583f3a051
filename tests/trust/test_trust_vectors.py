"""Every trust vector through the library and, as far as it has the options, through `tresor release inspect`."""

import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from tresor.cli.release import run
from tresor.cli.release_bundle import pinned_fingerprints
from tresor.trust.bundle import check_hw_roots, check_measurements, parse_bundle, verify_bundle, verify_manifest
from tresor.trust.errors import TrustCode, TrustError
from tresor.trust.manifest import parse_manifest
from tresor.trust.release_root import parse_public_key

VECTORS = Path(__file__).parents[1] / "vectors" / "trust"


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    outcome: Literal["accepted", "rejected"]
    code: str | None


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    root: str
    bundle: str
    manifest: str | None = None


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    min_version: int = 0
    known_digest: str | None = None
    workload: str | None = None
    allow_simulated: bool = False


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    spec: str
    kind: Literal["bundle", "manifest"]
    expect: Expect
    verify_at: datetime
    arguments: Arguments
    options: Options = Options()
    measured: dict[str, str] | None = None


def load_vectors() -> dict[str, Manifest]:
    found = {
        path.parent.name: msgspec.json.decode(path.read_bytes(), type=Manifest)
        for path in sorted(VECTORS.glob("*/manifest.json"))
    }
    if not found:
        raise FileNotFoundError(f"no vector below {VECTORS}")
    return found


MANIFESTS = load_vectors()
every_vector = pytest.mark.parametrize("name", MANIFESTS)


def verdict(name: str) -> TrustCode | None:
    """Return the code with which a case is refused, or None."""
    case, folder = MANIFESTS[name], VECTORS / name
    try:
        bundle = verify_bundle(
            parse_bundle((folder / case.arguments.bundle).read_bytes()),
            parse_public_key((folder / case.arguments.root).read_bytes()),
            now=case.verify_at,
            min_version=case.options.min_version,
            known_digest=case.options.known_digest,
            workload=case.options.workload,
            allow_simulated=case.options.allow_simulated,
        )
        check_hw_roots(bundle, pinned_fingerprints())
        if case.measured is not None:
            check_measurements(bundle, case.measured)
        if case.arguments.manifest is not None:
            verify_manifest(parse_manifest((folder / case.arguments.manifest).read_bytes()), bundle)
    except TrustError as error:
        return error.code
    return None


@every_vector
def test_library(name: str) -> None:
    expect = MANIFESTS[name].expect
    assert verdict(name) == expect.code
    assert (expect.code is None) == (expect.outcome == "accepted")


def for_the_program(case: Manifest) -> bool:
    return case.measured is None and case.options.known_digest is None and case.options.workload is None


# Refused by the library under the other kind's name; `inspect` takes the file for what it says it is.
OF_THE_OTHER_KIND = {"253-typ-manifest", "286-manifest-is-bundle", "281-manifest-typ-bundle"}
# `inspect` reads tokens as an editor leaves them, keys by their first bytes, and an empty file as no token.
READ_OTHERWISE = {"254-typ-bundle-as-manifest", "121-flattened-json", "122-several-signatures"}
FOR_THE_PROGRAM = [
    name for name, case in MANIFESTS.items() if for_the_program(case) and name not in OF_THE_OTHER_KIND | READ_OTHERWISE
]


@pytest.mark.parametrize("name", FOR_THE_PROGRAM)
def test_program(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case, folder = MANIFESTS[name], VECTORS / name
    line = [f"--release-root={folder / case.arguments.root}", f"--at={case.verify_at.isoformat()}"]
    if case.options.min_version:
        line.append(f"--min-version={case.options.min_version}")
    if case.options.allow_simulated:
        line.append("--allow-simulated")
    if case.arguments.manifest is not None:
        line.append(f"--bundle={folder / case.arguments.bundle}")
    file = folder / (case.arguments.manifest or case.arguments.bundle)
    assert run(["release", "inspect", "--json", *line, str(file)]) == (0 if case.expect.code is None else 1)
    out, err = capsys.readouterr()
    report = msgspec.json.decode(out)
    assert err == ""
    assert (report["outcome"], report["code"]) == (case.expect.outcome, case.expect.code)
    # What the root did not sign is not shown as anybody's word.
    assert report["genuine"] == (report["content"] is not None)

    run(["release", "inspect", *line, str(file)])
    out, _ = capsys.readouterr()
    assert out.splitlines()[0] == ("PASS" if case.expect.code is None else f"FAIL  {case.expect.code}")
    assert set(out) <= {*map(chr, range(ord(" "), ord("~") + 1)), "\n"}
    assert ("\nSIMULATED: " in out) == report["simulated"]


def test_the_program_has_seen_most_of_them() -> None:
    assert len(FOR_THE_PROGRAM) > 0.85 * len(MANIFESTS)


def test_every_code_has_its_vector() -> None:
    # A token of more than a mebibyte and a private key are made where they are tested.
    elsewhere = {TrustCode.TOKEN_TOO_LARGE, TrustCode.PASSPHRASE_WRONG}
    assert {case.expect.code for case in MANIFESTS.values()} - {None} == set(TrustCode) - elsewhere


def test_the_generator_makes_these_very_vectors(tmp_path: Path) -> None:
    made = tmp_path / "trust"
    subprocess.run([sys.executable, VECTORS.with_name("generate_trust.py"), made], timeout=60, check=True)
    assert tree(made) == tree(VECTORS)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
