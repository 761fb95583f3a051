"""Section 6 of docs/spec/attestation.md and the code say the same: members, checks, options, limits."""

import argparse
import re

import msgspec
from pages import ROOT, Page

from tresor.attestation import envelope, node
from tresor.attestation.blocks import ReceiptKeyJwk
from tresor.attestation.codes import AttestationCode
from tresor.cli import verify_attest
from tresor.trust.errors import TrustCode

SPEC = Page(ROOT / "docs" / "spec" / "attestation.md")


def bare(rows: list[list[str]], column: int = 0) -> list[str]:
    return [row[column].strip("`") for row in rows]


def test_members_of_the_envelope() -> None:
    rows = SPEC.table("Member", "Required", number="6.1")
    members = {field.name: "yes" if field.required else "no" for field in msgspec.structs.fields(envelope.Envelope)}
    assert {row[0].strip("`"): row[1] for row in rows} == members
    key = next(row[2] for row in rows if row[0] == "`receipt_key`")
    assert tuple(re.findall(r"`(\w+)`", key)) == ReceiptKeyJwk.__struct_fields__
    assert f"at most {envelope.MAX_ENVELOPE_BYTES} bytes" in SPEC.section("6.1")


def test_checks_and_their_codes() -> None:
    source = (ROOT / "src" / "tresor" / "attestation" / "node.py").read_text()
    named = {name for row in SPEC.table("Check", "Codes", number="6.4") for name in re.findall(r"`(\w+)`", row[0])}
    made = set(re.findall(r'(?:passed|failed)\("(\w+)"', source)) | set(
        re.findall(r'^        \("(\w+)", demands', source, re.MULTILINE)
    )
    assert made - {"evidence", "binding"} <= named
    assert named <= made | {"envelope", "trust_bundle"}
    codes = {c for row in SPEC.table("Check", "Codes", number="6.4") for c in re.findall(r"`(\w+)`", row[1])}
    assert codes <= {*AttestationCode, *TrustCode}
    assert f"at most {node.CLOCK_SKEW.seconds} seconds ahead" in SPEC.section("6.4")


def test_options_of_the_verifier() -> None:
    parser = argparse.ArgumentParser()
    verify_attest.add_arguments(parser)
    options = [
        f"{action.option_strings[-1]} {action.metavar or ''}".strip()
        for action in parser._actions
        if action.dest != "help"
    ]
    assert bare(SPEC.table("Option", number="6.4")) == options
