"""Parsers of the release ceremony: any bytes give a value or our error, and what we sign we take."""

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from tresor.encodings import base64url_decode, base64url_encode
from tresor.trust import compact, eddsa
from tresor.trust.bundle import (
    BUNDLE_SCHEMA,
    REGISTER_BYTES,
    TCB_COMPONENTS,
    BundleClaims,
    ManifestKeys,
    TrustBundle,
    parse_bundle,
    sign_bundle,
    verify_bundle,
    verify_bundle_signature,
    verify_manifest,
)
from tresor.trust.compact import BUNDLE, MANIFEST, parse_compact, sign_compact, verify_compact
from tresor.trust.errors import TrustCode, TrustError, TrustMalformedError, TrustSignatureError
from tresor.trust.jwk import TrustKey
from tresor.trust.manifest import (
    MANIFEST_SCHEMA,
    ManifestClaims,
    parse_manifest,
    sign_manifest,
    verify_manifest_signature,
    workload_identity_tag,
)
from tresor.trust.release_root import (
    encode_private_key,
    encode_public_jwk,
    encode_public_pem,
    is_encrypted,
    parse_private_key,
    parse_public_key,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "trust"
BUNDLE_TOKEN = (VECTORS / "bundle.jws").read_bytes()
MANIFEST_TOKEN = (VECTORS / "manifest.jws").read_bytes()
ROOT_JWK = (VECTORS / "root.jwk").read_bytes()
PAYLOAD = base64url_decode(BUNDLE_TOKEN.decode().split(".")[1])
MANIFEST_PAYLOAD = base64url_decode(MANIFEST_TOKEN.decode().split(".")[1])
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = TrustKey.of(KEY.public_key())
PASSPHRASE = b"twenty characters of it"
AWKWARD = (b"null", b"[]", b"{}", b'"', b"\\ud800", b"NaN", b"1e999", b"-0", b"\xef\xbb\xbf", b"." * 3, b"[" * 2000)


def damaged(*good: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, and good input with some of it replaced, taken out or doubled."""

    @st.composite
    def damage(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(good))
        for _ in range(draw(st.integers(1, 3))):
            a, b = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
            put = draw(st.one_of(st.just(b""), st.just(data[a:b] * 2), st.binary(max_size=3), st.sampled_from(AWKWARD)))
            data = data[:a] + put + data[b:]
        return data

    return st.one_of(st.binary(max_size=64), damage())


@pytest.mark.parametrize(
    ("parse", "good"),
    [
        pytest.param(parse_bundle, (BUNDLE_TOKEN, MANIFEST_TOKEN), id="parse_bundle"),
        pytest.param(parse_manifest, (BUNDLE_TOKEN, MANIFEST_TOKEN), id="parse_manifest"),
        pytest.param(lambda data: parse_bundle(data).content(), (BUNDLE_TOKEN,), id="unverified bundle"),
        pytest.param(lambda data: parse_manifest(data).claims(), (MANIFEST_TOKEN,), id="unverified manifest"),
        pytest.param(parse_public_key, (ROOT_JWK, encode_public_pem(PUBLIC)), id="parse_public_key"),
        pytest.param(
            lambda data: parse_private_key(data, None), (encode_private_key(KEY, None),), id="parse_private_key"
        ),
        pytest.param(
            lambda data: parse_private_key(data, PASSPHRASE),
            (encode_private_key(KEY, PASSPHRASE),),
            id="parse_private_key encrypted",
        ),
    ],
)
def test_any_bytes_parse_or_raise_our_error(parse: Callable[[bytes], object], good: tuple[bytes, ...]) -> None:
    @given(data=damaged(*good))
    @settings(deadline=None, max_examples=150)
    def check(data: bytes) -> None:
        with contextlib.suppress(TrustError):
            parse(data)

    check()


@given(payload=damaged(PAYLOAD))
@settings(deadline=None, max_examples=200)
def test_any_content_that_the_root_signed_is_a_bundle_or_our_error(payload: bytes) -> None:
    unverified = parse_bundle(sign_compact(BUNDLE, KEY, payload).encode())
    with contextlib.suppress(TrustError):
        verify_bundle(unverified, PUBLIC, now=NOW, min_version=0, allow_simulated=True)


@given(payload=damaged(MANIFEST_PAYLOAD))
@settings(deadline=None, max_examples=200)
def test_any_content_that_a_manifest_key_signed_is_a_manifest_or_our_error(payload: bytes) -> None:
    unverified = parse_manifest(sign_compact(MANIFEST, KEY, payload).encode())
    with contextlib.suppress(TrustError):
        verify_manifest_signature(unverified, {PUBLIC.kid: PUBLIC})


# --- What we sign we take -------------------------------------------------------------------------------------------

words = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,63}\Z", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: f"sha256:{raw.hex()}")
seconds = st.integers(0, 4_000_000_000)


def hex_of(size: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=size, max_size=size).map(bytes.hex)


def registers(launch: str) -> st.SearchStrategy[dict[str, str]]:
    others = {name: hex_of(size) for name, size in REGISTER_BYTES.items() if name not in {"MEASUREMENT", "MRTD"}}
    return st.fixed_dictionaries({launch: hex_of(48)}, optional=others)


floors = st.fixed_dictionaries(
    {}, optional={product: st.fixed_dictionaries({c: st.integers(0, 255) for c in names})
                  for product, names in TCB_COMPONENTS.items()}
)  # fmt: skip


@st.composite
def bundles(draw: st.DrawFn) -> BundleClaims:
    issued_at = datetime.fromtimestamp(draw(seconds), UTC)
    valid_until = issued_at + timedelta(seconds=draw(st.integers(1, 366 * 86_400)))
    good = msgspec.json.decode(PAYLOAD, type=BundleClaims)
    return BundleClaims(
        schema=BUNDLE_SCHEMA,
        workload=draw(words),
        version=draw(st.integers(1, (1 << 53) - 1)),
        issued_at=f"{issued_at:%Y-%m-%dT%H:%M:%SZ}",
        valid_until=f"{valid_until:%Y-%m-%dT%H:%M:%SZ}",
        allowed_hw_measurements=tuple(
            draw(st.lists(st.one_of(hex_of(48), registers("MEASUREMENT"), registers("MRTD")), max_size=4))
        ),
        allowed_workload_identity_tags=tuple(draw(st.lists(digests, max_size=4))),
        min_tcb=draw(floors),
        hw_roots=good.hw_roots,
        manifest_keys=ManifestKeys(keys=(PUBLIC.jwk(),)),
    )


@given(claims=bundles())
@settings(deadline=None, max_examples=60)
def test_a_bundle_says_what_was_signed(claims: BundleClaims) -> None:
    token = sign_bundle(claims, KEY)
    assert sign_bundle(claims, KEY) == token
    bundle = verify_bundle_signature(parse_bundle(token.encode()), PUBLIC)
    assert bundle.content.claims == claims
    assert bundle.content.tags == {bytes.fromhex(tag[7:]) for tag in claims.allowed_workload_identity_tags}
    assert bundle.content.manifest_keys == {PUBLIC.kid: PUBLIC}
    assert set(bundle.content.hw_roots) == {"amd"}


@given(
    workload=words,
    version=st.from_regex(r"[\x21-\x7e]{1,128}\Z", fullmatch=True),
    image=digests,
    binary=digests,
    metadata=st.dictionaries(st.from_regex(r"[\x21-\x7e]{1,128}\Z", fullmatch=True), st.text(max_size=64), max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_a_manifest_says_what_was_signed(
    workload: str, version: str, image: str, binary: str, metadata: dict[str, str]
) -> None:  # fmt: skip
    claims = ManifestClaims(
        schema=MANIFEST_SCHEMA,
        workload=workload,
        version=version,
        image_digest=image,
        binary_digest=binary,
        build_metadata=metadata,
    )
    token = sign_manifest(claims, KEY).encode()
    manifest = verify_manifest_signature(parse_manifest(token), {PUBLIC.kid: PUBLIC})
    assert manifest.claims == claims
    assert manifest.tag == workload_identity_tag(token)


def test_what_no_verifier_would_take_is_not_signed() -> None:
    good = msgspec.json.decode(PAYLOAD, type=BundleClaims)
    wrong: tuple[dict[str, Any], ...] = (
        {"workload": "Tresor"},
        {"version": 0},
        {"hw_roots": {}},
        {"min_tcb": {"Milan": {}}},
    )
    for changes in wrong:
        with pytest.raises(TrustMalformedError):
            sign_bundle(msgspec.structs.replace(good, **changes), KEY)
    manifest = msgspec.json.decode(MANIFEST_PAYLOAD, type=ManifestClaims)
    with pytest.raises(TrustMalformedError):
        sign_manifest(msgspec.structs.replace(manifest, image_digest="0" * 64), KEY)


# --- Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BUNDLE, MANIFEST], ids=["bundle", "manifest"])
def test_a_giant_token_is_not_looked_at(kind: compact.TokenKind) -> None:
    for token in (b"a" * (kind.max_chars + 1), b"." * (kind.max_chars + 1)):
        with pytest.raises(TrustMalformedError) as refused:
            parse_compact(kind, token)
        assert refused.value.code == TrustCode.TOKEN_TOO_LARGE
    with pytest.raises(TrustMalformedError) as refused:
        sign_compact(kind, KEY, b" " * kind.max_chars)
    assert refused.value.code == TrustCode.TOKEN_TOO_LARGE


def test_one_kind_is_not_read_as_the_other() -> None:
    for signed, read in ((BUNDLE, MANIFEST), (MANIFEST, BUNDLE)):
        with pytest.raises(TrustMalformedError) as refused:
            parse_compact(read, sign_compact(signed, KEY, b"{}").encode())
        assert refused.value.code == TrustCode.TYP_MISMATCH


def test_a_forged_token_is_not_parsed_as_json() -> None:
    token = sign_compact(BUNDLE, KEY, b"no JSON")
    other = TrustKey.of(ed25519.Ed25519PrivateKey.generate().public_key())
    with pytest.raises(TrustSignatureError):
        verify_compact(parse_compact(BUNDLE, token.encode()), other)


@given(raw=st.binary(min_size=32, max_size=32))
@settings(max_examples=200)
def test_a_key_that_is_taken_is_a_point(raw: bytes) -> None:
    """Half of all strings are points; what the check says agrees with a square root taken."""
    p = (1 << 255) - 19
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    square = (y * y - 1) * pow(-121665 * pow(121666, -1, p) * y * y + 1, -1, p) % p
    root = pow(square, (p + 3) // 8, p)
    on_curve = square in (root * root % p, -root * root % p)
    try:
        eddsa.check_public_key(raw)
        taken = True
    except TrustMalformedError:
        taken = False
    assert taken == (on_curve and y < p and y not in {0, 1})  # these two have small order, and Hypothesis finds them


# --- Private keys ---------------------------------------------------------------------------------------------------


def code_of(pem: bytes, passphrase: bytes | None) -> TrustCode | None:
    try:
        parse_private_key(pem, passphrase)
    except TrustMalformedError as error:
        return error.code
    return None


def test_private_keys_come_back() -> None:
    for passphrase in (None, PASSPHRASE, os.urandom(1000)):
        pem = encode_private_key(KEY, passphrase)
        assert is_encrypted(pem) == (passphrase is not None)
        assert parse_private_key(pem, passphrase).private_bytes_raw() == bytes(range(32))


def test_passphrases() -> None:
    plain, encrypted = encode_private_key(KEY, None), encode_private_key(KEY, PASSPHRASE)
    assert code_of(encrypted, None) == TrustCode.PASSPHRASE_WRONG
    assert code_of(encrypted, b"another one") == TrustCode.PASSPHRASE_WRONG
    assert code_of(plain, PASSPHRASE) == TrustCode.PASSPHRASE_WRONG
    assert code_of(b"-----BEGIN PRIVATE KEY-----", None) == TrustCode.KEY_MALFORMED


@pytest.mark.parametrize("other", [ec.generate_private_key(ec.SECP256R1()), ed448.Ed448PrivateKey.generate()])
def test_keys_of_other_kinds(other: Any) -> None:
    private = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert code_of(private, None) == TrustCode.KEY_NOT_ALLOWED
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TrustMalformedError) as refused:
        parse_public_key(public)
    assert refused.value.code == TrustCode.KEY_NOT_ALLOWED


def test_public_keys_come_back() -> None:
    assert parse_public_key(encode_public_jwk(PUBLIC)) == PUBLIC
    assert parse_public_key(encode_public_pem(PUBLIC)) == PUBLIC
    assert base64url_decode(PUBLIC.jwk().x) == PUBLIC.raw
    assert base64url_encode(PUBLIC.raw) == PUBLIC.jwk().x


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_private_key_is_no_public_one(passphrase: bytes | None) -> None:
    with pytest.raises(TrustMalformedError) as refused:
        parse_public_key(encode_private_key(KEY, passphrase))
    assert refused.value.code == TrustCode.KEY_PRIVATE


def test_a_weak_key_is_refused_in_pem_too() -> None:
    weak = ed25519.Ed25519PublicKey.from_public_bytes(bytes([1]) + bytes(31))
    pem = weak.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TrustMalformedError) as refused:
        parse_public_key(pem)
    assert refused.value.code == TrustCode.KEY_WEAK


# --- What is said of a refusal --------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said() -> None:
    root = parse_public_key(ROOT_JWK)
    with pytest.raises(TrustError) as refused:
        verify_bundle(
            parse_bundle(BUNDLE_TOKEN), root, now=datetime(2030, 1, 1, tzinfo=UTC), min_version=18, workload="other"
        )
    assert refused.value.code == TrustCode.BUNDLE_WORKLOAD_MISMATCH
    for part in ("is about 'tresor-router'", "valid until 2026-03-31T00:00:00Z", "version 17, and 18"):
        assert part in str(refused.value)


def test_verified_things_have_their_own_types() -> None:
    root = parse_public_key(ROOT_JWK)
    assert not isinstance(verify_bundle_signature(parse_bundle(BUNDLE_TOKEN), root), TrustBundle)
    bundle = verify_bundle(parse_bundle(BUNDLE_TOKEN), root, now=NOW, min_version=0)
    assert verify_manifest(parse_manifest(MANIFEST_TOKEN), bundle).claims.workload == "tresor-router"


def test_no_representation_shows_a_token() -> None:
    assert BUNDLE_TOKEN.decode()[:40] not in repr(parse_bundle(BUNDLE_TOKEN))
