"""docs/operations/release.md and the code say the same: tables, steps, the description, the commands of OpenSSL."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest
from pages import ROOT, Page

from tresor.cli import release_bundle
from tresor.cli.release_bundle import BundleDescription
from tresor.cli.release_io import _MIN_PASSPHRASE_BYTES
from tresor.trust import bundle
from tresor.trust.bundle import MAX_VALIDITY, REGISTER_BYTES, TCB_COMPONENTS, VENDORS, BundleClaims
from tresor.trust.compact import BUNDLE, MANIFEST
from tresor.trust.errors import TrustCode
from tresor.trust.manifest import ManifestClaims
from tresor.trust.release_root import encode_public_pem, parse_public_key

RELEASE = Page(ROOT / "docs" / "operations" / "release.md")
VECTORS = ROOT / "tests" / "vectors" / "trust"


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_codes() -> None:
    assert [row[0].strip("`") for row in RELEASE.table("Code")] == list(TrustCode)


def test_kinds() -> None:
    rows = {row[0]: (row[1].strip("`"), int(row[2])) for row in RELEASE.table("Kind")}
    assert rows == {
        "trust bundle": (BUNDLE.typ, BUNDLE.max_chars),
        "workload identity manifest": (MANIFEST.typ, MANIFEST.max_chars),
    }


@pytest.mark.parametrize(
    ("head", "section", "struct"),
    [("Claim", "4", ManifestClaims), ("Member", "5.1", BundleClaims), ("Member", "7", BundleDescription)],
)
def test_members(head: str, section: str, struct: type[msgspec.Struct]) -> None:
    assert [row[0].strip("`") for row in RELEASE.table(head, number=section)] == list(struct.__struct_fields__)


def test_members_of_a_description_mean_what_the_code_says() -> None:
    source = ast.parse(Path(release_bundle.__file__).read_text())
    (struct,) = (
        node for node in source.body if isinstance(node, ast.ClassDef) and node.name == BundleDescription.__name__
    )
    meanings = {
        ast.unparse(member.target): str(below.value.value)
        for member, below in zip(struct.body, struct.body[1:], strict=False)
        if isinstance(member, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
    assert {row[0].strip("`"): row[1] for row in RELEASE.table("Member", number="7")} == meanings


def test_registers() -> None:
    sizes: dict[str, int] = {}
    for names, size, _ in RELEASE.table("Register", number="5.1"):
        for first, last in re.findall(r"`(\w+)`(?: to `\w*?(\d+)`)?", names):
            stem = first.rstrip("0123456789") if last else first
            sizes |= dict.fromkeys(
                [f"{stem}{number}" for number in range(int(last) + 1)] if last else [first], int(size)
            )
    assert sizes == REGISTER_BYTES


def test_products() -> None:
    rows = RELEASE.table("Product", number="5.1")
    assert {product: set(words(row[1])) for row in rows for product in words(row[0])} == {
        product: set(components) for product, components in TCB_COMPONENTS.items()
    }


def test_vendors_and_numbers() -> None:
    (vendors,) = re.findall(r"Vendors in `hw_roots` are (.*)\.", RELEASE.section("5.1"))
    assert set(words(vendors.partition(". ")[0])) == VENDORS
    assert f"at most {MAX_VALIDITY.days} days later" in RELEASE.text
    assert f"may be {bundle.CLOCK_SKEW.seconds} seconds behind" in RELEASE.text
    assert f"at least {_MIN_PASSPHRASE_BYTES} characters" in " ".join(RELEASE.text.split())
    assert f"valid for {release_bundle._DEFAULT_DAYS} days unless" in RELEASE.text


def test_steps_are_those_of_the_code() -> None:
    steps = re.findall(r"^(\d)\. ", RELEASE.section("5.2"), re.MULTILINE)
    marks = re.findall(r"#(?: \(\d\))+$|\(step \d\)", Path(bundle.__file__).read_text(), re.MULTILINE)
    assert {number for mark in marks for number in re.findall(r"\d", mark)} == set(steps)


def test_sections_that_the_code_and_the_vectors_cite_are_there() -> None:
    cited = {
        number
        for path in (ROOT / "src" / "tresor").rglob("*.py")
        for number in re.findall(r"docs/operations/release\.md, section (\d(?:\.\d)?)", path.read_text())
    }
    cited |= {msgspec.json.decode(path.read_bytes())["spec"] for path in VECTORS.glob("*/manifest.json")}
    assert len(cited) > 5
    for number in cited:
        assert RELEASE.section(number)


def test_the_description_is_one() -> None:
    description = msgspec.convert(tomllib.loads(RELEASE.examples()["description"]), BundleDescription)
    assert set(description.min_tcb) <= set(TCB_COMPONENTS)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is not installed")
def test_openssl_verifies_a_bundle_as_the_page_says(tmp_path: Path) -> None:
    token = (VECTORS / "bundle.jws").read_bytes()
    (tmp_path / "release-root.pub.pem").write_bytes(
        encode_public_pem(parse_public_key((VECTORS / "root.jwk").read_bytes()))
    )

    def run() -> int:
        commands = ["bash", "-ec", RELEASE.examples()["openssl"]]
        return subprocess.run(commands, cwd=tmp_path, capture_output=True, timeout=30, check=False).returncode

    (tmp_path / "bundle-2.jws").write_bytes(token)
    assert run() == 0
    (tmp_path / "bundle-2.jws").write_bytes(token.replace(b".", b"A.", 1))
    assert run() != 0
