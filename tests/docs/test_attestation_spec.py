"""docs/spec/attestation.md and the code say the same: codes, pins, formats, states, policies, citations."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pages import ROOT, Page, source_files

from tresor.attestation.codes import AttestationCode
from tresor.attestation.evidence import CollateralKind, EvidenceFormat
from tresor.attestation.hop import HOP_KINDS, TRUST_BUNDLE_TARGET, hop_target
from tresor.attestation.node import CLOCK_SKEW
from tresor.attestation.policy import Policy, parse_policy
from tresor.attestation.registry import VERIFIERS
from tresor.attestation.results import Claims, Outcome
from tresor.attestation.roots import NRAS_INTERMEDIATES, PINS
from tresor.upstreams import channel, pool
from tresor.upstreams.channel import ChannelState

SPEC = Page(ROOT / "docs" / "spec" / "attestation.md")
# A citation names the page, and then sections: "attestation.md section 5.1", "attestation.md, 5.4.5 and 7".
_CITATION = re.compile(r"attestation\.md,?\s+(?:sections?\s+)?(\d[\d.]*(?:\s*(?:,|and)\s+\d[\d.]*)*)")


def words(rows: list[list[str]], column: int = 0) -> list[str]:
    return [row[column].strip("`") for row in rows]


def cited(path: Path) -> set[str]:
    text = path.read_text()
    return {number.rstrip(".") for found in _CITATION.findall(text) for number in re.findall(r"\d[\d.]*", found)}


def test_sections_that_are_cited_exist() -> None:
    numbers = {number for path in source_files() for number in cited(path)}
    assert len(numbers) > 40
    for number in numbers:
        assert SPEC.section(number).strip(), number


def test_sections_that_the_page_itself_names_exist() -> None:
    own = re.sub(r"\[[^\]]*\]\([^)]*\)", "", SPEC.prose)  # links name sections of other pages
    for number in re.findall(r"\bsections? (\d(?:\.\d)*)", own):
        assert SPEC.section(number)


def test_every_heading_has_its_number_in_order() -> None:
    numbers = [
        tuple(map(int, found[1].split(".")))
        for heading in SPEC.headings()[1:]
        if (found := re.match(r"(\d+(?:\.\d+)*)\.? ", heading))
    ]
    assert len(numbers) == len(SPEC.headings()) - 1
    assert numbers == sorted(set(numbers))


def test_outcomes_and_claims() -> None:
    assert words(SPEC.table("Outcome", number="2.1")) == list(get_args(Outcome))
    assert words(SPEC.table("Claim", number="2.2")) == list(Claims.__struct_fields__)


def test_formats() -> None:
    rows = SPEC.table("Format", number="3.1")
    assert words(rows) == list(EvidenceFormat) == list(VERIFIERS)
    for row in rows:
        SPEC.section(row[2])
    assert words(SPEC.table("Kind", number="3.1"), 1) == list(CollateralKind)


def test_pins() -> None:
    assert {row[0].strip("`"): row[1].strip("`") for row in SPEC.table("File", number="4.1")} == PINS
    (intermediate,) = NRAS_INTERMEDIATES
    assert intermediate in SPEC.section("4.1")


def test_codes() -> None:
    rows = SPEC.table("Code", "Why", number="8")
    assert words(rows) == list(AttestationCode)
    assert {row[2] for row in rows} == {"failed", "undecided"}


def test_codes_that_the_page_names_are_codes() -> None:
    """A word of two parts or more that ends like a code, in the column of codes of any table, is one."""
    for rows in (*SPEC.tables("Step", "Check"), *SPEC.tables("step", "check")):
        for row in rows:
            assert set(re.findall(r"`(\w+_\w+)`", row[3])) <= set(AttestationCode), row


def test_the_policy_shown_is_one() -> None:
    policy = parse_policy(SPEC.examples()["policy"].encode())
    assert policy != Policy()
    assert policy.snp.min_tcb.keys() == {"Milan", "Genoa"}
    assert policy.exceptions[0].weakness in SPEC.section("7.3")
    tables = re.findall(r"`(\w+)`", SPEC.section("7.1").partition("```")[0])
    assert [name for name in tables if name in Policy.__struct_fields__] == list(Policy.__struct_fields__)


def test_kinds_of_upstreams() -> None:
    rows = SPEC.table("Kind", number="9.1")
    assert words(rows) == list(HOP_KINDS)
    for kind, row in zip(HOP_KINDS, rows, strict=True):
        assert hop_target(kind, b"").replace("nonce=", "nonce=…") in row[1]
    assert TRUST_BUNDLE_TARGET in rows[0][1]


def test_states_of_a_channel() -> None:
    rows = SPEC.table("State", number="9.4")
    assert words(rows) == list(ChannelState)
    for row in rows:
        assert set(re.findall(r"`(\w+)`", row[2])) <= set(ChannelState) - {row[0].strip("`")}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("9.2", f"At most {pool._MAX_ANSWER_BYTES >> 20} MiB per answer, and {pool._ASK_TIMEOUT_S:.0f} seconds"),
        ("9.4", f"again after {channel._FIRST_RETRY_S:.0f} s, then twice as long each time, at most"),
        ("9.4", f"at most {channel._MAX_RETRY_S:.0f} s."),
        ("9.6", f"give or take {CLOCK_SKEW.seconds} seconds"),
    ],
)
def test_numbers(number: str, text: str) -> None:
    assert text in " ".join(SPEC.section(number).split())
