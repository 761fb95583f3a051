"""Every page: links, paths, commands; and the README's promises, its verification in ten lines among them."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from pages import PAGES, ROOT, Page, slug, source_files

from support.ceremony import simulated_ceremony
from support.certificates import Tls
from support.router import Router, UpstreamEntry, chat, running_router, tresor
from support.upstream import Upstream
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


@pytest.fixture
def both_hops(tmp_path: Path, tls: Tls) -> Iterator[tuple[Router, Router, list[str]]]:
    """A simulated router before another one, and the options by which `tresor-verify` trusts both."""
    (tmp_path / "router").mkdir()
    (tmp_path / "inference").mkdir()
    ours = simulated_ceremony(tmp_path / "router")
    theirs = simulated_ceremony(tmp_path / "inference", workload="inference")
    key_file = tmp_path / "their.key"
    with Upstream() as model, ExitStack() as routers:
        their_settings = {"identity": theirs.identity()}
        inference = routers.enter_context(
            running_router(tmp_path / "inference", [UpstreamEntry(model)], tls=tls, settings=their_settings)
        )
        key_file.write_text(inference.key)
        attested = {
            "attestation": "tresor",
            "release_root_file": str(theirs.root_file),
            "allow_simulated": True,
            "ca_file": str(tls.ca_file),
            "api_key_file": str(key_file),
        }
        entry = UpstreamEntry(inference.base_url, "embedded", models={"m": "m"}, settings=attested)
        our_settings = {"identity": ours.identity()}
        router = routers.enter_context(running_router(tmp_path / "router", [entry], tls=tls, settings=our_settings))
        trust = [f"--release-root={ours.root_file}", f"--inference-release-root={theirs.root_file}"]
        yield router, inference, [*trust, "--require=router,inference", "--allow-simulated"]


def test_the_receipt_shown_is_one_and_so_is_the_verdict(
    both_hops: tuple[Router, Router, list[str]], tmp_path: Path
) -> None:
    shown = README.examples()
    claims = parse_claims(shown["receipt"].encode())
    assert claims.outcome == "complete"
    for value in (claims.jti, claims.iss, claims.requested_route, claims.routed_model, claims.request_digest):
        assert str(value) in shown["verdict"]

    router, _, trust = both_hops
    request = chat()
    answer = router.complete(request)
    receipt = router.ask("GET", f"/v1/receipts/{answer.receipt_id}?include=evidence", key=router.key).body
    payload = msgspec.json.decode(parse_compact(msgspec.json.decode(receipt)["receipt"]).payload)
    example = msgspec.json.decode(shown["receipt"])
    assert list(payload) == list(example)
    for block in ("router_attestation", "inference_attestation"):
        assert list(payload[block]) == list(example[block])
        assert [payload[block]["tee"], payload[block]["evidence"][0]["type"]] == [
            example[block]["tee"],
            example[block]["evidence"][0]["type"],
        ]
    for name, data in (("q", request), ("a", answer.body), ("r", receipt)):
        (tmp_path / name).write_bytes(data)
    bodies = ("--request", tmp_path / "q", "--response", tmp_path / "a", tmp_path / "r")
    verdict = tresor("receipt", *trust, *bodies, module="verify")
    assert verdict.exit_code == 0, verdict

    def skeleton(text: str) -> list[tuple[str, str]]:
        return re.findall(r"^(?:  (ok|-) +)?([\w:]+(?: \w+)*)", text, re.MULTILINE)

    assert skeleton(verdict.out) == skeleton(shown["verdict"])


def test_the_evidence_shown_is_judged_so() -> None:
    (line,) = (line for code in README.blocks("sh") for line in code.splitlines() if "tresor-verify evidence" in line)
    words = line.split()[1:]
    *options, folder = words
    done = tresor(*options, ROOT / folder, module="verify")
    assert done.exit_code == 0
    printed = iter(done.out.splitlines())
    for shown in README.examples()["evidence"].splitlines():
        assert shown.strip() == "…" or shown in printed, shown


def test_what_the_demo_prints_first() -> None:
    source = (ROOT / "src" / "tresor" / "demo" / "demo.py").read_text()
    said = re.findall(r'_say\("(.*)"\)', source)
    assert README.examples()["demo"].splitlines() == [f"tresor demo: {what}" for what in said if what != "stopping"]


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
