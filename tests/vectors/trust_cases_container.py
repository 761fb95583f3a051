"""Trust vectors 100 to 299: the container and its protected header, of bundles and of manifests."""

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

from trust_case import Case
from trust_material import (
    BUNDLE_TYP,
    GOOD_BUNDLE,
    GOOD_MANIFEST,
    MALLORY,
    MANIFEST_KEY,
    MANIFEST_TYP,
    ROOT,
    ROOT_JWK,
    b64,
    bundle_claims,
    bundle_token,
    header,
    json_bytes,
    jwk,
    manifest_claims,
    token,
)

__all__ = ["container", "headers"]

_TEXT = GOOD_BUNDLE.decode()
_HEADER, _PAYLOAD, _SIGNATURE = _TEXT.split(".")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _with_trailing_bit(text: str) -> str:
    """Return base64url with the lowest bit of its last character set, which decodes to nothing."""
    if len(text) % 4 == 0 or _ALPHABET.index(text[-1]) & 1:
        raise ValueError("no bit of this base64url is unused")
    return text[:-1] + _ALPHABET[_ALPHABET.index(text[-1]) | 1]


def _standard_alphabet() -> str:
    """Return a good token that has - or _ in base64url, with + and / in their place."""
    text = next(text for text in map(_of_version, range(17, 1000)) if {"-", "_"} & set(text))
    return text.replace("-", "+").replace("_", "/")


def _of_version(version: int) -> str:
    return bundle_token(version=version).decode()


def container() -> Iterator[Case]:
    """Yield what is not one compact JWS."""
    flattened = {"protected": _HEADER, "payload": _PAYLOAD, "signature": _SIGNATURE}
    general = {"payload": _PAYLOAD, "signatures": [{"protected": _HEADER, "signature": _SIGNATURE}] * 2}
    token_, base64url = "token_malformed", "base64url_malformed"
    for number, name, title, text, code in (
        (100, "no-token", "Something else altogether", "trust me", token_),
        (101, "empty", "No bytes at all", "", token_),
        (102, "two-segments", "The signature is missing", f"{_HEADER}.{_PAYLOAD}", token_),
        (103, "four-segments", "A segment too many", f"{_TEXT}.{_SIGNATURE}", token_),
        (104, "detached-payload", "The payload is elsewhere", f"{_HEADER}..{_SIGNATURE}", "bundle_signature_invalid"),
        (105, "empty-header", "The header segment is empty", f".{_PAYLOAD}.{_SIGNATURE}", "json_malformed"),
        (106, "empty-signature", "The signature segment is empty", f"{_HEADER}.{_PAYLOAD}.", "signature_malformed"),
        (110, "padding", "base64 padding", f"{_TEXT}==", base64url),
        (111, "standard-alphabet", "The alphabet with + and /", _standard_alphabet(), base64url),
        (112, "wrapped", "The token is wrapped over two lines", f"{_TEXT[:400]}\n{_TEXT[400:]}", base64url),
        (113, "trailing-bit", "Another spelling of the same signature", _with_trailing_bit(_TEXT), base64url),
        (114, "impossible-length", "Three characters too many", f"{_TEXT}AAA", base64url),
        (115, "look-alike-dot", "Dots of another script", _TEXT.replace(".", "\u2024"), token_),
        (116, "byte-order-mark", "A byte order mark in front", f"\ufeff{_TEXT}", base64url),
        (117, "nul-behind", "A NUL behind the token", f"{_TEXT}\0", base64url),
        (118, "text-behind", "More text behind the token", f"{_TEXT} and more", base64url),
        (119, "two-tokens", "Two tokens, a line each", f"{_TEXT}\n{_TEXT}", token_),
        (120, "quoted", "The token as a JSON string", f'"{_TEXT}"', base64url),
        (121, "flattened-json", "The flattened JSON serialisation", json_bytes(flattened).decode(), token_),
        (122, "several-signatures", "The general JSON serialisation", json_bytes(general).decode(), token_),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="2", code=code, bundle=text.encode())


def _of_header(**changes: Any) -> bytes:
    return token(header(BUNDLE_TYP, ROOT, **changes), bundle_claims(), ROOT)


def _raw_header(raw: bytes) -> bytes:
    return token(raw, bundle_claims(), ROOT)


def _unsigned(alg: str) -> bytes:
    return f"{b64(json_bytes(header(BUNDLE_TYP, ROOT, alg=alg)))}.{_PAYLOAD}.".encode()


def _hmac_with_public_key() -> bytes:
    signing_input = f"{b64(json_bytes(header(BUNDLE_TYP, ROOT, alg='HS256')))}.{_PAYLOAD}"
    return f"{signing_input}.{b64(hmac.digest(ROOT_JWK, signing_input.encode(), hashlib.sha256))}".encode()


def _carried(**members: Any) -> bytes:
    return token(header(BUNDLE_TYP, MALLORY, **members), bundle_claims(), MALLORY)


def headers() -> Iterator[Case]:
    """Yield headers that are not exactly ours."""
    good = json_bytes(header(BUNDLE_TYP, ROOT))
    alg, crit, carried, other, kid, typ, not_json = (
        "alg_not_allowed",
        "crit_not_understood",
        "key_in_token",
        "header_not_allowed",
        "kid_invalid",
        "typ_mismatch",
        "json_malformed",
    )
    for number, name, title, bundle, code in (
        (200, "alg-none", "alg none, no signature", _unsigned("none"), alg),
        (201, "alg-none-capital", "alg NONE, no signature", _unsigned("NONE"), alg),
        (202, "alg-empty", "alg is empty", _of_header(alg=""), alg),
        (203, "alg-missing", "alg is missing", _of_header(alg=...), alg),
        (204, "alg-lower-case", "alg eddsa", _of_header(alg="eddsa"), alg),
        (205, "alg-hs256-with-public-key", "HMAC with the public key as secret", _hmac_with_public_key(), alg),
        (206, "alg-es256", "alg ES256 under an Ed25519 key", _of_header(alg="ES256"), alg),
        (207, "alg-ed25519", "The name of RFC 9864: one spelling only", _of_header(alg="Ed25519"), alg),
        (208, "alg-ed448", "alg Ed448", _of_header(alg="Ed448"), alg),
        (209, "alg-number", "alg -8, as COSE has it", _of_header(alg=-8), alg),
        (210, "alg-list", "alg is a list", _of_header(alg=["EdDSA"]), alg),
        (220, "crit-unknown", "crit names an unknown extension", _of_header(crit=["x"], x=1), crit),
        (221, "crit-empty", "crit is empty", _of_header(crit=[]), crit),
        (222, "crit-twice", "crit names a member twice", _of_header(crit=["typ", "typ"]), crit),
        (223, "b64-false", "An unencoded payload, declared", _of_header(crit=["b64"], b64=False), crit),
        (224, "b64-undeclared", "An unencoded payload, undeclared", _of_header(b64=False), other),
        (225, "zip", "A compressed payload", _of_header(zip="DEF"), other),
        (226, "cty", "A content type", _of_header(cty="JWT"), other),
        (227, "unknown-member", "A member nobody knows", _of_header(iat=1), other),
        (230, "jwk", "The token brings its own key, and is signed by it", _carried(jwk=jwk(MALLORY)), carried),
        (231, "jku", "The token says where its key is", _carried(jku="https://mallory.example/jwks"), carried),
        (232, "x5c", "The token brings a certificate", _carried(x5c=["AA"]), carried),
        (233, "x5u", "The token says where its certificate is", _carried(x5u="https://mallory.example/"), carried),
        (240, "kid-missing", "kid is missing", _of_header(kid=...), kid),
        (241, "kid-empty", "kid is empty", _of_header(kid=""), kid),
        (242, "kid-number", "kid is a number", _of_header(kid=1), kid),
        (243, "kid-path", "kid is a path", _of_header(kid="../../root.jwk"), "bundle_signature_invalid"),
        (244, "kid-sql", "kid is SQL", _of_header(kid="x' or '1'='1"), "bundle_signature_invalid"),
        (250, "typ-missing", "typ is missing", _of_header(typ=...), typ),
        (251, "typ-jwt", "typ JWT", _of_header(typ="JWT"), typ),
        (252, "typ-receipt", "A receipt's typ", _of_header(typ="tresor-receipt+jwt"), typ),
        (253, "typ-manifest", "A manifest in place of a bundle", GOOD_MANIFEST, typ),
        (
            254,
            "typ-bundle-as-manifest",
            "The root signed bundle content as a manifest",
            _of_header(typ=MANIFEST_TYP),
            typ,
        ),
        (255, "typ-other-case", "typ in capital letters", _of_header(typ=BUNDLE_TYP.upper()), typ),
        (256, "typ-with-prefix", "typ as a whole media type", _of_header(typ=f"application/{BUNDLE_TYP}"), typ),
        (260, "header-array", "The header is an array", _raw_header(b"[" + good + b"]"), "token_malformed"),
        (261, "header-twice-alg", "alg stands twice", _raw_header(b'{"alg":"none",' + good[1:]), not_json),
        (
            262,
            "header-twice-escaped",
            "kid twice, once escaped",
            _raw_header(good[:-1] + b',"\\u006bid":"x"}'),
            not_json,
        ),
        (263, "header-not-utf-8", "The header is Latin-1", _raw_header(b'{"alg":"\xfc"}'), not_json),
        (264, "header-byte-order-mark", "A byte order mark", _raw_header(b"\xef\xbb\xbf" + good), not_json),
        (265, "header-json-behind", "A second value behind the header", _raw_header(good + good), not_json),
        (266, "header-nested", "A header nested without end", _raw_header(b"[" * 20_000), not_json),
        (267, "header-surrogate", "A lone surrogate", _raw_header(good[:-1] + b',"x":"\\udc00"}'), not_json),
        (268, "header-nan", "NaN", _raw_header(good[:-1] + b',"x":NaN}'), not_json),
        (
            269,
            "header-digits",
            "A number of 5000 digits",
            _raw_header(good[:-1] + b',"x":' + b"9" * 5000 + b"}"),
            not_json,
        ),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="2", code=code, bundle=bundle)
    for number, name, title, protected, code in (
        (280, "manifest-typ-jwt", "A manifest with typ JWT", header("JWT", MANIFEST_KEY), typ),
        (281, "manifest-typ-bundle", "A manifest signed as a bundle", header(BUNDLE_TYP, MANIFEST_KEY), typ),
        (282, "manifest-alg-none", "A manifest with alg none", header(MANIFEST_TYP, MANIFEST_KEY, alg="none"), alg),
        (283, "manifest-jwk", "A manifest with its key", header(MANIFEST_TYP, MALLORY, jwk=jwk(MALLORY)), carried),
        (284, "manifest-crit", "A manifest with crit", header(MANIFEST_TYP, MANIFEST_KEY, crit=["x"], x=1), crit),
        (285, "manifest-kid-missing", "A manifest without kid", header(MANIFEST_TYP, MANIFEST_KEY, kid=...), kid),
    ):
        manifest = token(protected, manifest_claims(), MANIFEST_KEY)
        yield Case(name=f"{number}-{name}", title=title, spec="2", kind="manifest", code=code, manifest=manifest)
    yield Case(
        name="286-manifest-is-bundle",
        title="A bundle in place of a manifest",
        spec="2",
        kind="manifest",
        code=typ,
        manifest=GOOD_BUNDLE,
    )
