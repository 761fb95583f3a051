"""Receipt vectors 100 to 299: the container and its protected header."""

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

from receipt_case import Case
from receipt_material import (
    HEADER,
    JTI,
    KEY,
    KID,
    MALLORY,
    OTHER_JTI,
    api_json,
    b64,
    claims,
    coordinates,
    integers,
    json_bytes,
    jwk,
    jwks,
    kid_of,
    raw_signature,
    token,
)

__all__ = ["container", "header"]

_GOOD = token()
_HEADER, _PAYLOAD, _SIGNATURE = _GOOD.split(".")
_SIGNATURE_BYTES = raw_signature(*integers(_GOOD.rpartition(".")[0].encode()))
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _with_trailing_bits(data: bytes) -> str:
    """Return base64url of `data` with the lowest bit of its last character set, which decodes to nothing."""
    if len(data) % 3 == 0:
        raise ValueError("no bit of this base64url is unused")
    text = b64(data)
    return text[:-1] + _ALPHABET[_ALPHABET.index(text[-1]) | 1]


def _standard_alphabet() -> str:
    """Return a payload that has - and _ in base64url, with + and / in their place."""
    text = b64(json_bytes(claims(later="???>>>???>>>")))
    if not {"-", "_"} <= set(text):
        raise ValueError("the payload needs neither - nor _")
    return text.replace("-", "+").replace("_", "/")


def container() -> Iterator[Case]:
    """Yield what is not one compact JWS, bare or in the API's JSON."""
    flattened = {"protected": _HEADER, "payload": _PAYLOAD, "signature": _SIGNATURE}
    general = {"payload": _PAYLOAD, "signatures": [{"protected": _HEADER, "signature": _SIGNATURE}] * 2}
    unprotected = {"payload": _PAYLOAD, "signature": _SIGNATURE, "protected": _HEADER, "header": {"kid": KID}}
    for number, name, title, receipt, code in (
        (100, "no-token", "Something else altogether", b"Bearer tr-0123", "token_malformed"),
        (101, "two-segments", "The signature is missing", f"{_HEADER}.{_PAYLOAD}", "token_malformed"),
        (102, "four-segments", "A segment too many", f"{_GOOD}.{_SIGNATURE}", "token_malformed"),
        (103, "five-segments", "The form of a JWE", f"{_GOOD}.{_SIGNATURE}.{_SIGNATURE}", "token_malformed"),
        (104, "empty-header", "The header segment is empty", f".{_PAYLOAD}.{_SIGNATURE}", "json_malformed"),
        (
            105,
            "detached-payload",
            "The payload is elsewhere (RFC 7515, appendix F)",
            f"{_HEADER}..{_SIGNATURE}",
            "signature_invalid",
        ),
        (106, "empty-signature", "The signature segment is empty", f"{_HEADER}.{_PAYLOAD}.", "signature_malformed"),
        (110, "padding", "base64 padding", f"{_HEADER}.{_PAYLOAD}.{_SIGNATURE}==", "base64url_malformed"),
        (
            111,
            "standard-alphabet",
            "The alphabet with + and /",
            f"{_HEADER}.{_standard_alphabet()}.{_SIGNATURE}",
            "base64url_malformed",
        ),
        (
            112,
            "white-space-inside",
            "The token is wrapped over two lines",
            f"{_HEADER}.{_PAYLOAD[:76]}\n{_PAYLOAD[76:]}.{_SIGNATURE}",
            "base64url_malformed",
        ),
        (
            113,
            "trailing-bits-in-signature",
            "Another spelling of the same signature",
            f"{_HEADER}.{_PAYLOAD}.{_with_trailing_bits(_SIGNATURE_BYTES)}",
            "base64url_malformed",
        ),
        (
            114,
            "trailing-bits-in-header",
            "Another spelling of the same header",
            f"{_with_trailing_bits(json_bytes(HEADER))}.{_PAYLOAD}.{_SIGNATURE}",
            "base64url_malformed",
        ),
        (
            115,
            "impossible-length",
            "A character too many",
            f"{_HEADER}.{_PAYLOAD}.{_SIGNATURE}AAA",
            "base64url_malformed",
        ),
        (116, "look-alike-dot", "A dot of another script", _GOOD.replace(".", "\u2024"), "token_malformed"),
        (117, "byte-order-mark", "A byte order mark in front of the token", f"\ufeff{_GOOD}", "token_malformed"),
        (118, "nul-behind", "A NUL behind the token", f"{_GOOD}\0", "base64url_malformed"),
        (119, "text-behind", "More text behind the token", f"{_GOOD} and more", "base64url_malformed"),
        (120, "two-tokens", "Two tokens, a line each", f"{_GOOD}\n{_GOOD}", "token_malformed"),
        (121, "quoted", "The token as a JSON string", f'"{_GOOD}"', "base64url_malformed"),
        (130, "flattened-json", "The flattened JSON serialisation", json_bytes(flattened), "token_malformed"),
        (131, "several-signatures", "The general JSON serialisation", json_bytes(general), "token_malformed"),
        (132, "unprotected-header", "An unprotected header", json_bytes(unprotected), "token_malformed"),
        (
            133,
            "serialisation-as-receipt",
            "JSON where the token belongs",
            api_json("x").replace(b'"x"', b"{}"),
            "token_malformed",
        ),
        (134, "id-missing", "The API's JSON without id", json_bytes({"receipt": _GOOD}), "token_malformed"),
        (135, "id-number", "An id that is no string", api_json(_GOOD, 7), "token_malformed"),
        (136, "receipt-missing", "The API's JSON without receipt", json_bytes({"id": JTI}), "token_malformed"),
        (
            137,
            "two-receipts",
            "The member receipt stands twice",
            api_json(_GOOD)[:-1] + b',"receipt":"x.y.z"}',
            "json_malformed",
        ),
        (
            138,
            "two-ids",
            "The member id stands twice",
            b'{"id":"%s",' % OTHER_JTI.encode() + api_json(_GOOD)[1:],
            "json_malformed",
        ),
        (139, "json-cut", "The API's JSON was cut", api_json(_GOOD)[:-40], "json_malformed"),
        (140, "json-behind", "A second JSON value behind the first", api_json(_GOOD) * 2, "json_malformed"),
        (
            141,
            "json-not-utf-8",
            "The API's JSON is Latin-1",
            api_json(_GOOD, "\xfc").replace("\xfc".encode(), b"\xfc"),
            "json_malformed",
        ),
        (
            142,
            "json-surrogate",
            "A lone surrogate",
            api_json(_GOOD).replace(JTI.encode(), b"\\udc00"),
            "json_malformed",
        ),
        (143, "json-nested", "Evidence nested without end", b'{"evidence":' + b"[" * 5_000, "json_malformed"),
        (
            144,
            "error-envelope",
            "An error of the API",
            b'{"error":{"code":"not_found"},"request_id":"1"}',
            "token_malformed",
        ),
        (
            145,
            "token-in-json-wrapped",
            "White space around the token in the JSON",
            api_json(f" {_GOOD}"),
            "base64url_malformed",
        ),
    ):
        data = receipt if isinstance(receipt, bytes) else receipt.encode()
        spec = "2.4" if number >= 130 else "2.1"
        yield Case(name=f"{number}-{name}", title=title, spec=spec, receipt=data, expect=code)


def _of_header(**changes: Any) -> bytes:
    return token(header={name: value for name, value in (HEADER | changes).items() if value is not ...}).encode()


def _unsigned(**changes: Any) -> bytes:
    return f"{b64(json_bytes(HEADER | changes))}.{_PAYLOAD}.".encode()


def _hmac_with_public_key() -> bytes:
    signing_input = f"{b64(json_bytes(HEADER | {'alg': 'HS256'}))}.{_PAYLOAD}"
    secret = json_bytes(jwk(KEY))
    return f"{signing_input}.{b64(hmac.digest(secret, signing_input.encode(), hashlib.sha256))}".encode()


def _carried(**members: Any) -> bytes:
    return token(header=HEADER | {"kid": kid_of(MALLORY)} | members, key=MALLORY).encode()


def header() -> Iterator[Case]:
    """Yield headers that are not exactly ours."""
    x, y = coordinates(MALLORY)
    mallory = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
    good_json = json_bytes(HEADER)
    for number, name, title, receipt, code in (
        (200, "alg-none", "alg none, no signature", _unsigned(alg="none"), "alg_not_allowed"),
        (201, "alg-none-capital", "alg None, no signature", _unsigned(alg="None"), "alg_not_allowed"),
        (202, "alg-none-signed", "alg none, and a good signature", _of_header(alg="none"), "alg_not_allowed"),
        (203, "alg-empty", "alg is empty", _of_header(alg=""), "alg_not_allowed"),
        (204, "alg-missing", "alg is missing", _of_header(alg=...), "alg_not_allowed"),
        (205, "alg-lower-case", "alg es256", _of_header(alg="es256"), "alg_not_allowed"),
        (
            206,
            "alg-hs256-with-public-key",
            "HMAC with the public key as secret",
            _hmac_with_public_key(),
            "alg_not_allowed",
        ),
        (207, "alg-es384", "alg ES384 under a P-256 key", _of_header(alg="ES384"), "alg_not_allowed"),
        (208, "alg-es256k", "alg ES256K under a P-256 key", _of_header(alg="ES256K"), "alg_not_allowed"),
        (209, "alg-rs256", "alg RS256 under a P-256 key", _of_header(alg="RS256"), "alg_not_allowed"),
        (210, "alg-eddsa", "alg EdDSA under a P-256 key", _of_header(alg="EdDSA"), "alg_not_allowed"),
        (211, "alg-esp256", "The fully specified name of RFC 9864", _of_header(alg="ESP256"), "alg_not_allowed"),
        (212, "alg-number", "alg -7, as COSE has it", _of_header(alg=-7), "alg_not_allowed"),
        (213, "alg-list", "alg is a list", _of_header(alg=["ES256"]), "alg_not_allowed"),
        (220, "crit-unknown", "crit names an unknown extension", _of_header(crit=["x"], x=1), "crit_not_understood"),
        (221, "crit-empty", "crit is empty", _of_header(crit=[]), "crit_not_understood"),
        (222, "crit-twice", "crit names a member twice", _of_header(crit=["typ", "typ"]), "crit_not_understood"),
        (223, "crit-string", "crit is a string", _of_header(crit="typ"), "crit_not_understood"),
        (224, "crit-null", "crit is null", _of_header(crit=None), "crit_not_understood"),
        (
            225,
            "b64-false",
            "An unencoded payload, declared",
            _of_header(crit=["b64"], b64=False),
            "crit_not_understood",
        ),
        (
            226,
            "b64-false-without-crit",
            "An unencoded payload, undeclared",
            _of_header(b64=False),
            "header_not_allowed",
        ),
        (227, "zip", "A compressed payload", _of_header(zip="DEF"), "header_not_allowed"),
        (230, "jwk", "The token brings its own key, and is signed by it", _carried(jwk=mallory), "key_in_token"),
        (231, "jwk-with-known-kid", "The same under the router's kid", _carried(jwk=mallory, kid=KID), "key_in_token"),
        (
            232,
            "jku",
            "The token says where its key is",
            _carried(jku="https://mallory.example/jwks.json"),
            "key_in_token",
        ),
        (
            233,
            "x5u",
            "The token says where its certificate is",
            _carried(x5u="https://mallory.example/"),
            "key_in_token",
        ),
        (234, "x5c", "The token brings a certificate", _carried(x5c=["MIIB"]), "key_in_token"),
        (235, "x5t", "The token names a certificate", _carried(x5t="AAAA"), "key_in_token"),
        (
            236,
            "x5t-s256",
            "The token names a certificate, by SHA-256",
            _carried(**{"x5t#S256": "AAAA"}),
            "key_in_token",
        ),
        (240, "typ-missing", "typ is missing", _of_header(typ=...), "typ_mismatch"),
        (241, "typ-jwt", "typ of any JWT", _of_header(typ="JWT"), "typ_mismatch"),
        (
            242,
            "typ-trust-bundle",
            "A trust bundle as receipt",
            _of_header(typ="tresor-trust-bundle+jwt"),
            "typ_mismatch",
        ),
        (
            243,
            "typ-workload-identity",
            "A workload identity as receipt",
            _of_header(typ="workload-identity+jwt"),
            "typ_mismatch",
        ),
        (244, "typ-status-list", "A status list as receipt", _of_header(typ="statuslist+jwt"), "typ_mismatch"),
        (245, "typ-eat", "An attestation token as receipt", _of_header(typ="eat+jwt"), "typ_mismatch"),
        (246, "typ-capitals", "typ in capitals", _of_header(typ="TRESOR-RECEIPT+JWT"), "typ_mismatch"),
        (
            247,
            "typ-application",
            "typ with application/",
            _of_header(typ="application/tresor-receipt+jwt"),
            "typ_mismatch",
        ),
        (248, "typ-list", "typ is a list", _of_header(typ=["tresor-receipt+jwt"]), "typ_mismatch"),
        (249, "cty", "A nested token is announced", _of_header(cty="JWT"), "header_not_allowed"),
        (250, "kid-missing", "kid is missing", _of_header(kid=...), "kid_invalid"),
        (251, "kid-empty", "kid is empty", _of_header(kid=""), "kid_invalid"),
        (252, "kid-number", "kid is a number", _of_header(kid=1), "kid_invalid"),
        (253, "kid-null", "kid is null", _of_header(kid=None), "kid_invalid"),
        (
            254,
            "kid-unknown",
            "A key that is not in the set",
            token(header=HEADER | {"kid": kid_of(MALLORY)}, key=MALLORY).encode(),
            "kid_unknown",
        ),
        (255, "kid-path", "kid is a path", _of_header(kid="../../../../dev/null"), "kid_unknown"),
        (256, "kid-injection", "kid is SQL", _of_header(kid="x' UNION SELECT 'key'--"), "kid_unknown"),
        (257, "kid-url", "kid is an address", _of_header(kid="https://mallory.example/key"), "kid_unknown"),
        (
            258,
            "kid-look-alike",
            "kid with a letter of another script",
            _of_header(kid=KID.replace("o", "\u043e")),
            "kid_unknown",
        ),
        (259, "kid-capitals", "kid in capitals", _of_header(kid=KID.upper()), "kid_unknown"),
        (260, "kid-prefix", "The beginning of a kid", _of_header(kid=KID[:-1]), "kid_unknown"),
        (
            261,
            "kid-control-characters",
            "kid that writes to the terminal",
            _of_header(kid="\x1b[2J\nPASS\u202e"),
            "kid_unknown",
        ),
        (
            270,
            "member-twice",
            "alg stands twice",
            token(header=b'{"alg":"none",' + good_json[1:]).encode(),
            "json_malformed",
        ),
        (
            271,
            "member-twice-escaped",
            "kid stands twice, once escaped",
            token(header=good_json[:-1] + b',"\\u006bid":"x"}').encode(),
            "json_malformed",
        ),
        (
            272,
            "byte-order-mark",
            "A byte order mark in the header",
            token(header=b"\xef\xbb\xbf" + good_json).encode(),
            "json_malformed",
        ),
        (273, "bytes-behind", "Bytes behind the header", token(header=good_json + b"}").encode(), "json_malformed"),
        (274, "array", "The header is an array", token(header=b"[" + good_json + b"]").encode(), "token_malformed"),
        (275, "null", "The header is null", token(header=b"null").encode(), "token_malformed"),
        (276, "nan", "NaN in the header", token(header=good_json[:-1] + b',"n":NaN}').encode(), "json_malformed"),
        (
            277,
            "not-utf-8",
            "Bytes that are no UTF-8",
            token(header=good_json[:-2] + b'\xc0"}').encode(),
            "json_malformed",
        ),
        (
            278,
            "surrogate",
            "A lone surrogate in the kid",
            token(header=good_json[:-2] + b'\\ud800"}').encode(),
            "json_malformed",
        ),
        (279, "nested", "A header nested without end", token(header=b'{"a":' * 5_000).encode(), "json_malformed"),
        (
            280,
            "unknown-member",
            "A member that receipts do not have",
            _of_header(iss="https://router.example"),
            "header_not_allowed",
        ),
        (
            281,
            "utf-16",
            "The header in UTF-16",
            token(header=good_json.decode().encode("utf-16-le")).encode(),
            "json_malformed",
        ),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="2.2", receipt=receipt, expect=code)
    yield Case(
        name="290-kid-of-another-key",
        title="kid names another key of the set than the one that signed",
        spec="2.2",
        receipt=token(header=HEADER | {"kid": kid_of(MALLORY)}).encode(),
        jwks=jwks(jwk(KEY), jwk(MALLORY)),
        expect="signature_invalid",
    )
