"""Compact JWS of the release ceremony: one algorithm, one type per kind, keys only from outside (RFC 7515, RFC 8725).

Well-formed and genuine are two functions: `parse_compact` reads, `verify_compact` asks a key.  The signed bytes are
kept as they came and never encoded again.  Implements docs/operations/release.md, section 2.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tresor.encodings import JsonValue, base64url_decode, base64url_encode, digest_string, parse_json
from tresor.errors import EncodingError, JsonError
from tresor.trust.eddsa import is_signed_by, sign_eddsa
from tresor.trust.errors import TrustCode, TrustMalformedError, TrustSignatureError
from tresor.trust.jwk import TrustKey

__all__ = [
    "BUNDLE",
    "MANIFEST",
    "TokenKind",
    "UnverifiedJws",
    "parse_compact",
    "parse_payload",
    "sign_compact",
    "verify_compact",
]

_SEGMENTS: Final = 3
_KEY_MEMBERS: Final = frozenset({"jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256"})
_KNOWN_MEMBERS: Final = frozenset({"alg", "kid", "typ"})


@dataclass(frozen=True, slots=True)
class TokenKind:
    """A kind of token; what is signed as one kind is never read as another.

    Attributes:
        typ: its `typ`, letter for letter.
        max_chars: length of a token, in characters.
        signature_invalid: the code of a signature that does not verify.
    """

    typ: str
    max_chars: int
    signature_invalid: TrustCode


BUNDLE: Final = TokenKind("tresor-trust-bundle+jwt", 1 << 20, TrustCode.BUNDLE_SIGNATURE_INVALID)
# A manifest travels in each envelope of `GET /attestation`.
MANIFEST: Final = TokenKind("tresor-workload-identity+jwt", 1 << 16, TrustCode.MANIFEST_SIGNATURE_INVALID)


@dataclass(frozen=True, slots=True, repr=False)
class UnverifiedJws:
    """A well-formed token of which nothing has been verified.

    Attributes:
        kind: what it was read as.
        kid: key id its header names.
        token: the token as received, ASCII.
        payload: decoded payload bytes.
        signature: decoded signature bytes.
    """

    kind: TokenKind
    kid: str
    token: bytes
    payload: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the token, in hexadecimal."""
        return digest_string(self.token)


def sign_compact(kind: TokenKind, private_key: Ed25519PrivateKey, payload: bytes) -> str:
    """Sign `payload`; the same arguments always give the same token.

    Raises:
        TrustMalformedError: the token would be longer than its kind allows.
    """
    kid = TrustKey.of(private_key.public_key()).kid
    header = f'{{"alg":"EdDSA","kid":"{kid}","typ":"{kind.typ}"}}'
    signing_input = f"{base64url_encode(header.encode())}.{base64url_encode(payload)}"
    token = f"{signing_input}.{base64url_encode(sign_eddsa(private_key, signing_input.encode()))}"
    _check_length(kind, len(token))
    return token


def parse_compact(kind: TokenKind, token: bytes) -> UnverifiedJws:
    """Read a compact JWS whose header is that of its kind.

    Raises:
        TrustMalformedError: the bytes are not one compact JWS, or its header is not exactly alg EdDSA, the kind's typ
            and a kid.
    """
    _check_length(kind, len(token))
    segments = token.split(b".")
    if len(segments) != _SEGMENTS:
        raise TrustMalformedError(
            TrustCode.TOKEN_MALFORMED, f"token has {len(segments)} segments, want {_SEGMENTS} (RFC 7515, 3.1)"
        )
    try:
        # Bytes outside ASCII become characters outside the alphabet.
        header, payload, signature = (base64url_decode(segment.decode("latin-1")) for segment in segments)
    except EncodingError as error:
        raise TrustMalformedError(TrustCode.BASE64URL_MALFORMED, f"token: {error}") from error
    try:
        members = parse_json(header)
    except JsonError as error:
        raise TrustMalformedError(TrustCode.JSON_MALFORMED, f"protected header: {error}") from error
    kid = _check_header(members, kind)
    return UnverifiedJws(kind=kind, kid=kid, token=token, payload=payload, signature=signature)


def verify_compact(jws: UnverifiedJws, key: TrustKey) -> JsonValue:
    """Verify the signature and return the JSON value it covers.

    Raises:
        TrustMalformedError: the signature is not one that a signer makes, or the payload is not strict JSON.
        TrustSignatureError: `key` did not sign this.
    """
    if not is_signed_by(key.raw, jws.token.rpartition(b".")[0], jws.signature):
        raise TrustSignatureError(jws.kind.signature_invalid, f"the key {key.kid} did not sign this token")
    return parse_payload(jws)


def parse_payload(jws: UnverifiedJws) -> JsonValue:
    """Read the payload, whoever signed it.

    Raises:
        TrustMalformedError: it is not strict JSON.
    """
    try:
        return parse_json(jws.payload)
    except JsonError as error:
        raise TrustMalformedError(TrustCode.JSON_MALFORMED, f"payload: {error}") from error


def _check_length(kind: TokenKind, length: int) -> None:
    if length > kind.max_chars:
        raise TrustMalformedError(
            TrustCode.TOKEN_TOO_LARGE, f"token is {length} characters, want at most {kind.max_chars}"
        )


def _check_header(members: JsonValue, kind: TokenKind) -> str:
    if not isinstance(members, dict):
        raise TrustMalformedError(TrustCode.TOKEN_MALFORMED, "protected header is not a JSON object")
    if members.get("alg") != "EdDSA":
        raise TrustMalformedError(TrustCode.ALG_NOT_ALLOWED, "alg is not EdDSA, the only algorithm of the ceremony")
    if "crit" in members:
        raise TrustMalformedError(
            TrustCode.CRIT_NOT_UNDERSTOOD, "crit names extensions, and there are none (RFC 7515, 4.1.11)"
        )
    if carried := sorted(_KEY_MEMBERS & members.keys()):
        raise TrustMalformedError(
            TrustCode.KEY_IN_TOKEN, f"header carries {', '.join(carried)}: a token does not bring its own key"
        )
    if members.get("typ") != kind.typ:
        raise TrustMalformedError(TrustCode.TYP_MISMATCH, f"typ is not {kind.typ!r}")
    if unknown := sorted(members.keys() - _KNOWN_MEMBERS):
        raise TrustMalformedError(
            TrustCode.HEADER_NOT_ALLOWED, f"header has {unknown[0][:32]!r}, want only alg, kid and typ"
        )
    kid = members.get("kid")
    if not isinstance(kid, str) or not kid:
        raise TrustMalformedError(TrustCode.KID_INVALID, "kid is missing or not a string")
    return kid
