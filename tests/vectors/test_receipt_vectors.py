"""Every receipt vector through `verify_receipt` and `tresor-verify`, and all of them through their generator."""

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from tresor.cli.verify import main
from tresor.errors import ReceiptCode, ReceiptError, ReceiptMismatchError
from tresor.jose.jwk import parse_jwks
from tresor.receipts.attested import Trust
from tresor.receipts.verify import parse_receipt, verify_receipt
from tresor.trust.release_root import parse_public_key

VECTORS = Path(__file__).parent / "receipt"


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    receipt: str
    jwks: str
    at: str
    request: str | None = None
    response: str | None = None
    nonce: str | None = None
    release_root: str | None = None
    require: str | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    spec: str
    expect: str
    exit: int
    arguments: Arguments
    also: tuple[str, ...] = ()

    @property
    def codes(self) -> list[str]:
        return [] if self.expect == "accept" else [self.expect, *self.also]


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


def command_line(name: str) -> list[str]:
    arguments = MANIFESTS[name].arguments
    folder = VECTORS / name
    line = ["receipt", f"--jwks={folder / arguments.jwks}", f"--at={arguments.at}"]
    if arguments.request is not None:
        line.append(f"--request={folder / arguments.request}")
    if arguments.response is not None:
        line.append(f"--response={folder / arguments.response}")
    if arguments.nonce is not None:
        line.append(f"--nonce={arguments.nonce}")
    if arguments.release_root is not None:
        line += [f"--release-root={folder / arguments.release_root}", f"--require={arguments.require}"]
    return [*line, str(folder / arguments.receipt)]


@every_vector
def test_verify_receipt(name: str) -> None:
    manifest, folder = MANIFESTS[name], VECTORS / name
    arguments = manifest.arguments

    def read(file: str | None) -> bytes | None:
        return None if file is None else (folder / file).read_bytes()

    trust = None
    if (root := read(arguments.release_root)) is not None:
        trust = Trust(release_root=parse_public_key(root), require=frozenset((arguments.require or "").split(",")))
    first, codes = "accept", list[str]()
    try:
        verify_receipt(
            parse_receipt((folder / arguments.receipt).read_bytes()),
            parse_jwks((folder / arguments.jwks).read_bytes()),
            now=datetime.fromisoformat(arguments.at),
            request=read(arguments.request),
            response=read(arguments.response),
            nonce=arguments.nonce,
            trust=trust,
        )
    except ReceiptMismatchError as error:
        first, codes = error.code, [finding.code for finding in error.findings if finding.code is not None]
    except ReceiptError as error:
        first, codes = error.code, [error.code]
    assert (first, codes) == (manifest.expect, manifest.codes)


@every_vector
def test_program_says_it_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = MANIFESTS[name]
    assert main([*command_line(name), "--json"]) == manifest.exit
    out, err = capsys.readouterr()
    report = msgspec.json.decode(out)
    assert err == ""
    assert report["result"] == ("pass" if manifest.expect == "accept" else "fail")
    assert report["code"] == (None if manifest.expect == "accept" else manifest.expect)
    failed = [check["code"] for check in report["checks"] if check["code"] is not None]
    assert failed == (manifest.codes if report["checks"] else [])
    assert report["not_checked"]
    # What a key of the set did not sign is not shown as the receipt's.
    assert (report["claims"] is None) == (report["kid"] is None) == (report["receipt_type"] is None)
    assert bool(report["checks"]) == (report["claims"] is not None)


@every_vector
def test_program_says_it_to_people(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = MANIFESTS[name]
    assert main(command_line(name)) == manifest.exit
    out, _ = capsys.readouterr()
    first, second, third, *_ = out.splitlines()
    assert first == ("PASS" if manifest.expect == "accept" else f"FAIL  {', '.join(manifest.codes)}")
    assert sum(line.lstrip().startswith("PASS") for line in out.splitlines()) == (manifest.expect == "accept")
    assert "Not checked:" in out
    if "Checked:" in out:
        assert second.startswith("Receipt type: ")
        assert third.startswith("Key ID: ")
    else:
        assert second.startswith("Reason: ")
    assert set(out) <= {*map(chr, range(ord(" "), ord("~") + 1)), "\n"}


@pytest.mark.parametrize("name", list(MANIFESTS)[::48])
def test_program_itself(name: str) -> None:
    program = Path(sys.executable).with_name("tresor-verify")
    done = subprocess.run([program, *command_line(name)], capture_output=True, text=True, timeout=60, check=False)
    manifest = MANIFESTS[name]
    assert done.returncode == manifest.exit
    assert done.stdout.splitlines()[0].split(maxsplit=1) == (
        ["PASS"] if manifest.expect == "accept" else ["FAIL", ", ".join(manifest.codes)]
    )
    assert done.stderr == ""


def test_every_code_has_its_vector() -> None:
    # A token or an answer of several mebibytes is made where it is tested; no file can be a network.  What else a
    # receipt may be refused for once its evidence is looked at has its vectors with that evidence.
    elsewhere = {ReceiptCode.TOKEN_TOO_LARGE, ReceiptCode.JWKS_UNAVAILABLE, ReceiptCode.HOPS_NOT_DISTINCT}
    assert {code for manifest in MANIFESTS.values() for code in manifest.codes} == set(ReceiptCode) - elsewhere


def test_the_generator_makes_these_very_vectors(tmp_path: Path) -> None:
    made = tmp_path / "receipt"
    generator = Path(__file__).with_name("generate_receipt.py")
    subprocess.run([sys.executable, generator, made], timeout=60, check=True)
    assert _tree(made) == _tree(VECTORS)


def _tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
