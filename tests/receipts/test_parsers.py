"""Parsers of the receipt side: any bytes give a value or our error, and what we encode we parse."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tresor.encodings import base64url_decode, base64url_encode, parse_json
from tresor.errors import EncodingError, JsonError, ReceiptCode, ReceiptMalformedError, ReceiptSignatureError
from tresor.jose.es256 import sign_es256, verify_es256
from tresor.jose.jwk import kid_of, parse_jwks, public_jwk
from tresor.jose.jws import encode_protected_header, parse_compact, sign_jws, verify_compact
from tresor.limits import MAX_JWKS_BYTES, MAX_RECEIPT_BYTES, MAX_TOKEN_BYTES
from tresor.receipts.claims import ReceiptClaims, ReceiptDraft, encode_claims, parse_claims
from tresor.receipts.verify import parse_receipt

VECTORS = Path(__file__).parents[1] / "vectors" / "receipt"
API_JSON = (VECTORS / "002-api-json" / "receipt.json").read_bytes()
JWKS = (VECTORS / "jwks.json").read_bytes()
TOKEN = (VECTORS / "001-bare-token" / "token.txt").read_bytes()
PAYLOAD = base64url_decode(TOKEN.decode().split(".")[1])
CLAIMS = parse_claims(PAYLOAD)
KEY = ec.generate_private_key(ec.SECP256R1())
P256_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def damaged(*good: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, and good input with some of it replaced, taken out or doubled."""

    @st.composite
    def damage(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(good))
        for _ in range(draw(st.integers(1, 3))):
            a, b = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
            put = draw(
                st.one_of(st.just(b""), st.just(data[a:b] * 2), st.binary(max_size=3), st.sampled_from(_AWKWARD))
            )
            data = data[:a] + put + data[b:]
        return data

    return st.one_of(st.binary(max_size=64), damage())


_AWKWARD = (b"null", b"[]", b"{}", b'"', b"\\ud800", b"NaN", b"1e999", b"-0", b"\xef\xbb\xbf", b"." * 3, b"[" * 2000)


@pytest.mark.parametrize(
    ("parse", "ours", "good"),
    [
        pytest.param(parse_receipt, ReceiptMalformedError, (API_JSON, TOKEN), id="parse_receipt"),
        pytest.param(parse_jwks, ReceiptMalformedError, (JWKS,), id="parse_jwks"),
        pytest.param(parse_claims, ReceiptMalformedError, (PAYLOAD,), id="parse_claims"),
        pytest.param(parse_json, JsonError, (API_JSON, JWKS, PAYLOAD), id="parse_json"),
        pytest.param(
            lambda data: parse_compact(data.decode("latin-1")), ReceiptMalformedError, (TOKEN,), id="parse_compact"
        ),
        pytest.param(lambda data: base64url_decode(data.decode("latin-1")), EncodingError, (TOKEN,), id="base64url"),
    ],
)
def test_any_bytes_parse_or_raise_our_error(
    parse: Callable[[bytes], object], ours: type[Exception], good: tuple[bytes, ...]
) -> None:
    @given(data=damaged(*good))
    @settings(deadline=None, max_examples=150)
    def check(data: bytes) -> None:
        with contextlib.suppress(ours):
            parse(data)

    check()


# --- One spelling ---------------------------------------------------------------------------------------------------


@given(data=st.binary())
def test_base64url_decodes_what_it_encodes(data: bytes) -> None:
    assert base64url_decode(base64url_encode(data)) == data


@given(text=st.text(alphabet="ABCabc019-_+/= \n", max_size=8))
def test_base64url_has_one_spelling(text: str) -> None:
    try:
        data = base64url_decode(text)
    except EncodingError:
        return
    assert base64url_encode(data) == text


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(value=json_values, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
@settings(deadline=None)
def test_parse_json_reads_what_json_writes(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse_json(text.encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{} {}",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'[{"a":1,"b":{"c":0,"c":0}}]',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'{"\\ud800":1}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'"\xed\xa0\x80"',
        b"9" * 4301,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"'a'",
        b"01",
        b"+1",
        b".5",
        b"1.",
        b'"\n"',
        b"[1,]",
        b"/**/1",
    ],
)
def test_parse_json_refuses(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse_json(data)


@pytest.mark.parametrize("data", [b'"\\ud83d\\ude00"', b'"\\\\ud800"', b'{"a":{"b":1},"b":1}', b"9" * 4300, b" [ ] "])
def test_parse_json_accepts(data: bytes) -> None:
    assert parse_json(data) == json.JSONDecoder().decode(data.decode())


# --- Keys, signatures, tokens ---------------------------------------------------------------------------------------


@given(payload=st.binary(max_size=200))
@settings(deadline=None, max_examples=50)
def test_what_we_sign_we_verify(payload: bytes) -> None:
    jwk = public_jwk(KEY.public_key())
    jws = parse_compact(sign_jws(KEY, encode_protected_header(jwk.kid), payload).compact)
    assert verify_compact(jws, KEY.public_key()) == jws.payload == payload
    assert jws.kid == jwk.kid
    assert 0 < int.from_bytes(jws.signature[32:]) <= P256_N // 2


@given(signature=st.one_of(st.binary(max_size=100), st.binary(min_size=64, max_size=64)), data=st.binary(max_size=8))
@settings(deadline=None, max_examples=100)
def test_any_signature_is_refused_with_our_error(signature: bytes, data: bytes) -> None:
    with pytest.raises((ReceiptMalformedError, ReceiptSignatureError)):
        verify_es256(KEY.public_key(), data, signature)


def test_both_values_of_s_verify() -> None:
    signature = sign_es256(KEY, b"text")
    twin = signature[:32] + (P256_N - int.from_bytes(signature[32:])).to_bytes(32)
    verify_es256(KEY.public_key(), b"text", signature)
    verify_es256(KEY.public_key(), b"text", twin)


def test_a_key_set_holds_the_keys_that_were_put_in() -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(5)]
    jwks = [public_jwk(key, iat=number) for number, key in enumerate(keys)]
    parsed = parse_jwks(msgspec.json.encode({"keys": jwks}))
    assert list(parsed) == [kid_of(jwk.x, jwk.y) for jwk in jwks]
    assert [key.public_key for key in parsed.values()] == keys
    assert [key.not_before for key in parsed.values()] == list(range(5))


# --- Claims ---------------------------------------------------------------------------------------------------------

counts = st.none() | st.integers(0, (1 << 53) - 1)
segments = st.text(
    st.characters(exclude_characters="/", exclude_categories=["Z", "C"]), min_size=1, max_size=20
).filter(lambda text: not any(character.isspace() for character in text))
routes = st.builds("/".join, st.lists(segments, min_size=3, max_size=4))


@st.composite
def receipt_claims(draw: st.DrawFn) -> ReceiptClaims:
    route = draw(routes)
    return msgspec.structs.replace(
        CLAIMS,
        iss=draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)),
        jti=str(draw(st.uuids())),
        iat=draw(st.integers(0, 253_402_300_799)),
        seq=draw(st.integers(1, (1 << 53) - 1)),
        requested_route=draw(routes),
        routed_model=route,
        attempts=(msgspec.structs.replace(CLAIMS.attempts[0], route=route),),
        prompt_tokens=draw(counts),
        completion_tokens=draw(counts),
        total_tokens=draw(counts),
        failover=draw(st.booleans()),
        stream=draw(st.booleans()),
        nonce=draw(
            st.none() | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
        ),
        not_checked=tuple(draw(st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True), max_size=3))),
    )


@given(claims=receipt_claims())
@settings(deadline=None)
def test_claims_parse_as_they_were_encoded(claims: ReceiptClaims) -> None:
    draft = msgspec.convert(msgspec.to_builtins(claims), ReceiptDraft)
    blocks = {
        name: msgspec.json.encode(block)
        for name in ("router_attestation", "inference_attestation")
        if (block := getattr(claims, name)) is not None
    }
    members = b"".join(b'"%b":%b,' % (name.encode(), block) for name, block in blocks.items())
    encoded = encode_claims(draft, iat=claims.iat, seq=claims.seq, members=members)
    assert parse_claims(encoded) == claims
    assert (b'"nonce"' in encoded) == (claims.nonce is not None)


def test_a_message_does_not_repeat_the_token() -> None:
    secret = "z" * 300
    with pytest.raises(ReceiptMalformedError) as caught:
        parse_claims(PAYLOAD.replace(b'"complete"', f'"{secret}"'.encode()))
    assert secret[:10] not in str(caught.value)


# --- Sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "data", "code"),
    [
        (parse_receipt, TOKEN + b"A" * MAX_TOKEN_BYTES, ReceiptCode.TOKEN_TOO_LARGE),
        (parse_receipt, API_JSON + b" " * MAX_RECEIPT_BYTES, ReceiptCode.TOKEN_TOO_LARGE),
        (parse_receipt, b'{"id":"x","receipt":"%s"}' % (b"A" * MAX_TOKEN_BYTES + b"A"), ReceiptCode.TOKEN_TOO_LARGE),
        (parse_jwks, JWKS + b" " * MAX_JWKS_BYTES, ReceiptCode.JWKS_MALFORMED),
    ],
)
def test_giants_are_refused(parse: Callable[[bytes], object], data: bytes, code: ReceiptCode) -> None:
    with pytest.raises(ReceiptMalformedError) as caught:
        parse(data)
    assert caught.value.code is code
