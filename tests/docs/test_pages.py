"""Every page: links, paths, commands; and the README's promises, its verification in ten lines among them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from pages import PAGES, ROOT, Page, slug, source_files

from support.certificates import Tls
from support.router import Router, chat, tresor
from tresor.app.options import CLAIM_NAMES, parse_options
from tresor.jose.jws import parse_compact
from tresor.limits import Limits
from tresor.receipts.claims import parse_claims

README = Page(ROOT / "README.md")
CONTRIBUTING = Page(ROOT / "CONTRIBUTING.md")
MADE_LATER = {"docs/performance.md", ".tresor", ".venv"}  # by `make bench` and `make demo`


def test_all_pages_are_here() -> None:
    names = {str(page) for page in PAGES}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LIMITATIONS.md"} <= names
    assert {"docs/spec/receipt.md", "docs/spec/http-api.md", "docs/operations/configuration.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links():
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        path = (page.path.parent / target).resolve() if target else page.path
        if str(path.relative_to(ROOT)) in MADE_LATER:
            continue
        assert path.is_file(), link
        if anchor:
            assert anchor in map(slug, Page(path).headings()), link


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_lead_somewhere(page: Page) -> None:
    for path in re.findall(r"`((?:src|tests|docs|bench|requirements|\.ci)/[\w./-]*)`", page.prose):
        assert path in MADE_LATER or (ROOT / path).exists(), path


def test_pages_that_the_code_cites_are_here() -> None:
    cited = {
        path
        for source in [*source_files(), ROOT / "pyproject.toml"]
        for path in re.findall(r"\bdocs/[\w/-]+\.md", source.read_text())
    }
    assert len(cited) > 3
    assert {path for path in cited if not (ROOT / path).is_file()} == set()


def test_decisions_are_listed() -> None:
    index = Page(ROOT / "docs" / "adr" / "README.md")
    files = sorted(path.name for path in index.path.parent.glob("0*.md"))
    assert index.links() == files
    for row, name in zip(index.table(""), files, strict=True):
        assert Page(index.path.parent / name).headings() == [
            f"{name[:4]}: {row[1]}",
            "Context",
            "Options",
            "Choice",
            "Price",
        ]


# README


def test_ten_lines_verify_a_receipt_of_the_router(router: Router, tls: Tls, tmp_path: Path) -> None:
    (code,) = README.blocks("python")
    assert len(code.replace("\n\n", "\n").splitlines()) == 10
    folder = tmp_path / ".tresor"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(tls.ca_file.read_bytes())
    request = chat()
    answer = router.complete(request)
    receipt = router.receipt(answer.receipt_id)
    for name, data in (("request", request), ("response", answer.body), ("receipt", receipt)):
        (folder / f"{name}.json").write_bytes(data)

    def run() -> subprocess.CompletedProcess[str]:
        program = code.replace("https://localhost:8443", router.origin)
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("request", "response"):
        whole = (folder / f"{name}.json").read_bytes()
        (folder / f"{name}.json").write_bytes(whole + b"\n")
        assert f"AssertionError: {name}" in run().stderr
        (folder / f"{name}.json").write_bytes(whole)


def test_the_receipt_shown_is_one_and_so_is_the_verdict(router: Router, tls: Tls, tmp_path: Path) -> None:
    shown = README.examples()
    claims = parse_claims(shown["receipt"].encode())
    assert claims.outcome == "complete"
    for value in (claims.jti, claims.iss, claims.requested_route, claims.routed_model, claims.request_digest):
        assert str(value) in shown["verdict"]

    request = chat()
    answer = router.complete(request)
    token = msgspec.json.decode(router.receipt(answer.receipt_id))["receipt"]
    assert list(msgspec.json.decode(parse_compact(token).payload)) == list(msgspec.json.decode(shown["receipt"]))
    for name, data in (("q", request), ("a", answer.body), ("r", router.receipt(answer.receipt_id))):
        (tmp_path / name).write_bytes(data)
    verdict = tresor(
        "receipt",
        *("--ca-file", tls.ca_file, "--jwks-url", f"{router.origin}/.well-known/jwks.json"),
        *("--request", tmp_path / "q", "--response", tmp_path / "a", tmp_path / "r"),
        module="verify",
    )
    assert verdict.exit_code == 0

    def skeleton(text: str) -> list[tuple[str, str]]:
        return re.findall(r"^(?:  (ok|-) +)?(\w+(?: \w+)*)", text, re.MULTILINE)

    assert skeleton(verdict.out) == skeleton(shown["verdict"])


def test_headers_of_the_readme_are_understood() -> None:
    for row in README.table("Header of a request"):
        name, value = row[0].strip("`").split(": ")
        text = next(iter(CLAIM_NAMES)) if name.endswith("Attestation") else value.replace("…", "n")
        assert parse_options({name.lower(): text}, Limits()) != parse_options({}, Limits())


# CONTRIBUTING


def test_ranks_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for contract, name in zip(contracts, ("ranks", "attestation-ranks"), strict=False):
        assert CONTRIBUTING.examples()[name].splitlines() == [
            layer.replace("tresor.", "") for layer in contract["layers"]
        ]


def test_verbs_are_those_of_the_makefile() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert {row[0].strip("`").removeprefix("make ") for row in CONTRIBUTING.table("Verb")} == set(phony[1].split())
    mentioned = {verb for page in PAGES for verb in re.findall(r"\bmake ([a-z]+)\b`", page.text)}
    assert mentioned <= set(phony[1].split())
