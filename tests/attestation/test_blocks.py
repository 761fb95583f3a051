"""The blocks that receipts carry: closed forms, times that exist, digests each once."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.attestation.blocks import InferenceAttestation, RouterAttestation, digests_of, instant_of

DIGEST = f"sha256:{'0' * 64}"
REFERENCE = {"type": "snp_report", "digest": DIGEST, "media_type": "application/octet-stream", "size": 1184}
KEY = {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "B" * 43, "kid": "k"}
ROUTER: dict[str, Any] = {
    "schema": "tresor.attestation/v1",
    "workload": "router",
    "tee": "sev-snp",
    "tls_spki_sha256": "0" * 64,
    "workload_identity_tag": "1" * 64,
    "issued_at": "2026-11-23T00:00:00.000Z",
    "max_age_seconds": 600,
    "receipt_key": KEY,
    "evidence": [REFERENCE],
}
INFERENCE: dict[str, Any] = {
    "provider": "vllm",
    "tee": "tdx",
    "status": "verified",
    "required": True,
    "origin": "tresor",
    "verified_at": "2026-11-23T00:00:00Z",
    "expires_at": "2026-11-23T00:10:00Z",
    "verifier": "tresor 0.1",
    "channel_binding": {"type": "tls_spki_sha256", "spki_sha256": "2" * 64},
    "measurements": {},
    "claims": {},
    "evidence": [{**REFERENCE, "digest": f"sha256:{'1' * 64}"}],
}


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "tresor.attestation/v2"},
        {"workload": "Router"},
        {"workload": "router\n"},
        {"tee": "none"},
        {"tls_spki_sha256": "A" * 64},
        {"tls_spki_sha256": "0" * 65},
        {"workload_identity_tag": ""},
        {"issued_at": "2026-11-23T00:00:00+00:00"},
        {"issued_at": "٢٠٢٦-11-23T00:00:00Z"},
        {"max_age_seconds": 0},
        {"max_age_seconds": 86_401},
        {"max_age_seconds": 600.5},
        {"receipt_key": {**KEY, "kty": "OKP"}},
        {"receipt_key": {**KEY, "crv": "P-384"}},
        {"receipt_key": {**KEY, "x": "A" * 42}},
        {"receipt_key": {**KEY, "y": "A" * 42 + "="}},
        {"evidence": []},
        {"evidence": [REFERENCE] * 65},
        {"evidence": [{**REFERENCE, "digest": "0" * 64}]},
        {"evidence": [{**REFERENCE, "size": -1}]},
        {"evidence": [{**REFERENCE, "type": "Report"}]},
        {"nonce": ""},
        {"nonce": "0" * 63},
        {"trust_bundle_url": ""},
    ],
    ids=str,
)
def test_a_block_of_another_form_is_refused(change: dict[str, Any]) -> None:
    msgspec.convert(ROUTER, RouterAttestation)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(ROUTER | change, RouterAttestation)


@pytest.mark.parametrize("name", [name for name in ROUTER if name != "schema"])
def test_a_block_without_a_member_is_refused(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.convert({k: v for k, v in ROUTER.items() if k != name}, RouterAttestation)


def test_digests_stand_once_and_in_order() -> None:
    router = msgspec.convert(ROUTER | {"evidence": [REFERENCE, REFERENCE]}, RouterAttestation)
    inference = msgspec.convert(INFERENCE, InferenceAttestation)
    assert digests_of(router, None, inference) == (DIGEST, f"sha256:{'1' * 64}")
    assert digests_of(None) == ()


def test_what_is_absent_is_not_written() -> None:
    written = msgspec.to_builtins(msgspec.convert(ROUTER, RouterAttestation))
    assert "nonce" not in written
    assert "trust_bundle_url" not in written
    assert msgspec.convert(written, RouterAttestation) == msgspec.convert(ROUTER, RouterAttestation)


@pytest.mark.parametrize(
    "time",
    [
        "2026-02-30T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-01T00:60:00Z",
        "2026-01-01T25:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59Z",
    ],
)
def test_times_that_are_none(time: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        instant_of(time)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001 - made aware
def test_times_are_read_to_the_microsecond(instant: datetime) -> None:
    assert instant_of(instant.strftime("%Y-%m-%dT%H:%M:%S.%f").rjust(26, "0") + "Z") == instant
