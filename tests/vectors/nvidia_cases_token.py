"""Vectors of the tokens of NVIDIA's remote verifier."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nvidia_case import Case

from support.fake_nvidia import AT, NONCE, NRAS, Issued, device_claims, eat, jwks, nras_key, overall_claims, token
from tresor.encodings import base64url_encode

__all__ = ["cases"]

ONE: Final = {"GPU-0": token(device_claims())}
TWO: Final = {f"GPU-{n}": token(device_claims(n)) for n in range(2)}
NOW: Final = int(AT.timestamp())
PUBLIC: Final = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"
GOOD_CHAIN: Final = {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"}
CHAINS: Final = ("attestation-report-cert-chain", "driver-rim-cert-chain", "vbios-rim-cert-chain")


def cases() -> Iterator[Case]:
    """All cases of tokens."""
    yield from _good()
    yield from _containers()
    yield from _claims()
    yield from _devices()
    yield from _keys()


def _case(name: str, title: str, evidence: bytes, **options: Any) -> Case:
    options = {"jwks": (jwks(),), **options}
    return Case(name=name, title=title, spec="5.3.6", kind="eat", evidence=evidence, **options)


def _v3(number: int = 0, **changed: Any) -> dict[str, Any]:
    return device_claims(number, **{f"x-nvidia-gpu-{chain}": GOOD_CHAIN for chain in CHAINS}, **changed)


def _stated(claim: str, value: object) -> dict[str, Any]:
    return {f"x-nvidia-{claim}": value}


def _one(**changed: Any) -> bytes:
    return eat({"GPU-0": token(device_claims(**changed))})


def _good() -> Iterator[Case]:
    yes: dict[str, Any] = {"outcome": "accepted", "claim": "proven"}
    yield _case("601-good", "one GPU", eat(), **yes)
    yield _case(
        "602-eight",
        "eight GPUs",
        eat({f"GPU-{n}": token(device_claims(n)) for n in range(8)}),
        policy={"gpu_count": 8},
        **yes,
    )
    yield _case(
        "603-claims-3",
        "claims of version 3.0 say what the responders answered",
        eat({"GPU-0": token(_v3())}, **_stated("ver", "3.0")),
        policy={"require_revocation": True, "require_rims": True},
        **yes,
    )
    yield _case(
        "604-key-among-others",
        "the key is the second of the set",
        _with_kid("key-1"),
        jwks=(jwks(nras_key("other"), NRAS),),
        **yes,
    )
    yield _case(
        "605-two-key-sets", "recorded key sets of two days", eat(), jwks=(jwks(), jwks(NRAS, nras_key("other"))), **yes
    )
    yield _case("606-clock-a-minute-ahead", "NVIDIA's clock is a minute ahead", eat(iat=NOW + 60, nbf=NOW + 60), **yes)


def _with_kid(kid: str) -> bytes:
    devices = {"GPU-0": token(device_claims(), kid=kid)}
    return eat(devices, token(overall_claims(devices), kid=kid))


def _containers() -> Iterator[Case]:
    claims = overall_claims(ONE)
    good = token(claims)
    head, body, sig = good.split(".")
    public = NRAS.certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    symmetric = hmac.digest(public, token(claims, alg="HS256").rpartition(".")[0].encode(), "sha256")
    der = NRAS.key.sign(f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    strict, bad, invalid = "algorithm_not_allowed", "evidence_malformed", "token_invalid"
    for name, title, text, code in (
        ("611-alg-none", "alg none, no signature", token(claims, alg="none", signature=b""), strict),
        ("612-alg-none-in-capitals", "alg NONE", token(claims, alg="NONE", signature=b""), strict),
        ("613-alg-hs256", "HMAC with the public key", token(claims, alg="HS256", signature=symmetric), strict),
        ("614-alg-es256", "an algorithm for another curve", token(claims, alg="ES256"), strict),
        ("615-alg-absent", "no alg", token(claims, alg=None), strict),
        ("616-kid-unknown", "a kid that is not in the set", token(claims, kid="key-9"), invalid),
        ("617-kid-absent", "no kid", token(claims, kid=None), bad),
        ("618-kid-number", "the kid is a number", token(claims, kid=0), bad),
        ("619-key-in-token", "the token brings its key", token(claims, jwk={"kty": "EC"}), invalid),
        ("620-certificates-in-token", "the token brings its certificates", token(claims, x5c=[]), invalid),
        ("621-crit", "a critical member", token(claims, crit=["b64"], b64=False), invalid),
        (
            "622-signature-flipped",
            "one bit of the signature",
            f"{head}.{body}.{'B' if sig[0] == 'A' else 'A'}{sig[1:]}",
            "signature_invalid",
        ),
        ("623-signature-der", "the signature is DER", token(claims, signature=der), "signature_invalid"),
        ("624-signature-zero", "r and s are zero", token(claims, signature=bytes(96)), "signature_invalid"),
        ("625-padding", "base64url with padding", f"{head}.{body}.{sig}=", bad),
        ("626-two-segments", "no signature", f"{head}.{body}", bad),
        ("627-four-segments", "a segment too many", f"{good}.{sig}", bad),
        (
            "628-key-of-another",
            "signed by a key that is not the kid's",
            token(claims, nras_key("other")),
            "signature_invalid",
        ),
    ):
        yield _case(name, title, eat(ONE, text), code=code, outcome="rejected", claim="refuted")
    for name, title, data, code in (
        ("631-not-json", "a bare token", good.encode(), bad),
        ("632-no-devices", "no token of a device", json.dumps([["JWT", good], {}]).encode(), bad),
        (
            "633-name-with-zero",
            "a device called GPU-00",
            json.dumps([["JWT", good], {"GPU-00": ONE["GPU-0"]}]).encode(),
            bad,
        ),
        ("634-duplicate-device", "GPU-0 stands twice", f'[["JWT","{good}"],{{"GPU-0":"a","GPU-0":"b"}}]'.encode(), bad),
        ("635-cbor", "CWT in place of JWT", json.dumps([["CWT", good], ONE]).encode(), bad),
    ):
        yield _case(name, title, data, code=code, outcome="rejected", claim="refuted")


def _claims() -> Iterator[Case]:
    no: dict[str, Any] = {"outcome": "rejected", "claim": "refuted"}
    invalid, submodule = "token_invalid", "token_submodule_mismatch"
    digest = hashlib.sha256(ONE["GPU-0"].encode()).hexdigest()
    body = json.dumps(overall_claims(ONE), separators=(",", ":"))
    for name, title, data, code in (
        ("641-expired", "expired this second", eat(exp=NOW), "token_expired"),
        ("642-of-the-future", "issued in two minutes", eat(iat=NOW + 120, exp=NOW + 3600), "time_implausible"),
        ("643-not-before", "not before two minutes from now", eat(nbf=NOW + 120), "time_implausible"),
        ("644-good-for-a-year", "lives a year", eat(exp=NOW + 365 * 86400), "time_implausible"),
        ("645-issuer", "another issuer", eat(iss="https://nras.attestation-stg.nvidia.com"), "token_issuer_mismatch"),
        ("646-subject", "another subject", eat(sub="NVIDIA-DEVICE"), invalid),
        (
            "647-device-token-as-overall",
            "a device's token in place of the overall one",
            eat(ONE, ONE["GPU-0"]),
            invalid,
        ),
        ("648-exp-as-text", "exp is text", eat(exp=str(NOW + 60)), invalid),
        ("649-exp-as-fraction", "exp is a fraction", eat(exp=NOW + 60.5), invalid),
        ("650-result-as-text", "the overall result is text", eat(**_stated("overall-att-result", "true")), invalid),
        ("651-result-as-number", "the overall result is 1", eat(**_stated("overall-att-result", 1)), invalid),
        ("652-no-submodules", "the overall token speaks of no device", eat(submods={}), invalid),
        ("653-nonce-absent", "no nonce", eat(eat_nonce=None), invalid),
        ("654-nonce-in-base64", "the nonce in base64", eat(eat_nonce=base64.b64encode(NONCE).decode()), invalid),
        (
            "655-nonce-in-capitals",
            "the nonce in other digits",
            eat(eat_nonce=bytes(range(200, 232)).hex().upper()),
            invalid,
        ),
        ("656-digest-sha1", "another digest algorithm", eat(submods={"GPU-0": ["DIGEST", ["SHA-1", digest]]}), invalid),
        (
            "657-negative",
            "NVIDIA signed a negative result",
            eat(**_stated("overall-att-result", False)),
            "gpu_result_negative",
        ),
        (
            "658-tokens-exchanged",
            "the tokens of two GPUs are exchanged",
            eat({"GPU-0": TWO["GPU-1"], "GPU-1": TWO["GPU-0"]}, token(overall_claims(TWO))),
            submodule,
        ),
        ("659-token-missing", "a GPU of the overall token is missing", eat(ONE, token(overall_claims(TWO))), submodule),
        (
            "660-token-too-many",
            "a GPU that the overall token does not know",
            eat(TWO, token(overall_claims(ONE))),
            submodule,
        ),
    ):
        yield _case(name, title, data, code=code, **no)
    head = token({}).partition(".")[0]
    doubled = base64url_encode(body.replace("{", '{"sub":"x",', 1).encode())
    yield _case("661-claim-twice", "a claim stands twice", eat(ONE, _resigned(f"{head}.{doubled}")), code=invalid, **no)
    proven: dict[str, Any] = {"outcome": "rejected", "claim": "proven"}
    yield _case(
        "662-nonce-other", "another nonce was expected", eat(), nonce=bytes(32), code="nonce_mismatch", **proven
    )
    public = eat({"GPU-0": token(device_claims(eat_nonce=PUBLIC))}, eat_nonce=PUBLIC)
    yield _case(
        "663-nonce-public",
        "the public nonce is never fresh",
        public,
        nonce=bytes.fromhex(PUBLIC),
        code="nonce_public",
        **proven,
    )
    yield _case("664-count", "one GPU of eight", eat(), policy={"gpu_count": 8}, code="gpu_count_mismatch", **proven)
    yield _case(
        "665-driver-below-floor",
        "the driver is too old",
        eat(),
        policy={"min_driver_version": "570.0"},
        code="tcb_below_floor",
        **proven,
    )
    maybe: dict[str, Any] = {"outcome": "undecided", "claim": "proven"}
    yield _case(
        "671-mode-not-stated",
        "the policy refuses protected PCIe, of which a token does not speak",
        eat(),
        policy={"allow_protected_pcie": False},
        code="attributes_not_allowed",
        **maybe,
    )
    yield _case(
        "672-revocation-not-stated",
        "claims of version 2.0 do not speak of revocation",
        eat(),
        policy={"require_revocation": True},
        code="revocation_unknown",
        **maybe,
    )


def _resigned(signed: str) -> str:
    r, s = decode_dss_signature(NRAS.key.sign(signed.encode(), ec.ECDSA(hashes.SHA384(), deterministic_signing=True)))
    return f"{signed}.{base64url_encode(r.to_bytes(48) + s.to_bytes(48))}"


def _devices() -> Iterator[Case]:
    """What the overall result does not say of a single device."""
    no: dict[str, Any] = {"outcome": "rejected", "claim": "refuted"}
    negative = "gpu_result_negative"
    error = {"code": 4010, "message": "NONCE_NOT_MATCHING"}
    failed = dict.fromkeys(("measres", "secboot", "dbgstat", "eat_nonce"), ...)
    bad_chain = {**GOOD_CHAIN, "x-nvidia-cert-ocsp-status": "revoked"}
    for name, title, data, code in (
        (
            "681-measurements-fail",
            "one GPU's measurements differ, the overall result is positive",
            _one(measres="fail"),
            negative,
        ),
        ("682-measurements-not-stated", "nothing is said of measurements", _one(measres=...), negative),
        ("683-no-secure-boot", "secure boot is off", _one(secboot=False), negative),
        ("684-secure-boot-not-stated", "nothing is said of secure boot", _one(secboot=None), negative),
        ("685-debug-enabled", "debug features are on", _one(dbgstat="enabled"), "debug_enabled"),
        ("686-debug-not-stated", "nothing is said of debug features", _one(dbgstat=...), negative),
        ("687-claim-false", "one of NVIDIA's checks is false", _one(**_stated("gpu-arch-check", False)), negative),
        ("688-error", "NVIDIA could not judge one GPU", _one(**failed, **_stated("error-details", error)), negative),
        (
            "689-second-of-two-fails",
            "the second of two fails",
            eat({**ONE, "GPU-1": token(device_claims(1, measres="fail"))}),
            negative,
        ),
        (
            "690-chain-revoked",
            "NVIDIA found a certificate revoked",
            eat({"GPU-0": token(_v3(**_stated("gpu-x-cert-chain", bad_chain)))}),
            negative,
        ),
        (
            "691-chain-unreadable",
            "what NVIDIA found of a chain has another form",
            _one(**_stated("gpu-x-cert-chain", "valid")),
            "token_invalid",
        ),
        ("692-nonce-of-another", "a GPU's token has another nonce", _one(eat_nonce="00" * 32), "nonce_mismatch"),
        ("693-device-expired", "a GPU's token has expired", _one(exp=NOW - 1), "token_expired"),
        (
            "694-device-issuer",
            "a GPU's token has another issuer",
            _one(iss="https://nras.test"),
            "token_issuer_mismatch",
        ),
        (
            "695-device-key",
            "a GPU's token is signed by another key",
            eat({"GPU-0": token(device_claims(), nras_key("other"))}),
            "signature_invalid",
        ),
        (
            "696-same-gpu-twice",
            "one GPU stands twice",
            eat({"GPU-0": token(device_claims()), "GPU-1": token(device_claims(jti="2"))}),
            "gpu_duplicate",
        ),
        ("697-architecture", "a chip that is not allowed", _one(hwmodel="GX100"), "gpu_architecture_mismatch"),
    ):
        yield _case(name, title, data, code=code, **no)


def _keys() -> Iterator[Case]:
    made, old = nras_key("self-made"), nras_key(valid_until=AT - timedelta(seconds=1))
    other = msgspec.json.decode(jwks(nras_key("other")))["keys"][0]
    leaf_alone = [base64.b64encode(NRAS.der).decode()]
    malformed = "collateral_malformed"
    refuted: dict[str, Any] = {"outcome": "rejected", "claim": "refuted"}
    for name, title, data, keys, code in (
        (
            "701-self-made-keys",
            "a key set under an intermediate made here",
            _signed_by(made),
            jwks(made),
            "root_not_pinned",
        ),
        (
            "702-intermediate-absent",
            "the key's certificate comes alone",
            eat(),
            jwks(x5c=leaf_alone),
            "root_not_pinned",
        ),
        (
            "703-key-expired",
            "the key's certificate ended a second before",
            _signed_by(old),
            jwks(old),
            "certificate_expired",
        ),
        ("704-key-not-certified", "the certificate is for another key", eat(), jwks(x5c=other["x5c"]), "token_invalid"),
        ("705-no-certificates", "a key without certificates", eat(), jwks(x5c=[]), malformed),
        ("706-private-key", "the set holds a private key", eat(), jwks(d="AA"), malformed),
        ("707-curve", "a key on another curve", eat(), jwks(crv="P-256"), malformed),
        ("708-not-a-key-set", "no key set", eat(), b"{}", malformed),
        ("709-not-json", "no JSON", eat(), b"<html>", malformed),
    ):
        yield _case(name, title, data, jwks=(keys,), code=code, **refuted)
    two = (jwks(), jwks(nras_key("other")))
    yield _case(
        "710-kid-for-two-keys", "two key sets contradict each other", eat(), jwks=two, code=malformed, **refuted
    )
    yield _case(
        "711-no-key-set",
        "no key set at hand",
        eat(),
        jwks=(),
        code="collateral_missing",
        outcome="undecided",
        claim="unknown",
    )


def _signed_by(key: Issued) -> bytes:
    devices = {"GPU-0": token(device_claims(), key)}
    return eat(devices, token(overall_claims(devices), key))
