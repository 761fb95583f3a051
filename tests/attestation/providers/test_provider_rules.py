"""Binding rules of providers on home-made answers: what REPORT_DATA covers is bound, and nothing else is."""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from support.fake_nvidia import device
from support.fake_providers import (
    ADDRESS,
    ANCHORS,
    AT,
    COLLATERAL,
    HPKE_KEY,
    INSTANCES,
    ML_KEM_KEY,
    NONCE,
    OTHER,
    SPKI,
    chutes,
    dstack,
    dstack_node,
    gpu_entries,
    quote,
    tinfoil,
)
from tresor.attestation.evidence import Collateral
from tresor.attestation.policy import STRICT
from tresor.attestation.providers import keccak
from tresor.attestation.providers.answer import Known, ProviderResult, appraise_answer
from tresor.attestation.providers.chutes import parse_chutes
from tresor.attestation.providers.dstack import parse_dstack
from tresor.attestation.providers.keccak import keccak_256
from tresor.attestation.providers.tinfoil import parse_tinfoil

Appraise = Callable[..., ProviderResult]
appraise_tinfoil: Final[Appraise] = partial(appraise_answer, parse_tinfoil)
appraise_dstack: Final[Appraise] = partial(appraise_answer, parse_dstack)
appraise_chutes: Final[Appraise] = partial(appraise_answer, parse_chutes)
KEYS: Final = dict.fromkeys(INSTANCES, ML_KEM_KEY)
GPUS: Final = gpu_entries(NONCE)
ALL: Final = Known(nonce=NONCE, spki_sha256=SPKI, keys=KEYS)


@dataclass(frozen=True)
class Case:
    """An answer, what the caller knows, and what must come of it.

    `codes` are those of all checks that are not ok, in order and each once; `binding` is that of every node.
    """

    name: str
    appraise: Appraise
    document: bytes
    codes: tuple[str, ...] = ()
    known: Known = ALL
    outcome: str = "rejected"
    binding: Mapping[str, str] = field(default_factory=dict)
    collateral: Collateral = COLLATERAL


def accepted(name: str, appraise: Appraise, document: bytes, **options: Any) -> Case:
    return Case(name, appraise, document, outcome="accepted", **options)


OTHER_KEY: Final = ec.derive_private_key(7, ec.SECP384R1())
PROVEN: Final = {"nonce": "proven", "key": "proven", "tls": "proven", "gpu": "proven"}
SPACED: Final = json.dumps({"evidences": GPUS}, indent=1)
DRIVERLESS: Final = {"platform": "tdx", "report": "AAAA"}
V2: Final = {"format": "https://tinfoil.sh/predicate/tdx-guest/v2"}

CASES: Final = [
    # Tinfoil
    accepted("tinfoil-with-gpu", appraise_tinfoil, tinfoil(gpus=GPUS), binding=PROVEN),
    accepted("tinfoil-without-gpu", appraise_tinfoil, tinfoil(), binding=PROVEN | {"gpu": "unknown"}),
    accepted(
        "tinfoil-nobody-knows-anything",
        appraise_tinfoil,
        tinfoil(gpus=GPUS),
        known=Known(),
        binding=PROVEN | {"nonce": "unknown"},
    ),
    accepted("tinfoil-line-break-behind", appraise_tinfoil, tinfoil(gpus=GPUS) + b"\n", binding=PROVEN),
    accepted("tinfoil-unsigned", appraise_tinfoil, tinfoil(members={"signature": ...}, sign=False)),
    accepted("tinfoil-without-certificate", appraise_tinfoil, tinfoil(members={"certificate": ...}), binding={}),
    Case(
        "tinfoil-tls-key-of-another",
        appraise_tinfoil,
        tinfoil(stated={"tls_key_fp": OTHER.hex()}),
        ("channel_not_bound", "report_data_mismatch", "spki_mismatch"),
        binding={"tls": "refuted", "key": "refuted", "nonce": "refuted"},
    ),
    Case(
        "tinfoil-hpke-key-of-another",
        appraise_tinfoil,
        tinfoil(stated={"hpke_key": OTHER.hex()}),
        ("report_data_mismatch",),
    ),
    Case("tinfoil-nonce-of-another", appraise_tinfoil, tinfoil(), ("nonce_mismatch",), Known(nonce=OTHER)),
    Case(
        "tinfoil-nonce-rewritten",
        appraise_tinfoil,
        tinfoil(stated={"nonce": OTHER.hex()}),
        ("report_data_mismatch",),
        Known(nonce=OTHER),
        binding={"nonce": "refuted"},
    ),
    Case(
        "tinfoil-connection-ends-elsewhere",
        appraise_tinfoil,
        tinfoil(),
        ("spki_mismatch",),
        Known(nonce=NONCE, spki_sha256=OTHER),
        binding={"tls": "refuted"},
    ),
    Case(
        "tinfoil-gpus-of-another-machine",
        appraise_tinfoil,
        tinfoil(gpus=GPUS, gpu_text=json.dumps({"evidences": gpu_entries(NONCE, device(3))}, separators=(",", ":"))),
        ("gpu_not_bound",),
        binding={"gpu": "refuted", "tls": "proven"},
    ),
    Case(
        "tinfoil-gpu-json-written-again",
        appraise_tinfoil,
        tinfoil(gpus=GPUS, gpu_text=SPACED),
        ("gpu_not_bound",),
    ),
    Case(
        "tinfoil-gpus-answer-an-old-challenge",
        appraise_tinfoil,
        tinfoil(gpus=gpu_entries(OTHER)),
        ("nonce_mismatch",),
    ),
    Case(
        "tinfoil-gpu-hash-left-out",
        appraise_tinfoil,
        tinfoil(gpus=GPUS).replace(b',"gpu_evidence_hash"', b',"gpu_evidence_mash"'),
        ("signature_invalid", "report_data_mismatch"),
    ),
    Case(
        "tinfoil-second-half-used",
        appraise_tinfoil,
        tinfoil(signed=OTHER + OTHER),
        ("report_data_mismatch",),
    ),
    Case(
        "tinfoil-certificate-of-another-key",
        appraise_tinfoil,
        tinfoil(key=OTHER_KEY),
        ("channel_not_bound",),
    ),
    Case("tinfoil-not-signed-by-the-tls-key", appraise_tinfoil, tinfoil(sign=False), ("signature_invalid",)),
    Case(
        "tinfoil-member-added-behind-the-signature",
        appraise_tinfoil,
        tinfoil()[:-1] + b',"verified":true}',
        ("signature_invalid",),
    ),
    Case(
        "tinfoil-certificate-is-none",
        appraise_tinfoil,
        tinfoil(members={"certificate": "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----"}),
        ("certificate_malformed",),
    ),
    Case("tinfoil-cpu-is-no-quote", appraise_tinfoil, tinfoil(members={"cpu": DRIVERLESS}), ("evidence_malformed",)),
    Case(
        "tinfoil-platform-unknown",
        appraise_tinfoil,
        tinfoil(members={"cpu": {"platform": "cca", "report": "AAAA"}}),
        ("evidence_version_unsupported",),
    ),
    Case(
        "tinfoil-format-unknown",
        appraise_tinfoil,
        b'{"format":"https://tinfoil.sh/predicate/attestation/v4"}',
        ("evidence_version_unsupported",),
    ),
    Case("tinfoil-member-twice", appraise_tinfoil, b'{"format":"a","format":"a"}', ("evidence_malformed",)),
    Case(
        "tinfoil-short-nonce",
        appraise_tinfoil,
        tinfoil(stated={"nonce": NONCE.hex()[:62]}),
        ("evidence_malformed",),
    ),
    Case(
        "tinfoil-without-collateral",
        appraise_tinfoil,
        tinfoil(),
        ("collateral_missing",),
        outcome="undecided",
        collateral=Collateral(),
    ),
    accepted(
        "tinfoil-v2-on-the-attested-connection",
        appraise_tinfoil,
        json.dumps(V2 | {"body": base64.b64encode(gzip.compress(quote(SPKI + HPKE_KEY))).decode()}).encode(),
        known=Known(spki_sha256=SPKI),
        binding={"tls": "proven", "key": "unknown", "nonce": "unknown"},
    ),
    accepted(
        "tinfoil-v2-without-a-connection",
        appraise_tinfoil,
        json.dumps(V2 | {"body": base64.b64encode(quote(SPKI + HPKE_KEY)).decode()}).encode(),
        known=Known(),
        binding={"tls": "unknown"},
    ),
    Case(
        "tinfoil-v2-connection-ends-elsewhere",
        appraise_tinfoil,
        json.dumps(V2 | {"body": base64.b64encode(quote(SPKI + HPKE_KEY)).decode()}).encode(),
        ("report_data_mismatch",),
        Known(spki_sha256=OTHER),
        binding={"tls": "refuted"},
    ),
    Case(
        "tinfoil-v2-covers-no-challenge",
        appraise_tinfoil,
        json.dumps(V2 | {"body": base64.b64encode(quote(SPKI + HPKE_KEY)).decode()}).encode(),
        ("nonce_mismatch",),
        Known(nonce=NONCE),
        binding={"nonce": "refuted"},
    ),
    Case(
        "tinfoil-v2-gzip-bomb",
        appraise_tinfoil,
        json.dumps(V2 | {"body": base64.b64encode(gzip.compress(bytes(64 << 20))).decode()}).encode(),
        ("evidence_too_large",),
    ),
    # dstack
    accepted("dstack-with-tls", appraise_dstack, dstack(), binding=PROVEN | {"gpu": "unknown"}),
    accepted(
        "dstack-address",
        appraise_dstack,
        dstack(tls=False),
        known=Known(nonce=NONCE),
        binding={"nonce": "proven", "key": "proven", "tls": "unknown", "gpu": "unknown"},
    ),
    accepted(
        "dstack-log-and-info-as-text",
        appraise_dstack,
        json.dumps(
            dstack_node()
            | {
                "event_log": json.dumps(dstack_node()["event_log"]),
                "info": {"tcb_info": json.dumps(dstack_node()["info"]["tcb_info"])},
            }
        ).encode(),
    ),
    accepted(
        "dstack-old-log-without-digests",
        appraise_dstack,
        dstack(event_log=[e | ({"digest": ""} if e["imr"] == 3 else {}) for e in dstack_node()["event_log"]]),
    ),
    accepted("dstack-nonce-only-known-to-the-caller", appraise_dstack, dstack(request_nonce=...)),
    Case(
        "dstack-address-claims-no-channel",
        appraise_dstack,
        dstack(tls=False),
        ("channel_not_bound",),
        binding={"tls": "refuted"},
    ),
    Case(
        "dstack-address-given-a-fingerprint",
        appraise_dstack,
        dstack(tls=False, tls_cert_fingerprint=SPKI.hex()),
        ("report_data_mismatch",),
    ),
    Case("dstack-nonce-of-another", appraise_dstack, dstack(nonce=OTHER), ("nonce_mismatch",)),
    Case(
        "dstack-nonce-rewritten",
        appraise_dstack,
        dstack(nonce=OTHER, request_nonce=NONCE.hex()),
        ("report_data_mismatch", "nonce_mismatch"),
    ),
    Case(
        "dstack-reseller-echoes-another-nonce",
        appraise_dstack,
        dstack(tls=False, nonce=OTHER)[:-1] + f', "nonce": "{NONCE.hex()}"}}'.encode(),
        ("nonce_mismatch",),
        Known(),
    ),
    Case(
        "dstack-connection-ends-elsewhere",
        appraise_dstack,
        dstack(),
        ("spki_mismatch",),
        Known(nonce=NONCE, spki_sha256=OTHER),
    ),
    Case(
        "dstack-key-of-another",
        appraise_dstack,
        dstack(signing_address=OTHER.hex(), signing_public_key=OTHER.hex()),
        ("report_data_mismatch",),
        binding={"key": "refuted", "tls": "refuted"},
    ),
    Case(
        "dstack-public-key-is-not-that-of-the-address",
        appraise_dstack,
        dstack(tls=False, signing_public_key="04" + "11" * 64),
        ("key_not_bound",),
        Known(nonce=NONCE),
    ),
    Case(
        "dstack-compose-changed",
        appraise_dstack,
        dstack(compose='{"name":"model","docker_compose_file":"services: {evil: {}}"}'),
        ("compose_hash_mismatch",),
    ),
    Case(
        "dstack-event-changed",
        appraise_dstack,
        dstack(event_log=[e | {"event_payload": e["event_payload"][:-2] + "00"} for e in dstack_node()["event_log"]]),
        ("event_log_mismatch", "compose_hash_mismatch"),
    ),
    Case(
        "dstack-event-dropped",
        appraise_dstack,
        dstack(event_log=dstack_node()["event_log"][:-1]),
        ("event_log_mismatch",),
    ),
    Case("dstack-event-log-is-none", appraise_dstack, dstack(event_log="[{}]"), ("evidence_malformed",)),
    Case(
        "dstack-gpus-answer-another-challenge",
        appraise_dstack,
        dstack(gpus=gpu_entries(OTHER, nonce=None)),
        ("nonce_mismatch",),
    ),
    Case("dstack-same-gpu-twice", appraise_dstack, dstack(gpus=GPUS * 2), ("gpu_duplicate",)),
    Case(
        "dstack-second-node-is-bad",
        appraise_dstack,
        json.dumps(dstack_node() | {"all_attestations": [dstack_node(), dstack_node(signed=OTHER * 2)]}).encode(),
        ("report_data_mismatch",),
    ),
    accepted(
        "dstack-gateway-and-model",
        appraise_dstack,
        json.dumps(
            {"gateway_attestation": dstack_node(nvidia_payload=...), "model_attestations": [dstack_node()]}
        ).encode(),
    ),
    Case("dstack-without-a-quote", appraise_dstack, b'{"model_attestations": []}', ("evidence_malformed",)),
    Case(
        "dstack-too-many-nodes",
        appraise_dstack,
        json.dumps({"model_attestations": [{"intel_quote": f"{n:02x}"} for n in range(17)]}).encode(),
        ("evidence_malformed",),
    ),
    # Chutes
    accepted("chutes-all-known", appraise_chutes, chutes(), binding=PROVEN),
    accepted(
        "chutes-nothing-known",
        appraise_chutes,
        chutes(),
        known=Known(),
        binding={"nonce": "unknown", "key": "unknown", "tls": "proven", "gpu": "proven"},
    ),
    Case(
        "chutes-key-not-at-hand",
        appraise_chutes,
        chutes(),
        ("endorsement_missing",),
        Known(nonce=NONCE),
        outcome="undecided",
        binding={"nonce": "unknown"},
    ),
    Case(
        "chutes-key-of-another-instance",
        appraise_chutes,
        chutes(),
        ("report_data_mismatch",),
        Known(nonce=NONCE, keys=dict.fromkeys(INSTANCES, "A" + ML_KEM_KEY[1:])),
    ),
    Case(
        "chutes-nonce-of-another", appraise_chutes, chutes(), ("report_data_mismatch",), Known(nonce=OTHER, keys=KEYS)
    ),
    Case(
        "chutes-gpus-of-another-machine",
        appraise_chutes,
        chutes(gpu_nonce=OTHER),
        ("gpu_not_bound", "nonce_mismatch"),
        binding={"gpu": "refuted", "key": "proven"},
    ),
    Case(
        "chutes-connection-ends-elsewhere",
        appraise_chutes,
        chutes(),
        ("spki_mismatch",),
        Known(spki_sha256=OTHER),
        binding={"tls": "refuted"},
    ),
    Case(
        "chutes-certificate-of-another-key",
        appraise_chutes,
        chutes(signed=OTHER + OTHER),
        ("report_data_mismatch", "gpu_not_bound", "nonce_mismatch"),
        Known(),
        binding={"tls": "refuted", "gpu": "refuted"},
    ),
    Case("chutes-instance-twice", appraise_chutes, chutes(names=("a", "a")), ("evidence_malformed",)),
    Case("chutes-no-instance", appraise_chutes, chutes(names=()), ("evidence_malformed",)),
    accepted("chutes-without-gpus", appraise_chutes, chutes(gpu_evidence=[]), binding={"gpu": "unknown"}),
]


def appraised(case: Case) -> ProviderResult:
    return case.appraise(
        case.document, known=case.known, collateral=case.collateral, policy=STRICT, anchors=ANCHORS, now=AT
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules(case: Case) -> None:
    result, bindings = appraised(case)
    found = tuple(dict.fromkeys(str(check.code) for check in result.checks if check.status != "ok"))
    assert (result.outcome, found) == (case.outcome, case.codes)
    for binding in bindings:
        assert {name: getattr(binding, name) for name in case.binding} == case.binding


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


# --- What a binding means


def test_channel_is_pinned_to_what_is_bound() -> None:
    _, (binding,) = appraised(CASES[0])
    assert (binding.channel.type, binding.channel.spki_sha256) == ("tls_spki_sha256", SPKI.hex())


def test_address_form_says_that_there_is_no_channel() -> None:
    result, (binding,) = appraised(next(case for case in CASES if case.name == "dstack-address"))
    assert binding.channel.type == "none"
    assert binding.channel.spki_sha256 is None
    assert result.details["channel_binding"] == "none"
    assert "channel_binding none" in result.not_checked["tls_binding"]
    assert result.details["key"] == ADDRESS


def test_a_pin_that_failed_is_not_a_channel() -> None:
    for case in CASES:
        for binding in appraised(case).bindings:
            assert (binding.channel.type == "tls_spki_sha256") == (binding.tls == "proven")


def test_unbound_gpus_are_no_claim() -> None:
    result = appraised(next(case for case in CASES if case.name == "dstack-with-tls")).result
    assert result.claims.gpu_tee.status == "unknown"
    assert "nothing ties them" in (result.claims.gpu_tee.reason or "")
    assert result.claims.cpu_tee.status == "proven"
    assert "gpu_binding" in result.not_checked


def test_bound_gpus_are_a_claim() -> None:
    for name in ("tinfoil-with-gpu", "chutes-all-known"):
        result = appraised(next(case for case in CASES if case.name == name)).result
        assert result.claims.gpu_tee.status == "proven"
        assert result.tee == "tdx+nvidia-gpu"
        assert "gpu_binding" not in result.not_checked


def test_gpus_of_another_machine_refute_the_claim() -> None:
    result = appraised(next(case for case in CASES if case.name == "chutes-gpus-of-another-machine")).result
    assert result.claims.gpu_tee.status == "refuted"


def test_instances_are_told_apart() -> None:
    result, bindings = appraised(next(case for case in CASES if case.name == "chutes-all-known"))
    assert [binding.node for binding in bindings] == list(INSTANCES)
    assert {name.split(".")[0] for name in result.measurements} == set(INSTANCES)
    assert result.report_data is None


def test_members_that_nobody_looks_at_are_named() -> None:
    document = dstack(tls=False, server_verification={"tdx": {"valid": True}}, ohttp_attestation={"x": 1})
    result = appraise_dstack(
        document, known=Known(), collateral=COLLATERAL, policy=STRICT, anchors=ANCHORS, now=AT
    ).result
    assert {"server_verification", "ohttp_attestation"} <= result.not_checked.keys()


def test_no_nonce_is_said() -> None:
    case = next(case for case in CASES if case.name == "tinfoil-nobody-knows-anything")
    assert NONCE.hex() in appraised(case).result.not_checked["nonce"]


# --- Anything as an answer


@given(document=st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)))
def test_any_bytes_get_a_result(document: bytes) -> None:
    for appraise in (appraise_tinfoil, appraise_dstack, appraise_chutes):
        result = appraise(document, known=ALL, collateral=COLLATERAL, policy=STRICT, anchors=ANCHORS, now=AT).result
        assert result.outcome == "rejected"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_any_member_of_any_kind_gets_a_result(data: st.DataObject) -> None:
    appraise, document = data.draw(
        st.sampled_from(
            [(appraise_tinfoil, tinfoil(gpus=GPUS)), (appraise_dstack, dstack()), (appraise_chutes, chutes())]
        )
    )
    members = msgspec.json.decode(document)
    name = data.draw(st.sampled_from(sorted(members)))
    target = members
    if isinstance(members[name], dict) and data.draw(st.booleans()):
        target, name = members[name], data.draw(st.sampled_from(sorted(members[name])))
    target[name] = data.draw(JSON)
    result = appraise(
        json.dumps(members).encode(), known=ALL, collateral=COLLATERAL, policy=STRICT, anchors=ANCHORS, now=AT
    ).result
    assert result.outcome in {"accepted", "rejected", "undecided"}


# --- Keccak-256


def test_keccak() -> None:
    assert keccak_256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak_256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"


@given(message=st.binary(max_size=300))
@example(message=bytes(135))
@example(message=bytes(136))
@example(message=bytes(272))
def test_keccak_is_sha3_but_for_its_padding(message: bytes) -> None:
    assert keccak._sponge(message, 0x06) == hashlib.sha3_256(message).digest()
