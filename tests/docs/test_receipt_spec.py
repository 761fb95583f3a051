"""docs/spec/receipt.md and the code say the same: tables, vocabularies, limits and the example, byte by byte."""

import argparse
import hashlib
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from tresor.attestation import envelope
from tresor.attestation.blocks import MAX_EVIDENCE, InferenceAttestation, RouterAttestation, Tee
from tresor.cli.reporting import ExitCode
from tresor.cli.verify_receipt import add_arguments
from tresor.encodings import base64url_decode, base64url_encode, digest_string
from tresor.errors import AttemptReason, ReceiptCode
from tresor.jose.jwk import Jwk, kid_of, parse_jwks, thumbprint
from tresor.jose.jws import encode_protected_header, parse_compact, verify_compact
from tresor.limits import MAX_JWKS_BYTES, MAX_RECEIPT_BYTES, MAX_TOKEN_BYTES
from tresor.receipts.appraise import CLOCK_SKEW_S
from tresor.receipts.claims import (
    Attempt,
    AttemptOutcome,
    NotChecked,
    Outcome,
    ReceiptClaims,
    ReceiptDraft,
    encode_claims,
    parse_claims,
)

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "docs" / "spec" / "receipt.md").read_text()
VECTORS = ROOT / "tests" / "vectors" / "receipt"
EXAMPLES = dict(re.findall(r"^```\w+ ([\w-]+)\n(.*?)\n```$", SPEC, re.DOTALL | re.MULTILINE))


def section(number: str) -> str:
    found = re.search(rf"^#+ {re.escape(number)}\.? .*?(?=^#|\Z)", SPEC, re.DOTALL | re.MULTILINE)
    assert found is not None, f"the spec has no section {number}"
    return found[0]


def table(number: str, heading: str) -> list[list[str]]:
    """Return the cells of the table of a section whose head begins with `heading`."""
    rows = re.search(rf"^\| {re.escape(heading)} \|.*?\n(\|.*?)(?=\n\n|\Z)", section(number), re.DOTALL | re.MULTILINE)
    assert rows is not None, f"section {number} has no table {heading}"
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" | ")] for row in rows[1].splitlines()[1:]]


def first_column(number: str, heading: str) -> list[str]:
    return [row[0] for row in table(number, heading)]


def test_claims() -> None:
    optional = dict.fromkeys(("nonce", "router_attestation", "inference_attestation"), "absent")
    hints = get_type_hints(ReceiptClaims)
    nullable = {name: "yes" if type(None) in get_args(hint) else "no" for name, hint in hints.items()} | optional
    assert {row[0]: row[2] for row in table("3", "Claim")} == nullable
    required = {field.name for field in msgspec.structs.fields(ReceiptClaims) if field.required}
    assert required == nullable.keys() - optional.keys()


@pytest.mark.parametrize(("number", "block"), [("3.1", RouterAttestation), ("3.2", InferenceAttestation)])
def test_blocks(number: str, block: type[msgspec.Struct]) -> None:
    members = {field.name: "yes" if field.required else "no" for field in msgspec.structs.fields(block)}
    assert {row[0]: row[1] for row in table(number, "Member")} == members


def test_parts_of_an_envelope() -> None:
    parts = [kind for kind, _ in envelope._MEMBERS.values()]
    assert set(first_column("3.1", "`type` of a reference")) == {*parts, "collateral", envelope.TRUST_BUNDLE}
    assert [word for word in re.findall(r"[\w-]+", table("3.1", "Member")[2][2]) if word != "or"] == list(get_args(Tee))
    assert f"1 to {MAX_EVIDENCE} references" in section("3.1")


def test_attempts() -> None:
    named = re.findall(r"`(\w+)`", section("4.1").split(":", maxsplit=1)[0])
    assert tuple(named) == Attempt.__struct_fields__


@pytest.mark.parametrize(
    ("number", "heading", "vocabulary"),
    [
        ("4.1", "`outcome` of an attempt", AttemptOutcome),
        ("4.1", "`reason`", AttemptReason),
        ("4.2", "`outcome`", Outcome),
        ("4.3", "Item", NotChecked),
    ],
)
def test_vocabularies(number: str, heading: str, vocabulary: Any) -> None:
    assert first_column(number, heading) == list(get_args(vocabulary))


def test_members_of_a_key() -> None:
    required = {field.name: "yes" if field.required else "no" for field in msgspec.structs.fields(Jwk)}
    assert {row[0]: row[1] for row in table("6.1", "Member")} == required


def test_codes() -> None:
    assert {row[0]: row[1] for row in table("8.2", "Code")} == {
        code: {ReceiptCode.JWKS_UNAVAILABLE: "3", ReceiptCode.ROUTER_ATTESTATION_MISSING: "1, 3"}.get(code, "1")
        for code in ReceiptCode
    }


def test_options() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = [
        f"{action.option_strings[-1]} {action.metavar or ''}".strip()
        for action in parser._actions
        if action.option_strings and action.dest != "help"
    ]
    assert first_column("8.3", "Option") == options


def test_exit_codes() -> None:
    assert {int(row[0]): row[1].partition(":")[0] for row in table("8.3", "Exit")} == {
        2: "none",
        **{int(code): code.name.lower() for code in ExitCode},
    }


def test_limits() -> None:
    assert f"at most {MAX_TOKEN_BYTES} characters" in section("2.1")
    assert f"at most {MAX_RECEIPT_BYTES} bytes" in section("2.4")
    assert f"at most {MAX_JWKS_BYTES} bytes" in section("6.1")
    assert f"{CLOCK_SKEW_S} seconds" in section("6.3")
    assert f"{CLOCK_SKEW_S} seconds" in section("8.1")


def test_example_key() -> None:
    jwk = msgspec.json.decode(EXAMPLES["jwk"], type=Jwk)
    digest = hashlib.sha256(EXAMPLES["thumbprint-input"].encode()).digest()
    assert EXAMPLES["thumbprint"] == base64url_encode(digest) == base64url_encode(thumbprint(jwk.x, jwk.y))
    assert EXAMPLES["kid"] == kid_of(jwk.x, jwk.y) == jwk.kid
    assert (VECTORS / "jwks.json").read_text() == f'{{"keys":[{EXAMPLES["jwk"]}]}}'


def test_example_token() -> None:
    token = EXAMPLES["token"]
    header, payload, signature = token.split(".")
    assert base64url_decode(header).decode() == EXAMPLES["header"]
    assert base64url_decode(payload).decode() == EXAMPLES["payload"]
    assert base64url_decode(signature).hex() == EXAMPLES["signature"]
    assert encode_protected_header(EXAMPLES["kid"]) == EXAMPLES["header"].encode()
    claims = parse_claims(EXAMPLES["payload"].encode())
    draft = msgspec.convert(msgspec.to_builtins(claims), ReceiptDraft)
    assert encode_claims(draft, iat=claims.iat, seq=claims.seq).decode() == EXAMPLES["payload"]
    (key,) = parse_jwks((VECTORS / "jwks.json").read_bytes()).values()
    assert verify_compact(parse_compact(token), key.public_key).decode() == EXAMPLES["payload"]
    assert (VECTORS / "001-bare-token" / "token.txt").read_text() == token


def test_example_digests() -> None:
    request, stream = EXAMPLES["request"].encode(), (VECTORS / "stream-response.sse").read_bytes()
    claims = parse_claims(EXAMPLES["payload"].encode())
    assert request == (VECTORS / "request.json").read_bytes()
    assert EXAMPLES["request-digest"] == digest_string(request) == claims.request_digest
    assert EXAMPLES["stream-digest"] == digest_string(stream)
    assert f"This body of {len(request)} bytes" in section("5.1")
    assert f"The {len(stream)} bytes" in section("5.2")


def test_sections_that_are_cited_exist() -> None:
    cited = {
        number
        for folder in ("src", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for number in re.findall(r"docs/spec/receipt\.md,? sections? ([\d.]*\d)", path.read_text())
    }
    vectors = {msgspec.json.decode(path.read_bytes())["spec"] for path in VECTORS.glob("*/manifest.json")}
    assert cited
    assert vectors
    for number in cited | vectors:
        section(number)
