"""Receipt vectors 950 to 999: the attestation blocks of receipts, and the evidence beside them."""

from collections.abc import Iterator
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from receipt_case import Case
from receipt_material import (
    AT,
    JWKS,
    KEY,
    MALLORY,
    REQUEST,
    RESPONSE,
    api_json,
    attempt,
    claims,
    coordinates,
    digest,
    jwk,
    jwks,
    kid_of,
    token,
    token_of,
)

__all__ = ["attested", "evidence"]

_REPORT = b"a report, or what stands for one here"
_REFERENCE = {
    "type": "snp_report",
    "digest": digest(_REPORT),
    "media_type": "application/octet-stream",
    "size": len(_REPORT),
}
_ITEM = {"media_type": "application/octet-stream", "data": "YSByZXBvcnQsIG9yIHdoYXQgc3RhbmRzIGZvciBvbmUgaGVyZQ=="}


def _router(key: EllipticCurvePrivateKey = KEY, **changes: Any) -> dict[str, Any]:
    x, y = coordinates(key)
    block = {
        "schema": "tresor.attestation/v1",
        "workload": "router",
        "tee": "sev-snp",
        "tls_spki_sha256": "11" * 32,
        "workload_identity_tag": "22" * 32,
        "issued_at": "2026-03-01T11:55:00.000Z",
        "max_age_seconds": 600,
        "receipt_key": {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid_of(key)},
        "evidence": [_REFERENCE],
        "trust_bundle_url": "https://router.example/.well-known/tresor-trust-bundle",
    }
    return {name: value for name, value in (block | changes).items() if value is not ...}


def _inference(**changes: Any) -> dict[str, Any]:
    unknown = {"status": "unknown", "source": "hardware", "reason": "not shown"}
    block = {
        "provider": "tresor",
        "tee": "tdx",
        "status": "verified",
        "required": True,
        "origin": "tresor",
        "verified_at": "2026-03-01T11:55:00Z",
        "expires_at": "2026-03-01T12:05:00Z",
        "verifier": "tresor 0.1.0",
        "channel_binding": {"type": "tls_spki_sha256", "spki_sha256": "33" * 32},
        "measurements": {"MRTD": "44" * 48},
        "claims": {
            "cpu_tee": {"status": "proven", "source": "hardware", "reason": None},
            "gpu_tee": unknown,
            "tcb": unknown,
            "workload": unknown,
        },
        "evidence": [{**_REFERENCE, "type": "answer"}],
        "nonce": "55" * 32,
    }
    return {name: value for name, value in (block | changes).items() if value is not ...}


def _case(name: str, title: str, expect: str = "accept", spec: str = "3.1", **arguments: Any) -> Case:
    at = arguments.pop("at", AT)
    rest = {member: arguments.pop(member) for member in ("jwks", "require", "also") if member in arguments}
    return Case(name=name, title=title, spec=spec, expect=expect, receipt=token_of(**arguments), at=at, **rest)


_WRONG_BLOCKS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("schema-unknown", "another schema", {"schema": "tresor.attestation/v2"}),
    ("time-none", "an instant that does not exist", {"issued_at": "2026-02-30T12:00:00Z"}),
    ("time-not-utc", "an instant without Z", {"issued_at": "2026-03-01T11:55:00+00:00"}),
    ("time-beyond-reckoning", "an instant of which none is later", {"issued_at": "9999-12-31T23:59:59Z"}),
    ("evidence-empty", "no evidence", {"evidence": []}),
    ("evidence-digest-malformed", "evidence without a digest", {"evidence": [{**_REFERENCE, "digest": "00"}]}),
    ("tee-unknown", "a TEE that is none", {"tee": "none"}),
    ("key-missing", "no key", {"receipt_key": ...}),
    (
        "key-of-another-curve",
        "a key of another curve",
        {"receipt_key": {**_router()["receipt_key"], "crv": "P-384"}},
    ),
)


def attested() -> Iterator[Case]:
    """Yield the cases."""
    yield _case("950-router-attested", "A block about the key that signed", router_attestation=_router())
    yield _case(
        "951-both-hops-attested",
        "Both blocks; with members of a later version",
        router_attestation=_router(later=1),
        inference_attestation=_inference(later=[1]),
        not_checked=["gpu_tee", "tcb"],
    )
    yield _case(
        "952-evidence-of-the-last-second",
        "Issued within the life of the evidence and the clocks' difference",
        router_attestation=_router(issued_at="2026-03-01T11:49:00Z"),
    )
    yield _case(
        "953-router-key-not-bound",
        "The block is about another key than the one that signed",
        "router_key_not_bound",
        "8.1",
        router_attestation=_router(MALLORY),
    )
    yield Case(
        name="954-router-key-not-bound-though-listed",
        title="The key set lists the key that signed, and the block is about another key of the set",
        spec="8.1",
        expect="router_key_not_bound",
        receipt=token(
            claims(router_attestation=_router(KEY)),
            header={"alg": "ES256", "kid": kid_of(MALLORY), "typ": "tresor-receipt+jwt"},
            key=MALLORY,
        ).encode(),
        jwks=jwks(jwk(KEY), jwk(MALLORY)),
    )
    yield _case(
        "955-router-key-renamed",
        "The block has the name of the key that signed, and another key",
        "router_key_not_bound",
        "8.1",
        router_attestation=_router(MALLORY, receipt_key={**_router(MALLORY)["receipt_key"], "kid": kid_of(KEY)}),
    )
    yield _case(
        "956-evidence-stale",
        "Issued when the evidence counted no more",
        "router_attestation_stale",
        "8.1",
        router_attestation=_router(issued_at="2026-03-01T11:48:59Z"),
    )
    yield _case(
        "957-evidence-from-later",
        "Issued before the evidence was made",
        "router_attestation_stale",
        "8.1",
        router_attestation=_router(issued_at="2026-03-01T12:01:01Z"),
    )
    yield _case(
        "958-router-attestation-missing",
        "No block where the router must be attested",
        "router_attestation_missing",
        "8.1",
        require="router",
    )
    yield _case(
        "959-inference-attestation-missing",
        "No block where the upstream must be attested",
        "inference_attestation_missing",
        "8.1",
        require="inference",
    )
    yield _case(
        "960-both-missing",
        "No block where both must be attested",
        "router_attestation_missing",
        "8.1",
        require="router,inference",
        also=("inference_attestation_missing",),
    )
    for number, (name, title, change) in enumerate(_WRONG_BLOCKS, 961):
        yield _case(
            f"{number}-block-{name}",
            f"A router_attestation with {title}",
            "claims_invalid",
            router_attestation=_router(**change),
        )
    yield _case("970-block-null", "A router_attestation that is null is none", router_attestation=None)
    yield _case(
        "971-inference-time-none",
        "An inference_attestation with an instant that does not exist",
        "claims_invalid",
        "3.2",
        inference_attestation=_inference(expires_at="2026-13-01T00:00:00Z"),
    )
    yield _case(
        "972-inference-without-an-answer",
        "An inference_attestation where no upstream answered",
        "claims_inconsistent",
        "4.4",
        inference_attestation=_inference(),
        routed_model=None,
        upstream_response_digest=None,
        outcome="refused",
        attempts=[attempt(outcome="failed", reason="timeout", status=None)],
        status=504,
    )


def evidence() -> Iterator[Case]:
    """Yield the cases of the API's JSON."""
    good = token(claims(router_attestation=_router()))

    def case(name: str, title: str, expect: str, held: Any) -> Case:
        return Case(
            name=name,
            title=title,
            spec="2.4",
            expect=expect,
            receipt=api_json(good, evidence=held),
            jwks=JWKS,
            request=REQUEST,
            response=RESPONSE,
        )

    yield case("980-evidence", "What the receipt refers to, beside it", "accept", {digest(_REPORT): _ITEM})
    yield case(
        "981-evidence-changed",
        "One bit of the evidence is another",
        "evidence_digest_mismatch",
        {digest(_REPORT): {**_ITEM, "data": "Z" + _ITEM["data"][1:]}},
    )
    yield case(
        "982-evidence-exchanged",
        "Evidence under the digest of other evidence",
        "evidence_digest_mismatch",
        {digest(_REPORT): _ITEM, digest(b"other"): _ITEM},
    )
    yield case(
        "983-evidence-digest-of-another-hash",
        "Evidence under a digest of another algorithm",
        "evidence_digest_mismatch",
        {"sha512:" + "00" * 64: _ITEM},
    )
    for number, (name, title, held) in enumerate(
        (
            ("not-an-object", "no object", [_ITEM]),
            ("item-without-data", "an item without data", {digest(_REPORT): {"media_type": "a/b"}}),
            ("not-base64", "an item that is not base64", {digest(_REPORT): {**_ITEM, "data": "YS-_"}}),
            ("data-number", "an item that is a number", {digest(_REPORT): {**_ITEM, "data": 0}}),
        ),
        start=984,
    ):
        yield case(f"{number}-evidence-{name}", f"Evidence with {title}", "token_malformed", held)
