"""Reports of ACI services on home-made evidence: the keyset is bound, and every wrong binding has its code."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fake_intel import AT, INTEL, Intel, body
from support.fake_providers import ANCHORS, COLLATERAL, COMPOSE, NONCE, OTHER, SPKI, aci, aci_keyset, event_log
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.evidence import Collateral
from tresor.attestation.folder import File, appraise_folder, gather
from tresor.attestation.policy import STRICT
from tresor.attestation.providers.aci import parse_aci
from tresor.attestation.providers.answer import Known, ProviderResult, appraise_answer
from tresor.attestation.recognise import DocumentKind, recognise

ALL: Final = Known(nonce=NONCE, spki_sha256=SPKI)
TWO_KEYS: Final = [{"spki_sha256": OTHER.hex(), "domain": "a.example"}, {"spki_sha256": SPKI.hex(), "domain": "b"}]
DEBUG: Final = INTEL.quote(td=body(attributes=1 | 1 << 28))
FORGED: Final = Intel(world="another").quote(td=body())


@dataclass(frozen=True)
class Case:
    """A report, what the caller knows, and what must come of it; `codes` of the checks that are not ok, each once."""

    name: str
    document: bytes
    codes: tuple[str, ...] = ()
    known: Known = ALL
    binding: dict[str, str] = field(default_factory=dict)
    outcome: str = "rejected"
    now: datetime = AT
    collateral: Collateral = COLLATERAL


def accepted(name: str, document: bytes, **options: Any) -> Case:
    return Case(name, document, outcome="accepted", **options)


def malformed(name: str, document: bytes, code: str = "evidence_malformed") -> Case:
    return Case(name, document, (code,))


PROVEN: Final = {"nonce": "proven", "key": "proven", "tls": "proven", "gpu": "unknown"}
CASES: Final = [
    accepted("all-known", aci(), binding=PROVEN),
    accepted("one-of-several-tls-keys", aci(keyset=aci_keyset(tls_public_keys=TWO_KEYS)), binding=PROVEN),
    accepted("no-connection-at-hand", aci(), known=Known(nonce=NONCE), binding=PROVEN),
    accepted(
        "no-nonce-at-hand", aci(), known=Known(), binding={"nonce": "unknown", "key": "unknown", "tls": "unknown"}
    ),
    accepted(
        "not-asked-for-a-nonce", aci(nonce=None), known=Known(spki_sha256=SPKI), binding=PROVEN | {"nonce": "unknown"}
    ),
    accepted("name-outside-ascii", aci(keyset=aci_keyset(subject='Größe\n"\x7f\x01/€😀')), binding=PROVEN),
    accepted("without-subject", aci(keyset=aci_keyset(subject=...)), binding=PROVEN),
    accepted("without-compose-file", aci(compose=None), binding=PROVEN),
    accepted("without-event-log", aci(evidence={"event_log": None}, compose=None), binding=PROVEN),
    accepted(
        "log-as-an-array",
        aci(
            evidence={
                "event_log": event_log(
                    ("compose-hash", hashlib.sha256(COMPOSE.encode()).digest()), ("system-ready", b"")
                )[0]
            }
        ),
        binding=PROVEN,
    ),
    accepted("a-second-before-the-keyset-ends", aci(), now=AT + timedelta(seconds=3599), binding=PROVEN),
    accepted("members-that-nobody-knows", aci(members={"x": 1}, stated={"y": {}}, evidence={"z": []}), binding=PROVEN),
    Case("keyset-ends-now", aci(), ("keyset_expired",), now=AT + timedelta(seconds=3600)),
    Case("replayed", aci(nonce=OTHER), ("report_data_mismatch",), binding={"nonce": "refuted", "tls": "refuted"}),
    Case("answered-without-the-nonce", aci(nonce=None), ("nonce_mismatch",), binding=PROVEN | {"nonce": "refuted"}),
    Case(
        "said-to-be-without-nonce",
        aci(stated={"report_data": msgspec.json.decode(aci(nonce=None))["attestation"]["report_data"]}),
        ("report_data_mismatch", "nonce_mismatch"),
        binding={"tls": "refuted"},
    ),
    Case("connection-ends-elsewhere", aci(), ("spki_mismatch",), replace(ALL, spki_sha256=OTHER), {"tls": "refuted"}),
    Case("no-tls-key", aci(keyset=aci_keyset(tls_public_keys=[])), ("channel_not_bound",), binding={"key": "proven"}),
    Case("no-list-of-tls-keys", aci(keyset=aci_keyset(tls_public_keys=...)), ("channel_not_bound",)),
    Case("no-nonce-for-a-channel", aci(), ("channel_not_bound",), Known(spki_sha256=SPKI)),
    Case(
        "tls-key-put-in",
        aci(shown=aci_keyset(tls_public_keys=[{"spki_sha256": OTHER.hex()}])),
        ("key_not_bound", "report_data_mismatch"),
        replace(ALL, spki_sha256=OTHER),
        {"tls": "refuted", "key": "refuted", "nonce": "refuted"},
    ),
    Case(
        "tls-key-put-in-and-digests-made-good",
        aci(signed=OTHER, keyset=aci_keyset(tls_public_keys=[{"spki_sha256": OTHER.hex()}])),
        ("report_data_mismatch",),
        replace(ALL, spki_sha256=OTHER),
        {"tls": "refuted"},
    ),
    Case(
        "receipt-key-put-in", aci(shown=aci_keyset(receipt_signing_keys=[])), ("key_not_bound", "report_data_mismatch")
    ),
    Case("later-end-put-in", aci(shown=aci_keyset(not_after=2**33)), ("key_not_bound", "report_data_mismatch")),
    Case("digest-restated-wrong", aci(members={"workload_keyset_digest": f"sha256:{OTHER.hex()}"}), ("key_not_bound",)),
    Case("report-data-restated-wrong", aci(stated={"report_data": OTHER.hex()}), ("report_data_mismatch",)),
    Case(
        "something-in-the-second-half",
        aci(signed=bytes.fromhex(msgspec.json.decode(aci())["attestation"]["report_data"]) + OTHER),
        ("report_data_mismatch",),
    ),
    Case("compose-file-changed", aci(compose=COMPOSE + " "), ("compose_hash_mismatch",)),
    Case(
        "log-of-another",
        aci(evidence={"event_log": json.dumps(event_log(("compose-hash", b"x"))[0])}, compose=None),
        ("event_log_mismatch",),
    ),
    Case(
        "debug-td",
        aci(evidence={"quote": DEBUG.hex()}, compose=None),
        ("debug_enabled", "event_log_mismatch", "report_data_mismatch"),
    ),
    Case("another-intel", aci(evidence={"quote": FORGED.hex()}), ("root_not_pinned",)),
    Case("no-collateral", aci(), ("collateral_missing",), outcome="undecided", collateral=Collateral()),
    malformed("another-version", aci(members={"api_version": "aci/2"}), "evidence_version_unsupported"),
    malformed("snp-has-no-published-form", aci(stated={"tee_type": "sev_snp"}), "evidence_version_unsupported"),
    malformed("no-version", aci(members={"api_version": ...})),
    malformed("no-keyset", aci(stated={"workload_keyset": ...})),
    malformed("no-quote", aci(stated={"evidence": {}})),
    malformed("evidence-is-null", aci(stated={"evidence": None})),
    malformed("quote-is-no-quote", aci(evidence={"quote": "00" * 40})),
    malformed("quote-is-no-text", aci(evidence={"quote": "?"})),
    malformed("keyset-with-a-member-more", aci(keyset=aci_keyset(not_before=0))),
    malformed("tls-key-with-a-member-more", aci(keyset=aci_keyset(tls_public_keys=[TWO_KEYS[0] | {"path": "/a"}]))),
    malformed("no-end", aci(keyset=aci_keyset(not_after=...))),
    malformed("end-is-no-time", aci(keyset=aci_keyset(not_after=2**62))),
    malformed("end-is-a-truth-value", aci(keyset=aci_keyset(not_after=True))),
    malformed("spki-in-capitals", aci(keyset=aci_keyset(tls_public_keys=[{"spki_sha256": SPKI.hex().upper()}]))),
    malformed("spki-cut", aci(keyset=aci_keyset(tls_public_keys=[{"spki_sha256": SPKI.hex()[:62]}]))),
    malformed("not-json", b'{"api_version":"aci/1"'),
    malformed("tls-keys-twice", aci().replace(b'"tls_public_keys"', b'"tls_public_keys": [], "tls_public_keys"', 1)),
    malformed("an-array", b"[]"),
]


def appraised(case: Case) -> ProviderResult:
    return appraise_answer(
        parse_aci,
        case.document,
        known=case.known,
        collateral=case.collateral,
        policy=STRICT,
        anchors=ANCHORS,
        now=case.now,
    )


def named(name: str) -> ProviderResult:
    return appraised(next(case for case in CASES if case.name == name))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules(case: Case) -> None:
    result, bindings = appraised(case)
    found = tuple(dict.fromkeys(str(check.code) for check in result.checks if check.status != "ok"))
    assert (result.outcome, found) == (case.outcome, case.codes)
    for binding in bindings:
        assert {name: getattr(binding, name) for name in case.binding} == case.binding
        assert (binding.channel.type == "tls_spki_sha256") == (binding.tls == "proven")


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_it_counts_no_longer_than_its_keyset() -> None:
    assert named("all-known").result.valid_until == AT + timedelta(seconds=3600)


def test_channel_is_the_key_of_the_connection() -> None:
    result, (binding,) = named("one-of-several-tls-keys")
    assert binding.channel.spki_sha256 == SPKI.hex()
    assert "'b' alone" in result.not_checked["tls_domain"]
    assert "tls_domain" not in named("all-known").result.not_checked


def test_what_nobody_looks_at_is_named() -> None:
    result = named("all-known").result
    assert {"key_custody", "source_provenance", "gpu_tee"} <= result.not_checked.keys()
    assert result.claims.gpu_tee.status == "unknown"
    assert result.claims.workload.status == "unknown"


def test_vectors_of_the_specification() -> None:
    """Of `spec/test-vectors.md`, sections 1 and 2 (Dstack-TEE/private-ai-gateway, Apache-2.0): an independent check."""
    keyset = {
        "tls_public_keys": [{"spki_sha256": "c0" * 32, "domain": "api.example.com"}],
        "subject": "dstack-app://example-app",
        "receipt_signing_keys": [
            {
                "key_id": "receipt-1",
                "algo": "ed25519",
                "public_key": "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394",
            }
        ],
        "not_after": 1_800_000_000,
        "e2ee_public_keys": [
            {
                "key_id": "e2ee-1",
                "algo": "x25519-aes-256-gcm-hkdf-sha256",
                "public_key": "5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22",
            }
        ],
    }
    (node,) = parse_aci(aci(keyset=keyset), Known(nonce=bytes(range(32))))
    assert node.key == "sha256:53a5cd44b30dcc51999754c719f2628a041f174ecbf9662a6f8e898a10cd9371"
    assert node.not_after == datetime(2027, 1, 15, 8, tzinfo=UTC)
    half = node.halves[0].value
    assert half is not None
    assert half.hex() == "df2174d28130852b413646a3786927b93e94c11d770268b65def8bdba45cb49e"
    (node,) = parse_aci(aci(keyset=keyset, nonce=None), Known())
    half = node.halves[0].value
    assert half is not None
    assert half.hex() == "0633919ca3f00e97bafaa3304278eb22420cc3ff0d19f87dfca2d3f7508150bc"


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_canonical_form_agrees_with_the_standard_library(text: str) -> None:
    (node,) = parse_aci(aci(keyset=aci_keyset(subject=text)), ALL)
    assert [check.status for check in node.checks] == ["ok"]


def test_folder_finds_it() -> None:
    assert [item.kind for item in recognise(aci())] == [DocumentKind.ACI]
    files = [
        File("report.json", aci()),
        File("nonce.txt", NONCE.hex().encode()),
        File("collateral.json", INTEL.collateral()),
    ]
    result = appraise_folder(gather(files), nonce=None, policy=STRICT, anchors=ANCHORS, now=AT)
    assert (result.outcome, result.details["binding"]) == (
        "accepted",
        "nonce proven, key proven, tls proven, gpu unknown",
    )


# --- Anything as a report


@given(document=st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)))
def test_any_bytes_get_our_error(document: bytes) -> None:
    with pytest.raises(EvidenceMalformedError):
        parse_aci(document, ALL)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_no_other_keyset_is_accepted(data: st.DataObject) -> None:
    report = msgspec.json.decode(aci())
    keyset = report["attestation"]["workload_keyset"]
    name = data.draw(st.sampled_from([*keyset, "other"]))
    keyset[name] = data.draw(JSON)
    result = appraised(Case("", json.dumps(report).encode())).result
    assert result.outcome == ("accepted" if keyset == aci_keyset() else "rejected")
