"""Recorded answers of production services: stated values, and every broken variant of NEGATIVES.md (B1 to B9)."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from support.evidence import facts, sample, verify_at
from tresor.attestation.folder import Folder
from tresor.attestation.policy import STRICT
from tresor.attestation.providers.answer import Known, Node, ProviderResult, appraise_answer
from tresor.attestation.providers.chutes import parse_chutes, parse_chutes_keys
from tresor.attestation.providers.dstack import parse_dstack
from tresor.attestation.providers.tinfoil import parse_tinfoil
from tresor.attestation.roots import vendor_anchors
from tresor.collateral.directory import load_folder

ADDRESS: Final = "bundles/dstack-tdx-8gpu-address-20260610"
DSTACK: Final = "bundles/dstack-tdx-8gpu-tls-20260629"
FOREIGN: Final = "bundles/nonce-not-ours-a"
CHUTES: Final = "bundles/tdx-8gpu-mlkem-20260629"
SNP: Final = "bundles/tinfoil-snp-20260629"
TINFOIL: Final = "bundles/tinfoil-tdx-gpu-20260629"
PARSERS: Final[dict[str, Callable[[bytes, Known], tuple[Node, ...]]]] = {
    ADDRESS: parse_dstack,
    DSTACK: parse_dstack,
    FOREIGN: parse_dstack,
    CHUTES: parse_chutes,
    SNP: parse_tinfoil,
    TINFOIL: parse_tinfoil,
}


def document_of(name: str) -> bytes:
    return (sample(name) / ("evidence.json" if name == CHUTES else "attestation.json")).read_bytes()


def nonce_of(name: str) -> bytes:
    return bytes.fromhex(facts(name)["client_nonce"])


def keys_of(name: str) -> dict[str, str]:
    path = sample(name) / "e2e_pubkeys.json"
    return parse_chutes_keys(path.read_bytes()) if path.exists() else {}


def appraised(name: str, document: bytes | None = None, **known: Any) -> ProviderResult:
    given = {"nonce": nonce_of(name), "keys": keys_of(name)} | known
    folder: Folder = load_folder([sample(name)])
    return appraise_answer(
        PARSERS[name],
        document_of(name) if document is None else document,
        known=Known(**given),
        collateral=folder.collateral,
        policy=STRICT,
        anchors=vendor_anchors(),
        now=verify_at(name),
    )


def codes(result: ProviderResult) -> list[str]:
    return list(dict.fromkeys(str(check.code) for check in result.result.checks if check.status != "ok"))


@pytest.mark.parametrize("name", [ADDRESS, DSTACK, CHUTES, SNP, TINFOIL])
def test_good_answers_with_all_that_is_known(name: str) -> None:
    result, bindings = appraised(name)
    assert (result.outcome, codes(ProviderResult(result, bindings))) == ("accepted", [])
    assert result.tee == facts(name)["tee"]
    assert result.claims.cpu_tee.status == "proven"
    for binding in bindings:
        assert (binding.nonce, binding.key) == ("proven", "proven")


@pytest.mark.parametrize(
    ("name", "tls", "gpu"),
    [
        (ADDRESS, "unknown", "unknown"),
        (DSTACK, "proven", "unknown"),
        (CHUTES, "proven", "proven"),
        (SNP, "proven", "unknown"),
        (TINFOIL, "proven", "proven"),
    ],
)
def test_what_is_bound(name: str, tls: str, gpu: str) -> None:
    for binding in appraised(name).bindings:
        assert (binding.tls, binding.gpu) == (tls, gpu)
        assert (binding.channel.type == "none") == (tls == "unknown")


@pytest.mark.parametrize("name", [DSTACK, SNP, TINFOIL])
def test_the_connection_that_was_recorded(name: str) -> None:
    spki = bytes.fromhex(facts(name)["binding"]["tls_spki_sha256"])
    result, (binding,) = appraised(name, spki_sha256=spki)
    assert result.outcome == "accepted"
    assert binding.channel.spki_sha256 == spki.hex()
    assert "tls_binding" not in result.not_checked


def test_values_of_the_tdx_answers() -> None:
    tinfoil = appraised(TINFOIL).result
    known = facts(TINFOIL)["tdx"]
    assert {name: tinfoil.measurements[name.upper()] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")} == {
        name: known[name] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    }
    assert tinfoil.report_data is not None
    assert tinfoil.report_data.hex() == known["report_data"]
    for name in (ADDRESS, DSTACK):
        result = appraised(name).result
        compose_hash = facts(name)["dstack"]["compose_hash"]
        assert result.measurements["MRCONFIGID"][2:66] == compose_hash
        assert any(check.check == "compose_hash" and compose_hash in check.detail for check in result.checks)
        assert sum(check.check == "event_log" and check.status == "ok" for check in result.checks) == 1
        assert sum(bool(re.fullmatch(r"gpu\[\d\]\.signature", check.check)) for check in result.checks) == 8


def test_values_of_the_snp_answer() -> None:
    result = appraised(SNP).result
    report = facts(SNP)["snp"]["report"]
    assert result.measurements["MEASUREMENT"] == report["measurement"]
    assert result.measurements["REPORT_DATA"] == report["report_data"]
    assert result.claims.gpu_tee.status == "unknown"


def test_values_of_both_instances() -> None:
    result, bindings = appraised(CHUTES)
    instances = facts(CHUTES)["instances"]
    assert [binding.node for binding in bindings] == [instance["instance"] for instance in instances]
    for instance, binding in zip(instances, bindings, strict=True):
        assert binding.channel.spki_sha256 == instance["tdx"]["report_data"][64:]
    assert sum(check.check.endswith(".signature") for check in result.checks) == 16


# --- Broken variants


def test_b1_tls_key_of_another_answer() -> None:
    document = document_of(TINFOIL).replace(
        facts(TINFOIL)["binding"]["tls_spki_sha256"].encode(), facts(SNP)["binding"]["tls_spki_sha256"].encode()
    )
    assert "report_data_mismatch" in codes(appraised(TINFOIL, document))


@pytest.mark.parametrize("name", [DSTACK, SNP, TINFOIL, CHUTES])
def test_b2_live_connection_is_another(name: str) -> None:
    assert codes(appraised(name, spki_sha256=bytes(32))) == ["spki_mismatch"]


def test_b3_gpu_evidence_of_another_answer() -> None:
    theirs = msgspec.json.decode(msgspec.json.decode(document_of(FOREIGN))["nvidia_payload"])["evidence_list"]
    gpu = json.dumps({"evidences": theirs}, separators=(",", ":"))
    document = re.sub(rb'"gpu":\{.*?\}\]\}', f'"gpu":{gpu}'.encode(), document_of(TINFOIL))
    assert codes(appraised(TINFOIL, document))[0] == "gpu_not_bound"


def test_b3_gpu_evidence_of_the_other_instance() -> None:
    answer = msgspec.json.decode(document_of(CHUTES))
    answer["evidence"][0]["gpu_evidence"] = answer["evidence"][1]["gpu_evidence"]
    result = appraised(CHUTES, json.dumps(answer).encode())
    assert codes(result) == ["gpu_not_bound", "nonce_mismatch"]
    assert [binding.gpu for binding in result.bindings] == ["refuted", "proven"]


def test_b4_gpu_json_written_again() -> None:
    answer = msgspec.json.decode(document_of(TINFOIL))
    assert codes(appraised(TINFOIL, json.dumps(answer).encode()))[0] == "gpu_not_bound"


def test_b5_nonce_of_somebody_else() -> None:
    result = appraised(FOREIGN)
    assert codes(result) == ["nonce_mismatch"]
    assert result.result.claims.cpu_tee.status == "proven"
    assert [binding.nonce for binding in result.bindings] == ["refuted"]


def test_b5_nonce_of_somebody_else_shows_without_knowing_ours() -> None:
    assert codes(appraised(FOREIGN, nonce=None)) == ["nonce_mismatch"]


def test_b6_key_of_the_other_instance() -> None:
    first, second = keys_of(CHUTES)
    keys = {first: keys_of(CHUTES)[second], second: keys_of(CHUTES)[second]}
    assert codes(appraised(CHUTES, keys=keys)) == ["report_data_mismatch"]


def test_b7_no_channel_where_nothing_binds_one() -> None:
    assert codes(appraised(ADDRESS, spki_sha256=bytes(32))) == ["channel_not_bound"]


def test_b8_one_character_of_the_compose_file_changed() -> None:
    answer = msgspec.json.decode(document_of(DSTACK))
    answer["all_attestations"] = []
    tcb_info = answer["info"]["tcb_info"]
    tcb_info["app_compose"] = tcb_info["app_compose"].replace("datadog", "datadoh", 1)
    assert codes(appraised(DSTACK, json.dumps(answer).encode())) == ["compose_hash_mismatch"]


def test_b9_old_log_with_empty_digests_replays() -> None:
    answer = msgspec.json.decode(document_of(FOREIGN))
    assert any(event["digest"] == "" for event in msgspec.json.decode(answer["event_log"]))
    logs = [check for check in appraised(FOREIGN).result.checks if check.check == "event_log"]
    assert [check.status for check in logs] == ["ok", "ok"]


def test_b9_log_whose_payload_was_changed() -> None:
    answer = msgspec.json.decode(document_of(FOREIGN))
    answer["all_attestations"] = []
    answer["event_log"] = answer["event_log"].replace("7a6673", "7a6674")
    assert "event_log_mismatch" in codes(appraised(FOREIGN, json.dumps(answer).encode()))


@pytest.mark.parametrize("name", [ADDRESS, DSTACK, CHUTES, TINFOIL])
def test_collateral_ends(name: str) -> None:
    folder = load_folder([sample(name)])
    result = appraise_answer(
        PARSERS[name],
        document_of(name),
        known=Known(),
        collateral=folder.collateral,
        policy=STRICT,
        anchors=vendor_anchors(),
        now=datetime(2026, 9, 1, tzinfo=UTC),
    ).result
    assert (result.outcome, result.code) == ("rejected", "collateral_expired")


def test_samples_are_complete() -> None:
    folders = {f"bundles/{path.name}" for path in Path(sample("bundles")).iterdir() if path.is_dir()}
    assert folders == set(PARSERS)
