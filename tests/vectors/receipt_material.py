"""What the receipt vectors are made of: test keys, one exchange, and JOSE written out by hand.

Imports nothing of `tresor`: a mistake there must not be repeated here.  The private keys are made from the texts below
and are therefore known to everybody; they sign test vectors and nothing else.
"""

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = [
    "AT",
    "FINISH_EVENT",
    "HEADER",
    "IAT",
    "JTI",
    "JWKS",
    "KEY",
    "KID",
    "MALLORY",
    "OLD_KEY",
    "OTHER_JTI",
    "P256_N",
    "RELEASE_ROOT",
    "REQUEST",
    "RESPONSE",
    "ROUTE",
    "STREAM",
    "STREAM_EVENTS",
    "STREAM_REQUEST",
    "UPSTREAM_REQUEST",
    "UPSTREAM_RESPONSE",
    "api_json",
    "attempt",
    "b64",
    "claims",
    "coordinates",
    "digest",
    "gzip",
    "integers",
    "json_bytes",
    "jwk",
    "jwks",
    "kid_of",
    "raw_signature",
    "sign",
    "stream_claims",
    "token",
    "token_of",
]

P256_N: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _test_key(text: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(text.encode()).digest()) % P256_N, ec.SECP256R1())


KEY: Final = _test_key("tresor test vectors: the router's key; everybody knows it")
OLD_KEY: Final = _test_key("tresor test vectors: the router's former key; everybody knows it")
MALLORY: Final = _test_key("tresor test vectors: the key of somebody else; everybody knows it")

IAT: Final = 1_772_366_400  # 2026-03-01T12:00:00Z
AT: Final = "2026-03-01T12:05:00Z"
JTI: Final = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
OTHER_JTI: Final = "0f8fad5b-d9cb-469f-a165-70867728950e"
ROUTE: Final = "eu/tresor/gpt-oss-120b"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def json_bytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def gzip(data: bytes) -> bytes:
    """Compress without compressing (RFC 1951 section 3.2.4): what a library makes depends on its version."""
    header = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    block = b"\x01" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data
    return header + block + struct.pack("<II", zlib.crc32(data), len(data))


# --- Keys -----------------------------------------------------------------------------------------------------------


def coordinates(key: ec.EllipticCurvePrivateKey) -> tuple[str, str]:
    numbers = key.public_key().public_numbers()
    return b64(numbers.x.to_bytes(32)), b64(numbers.y.to_bytes(32))


def kid_of(key: ec.EllipticCurvePrivateKey) -> str:
    x, y = coordinates(key)
    thumbprint = hashlib.sha256(json_bytes({"crv": "P-256", "kty": "EC", "x": x, "y": y})).digest()
    return "router-receipt-" + b64(thumbprint)[:16]


def jwk(key: ec.EllipticCurvePrivateKey, **members: Any) -> dict[str, Any]:
    x, y = coordinates(key)
    public = {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid_of(key), "alg": "ES256", "use": "sig"}
    return public | {"iat": IAT - 86_400} | members


def jwks(*keys: object) -> bytes:
    return json_bytes({"keys": list(keys)})


_RELEASE_SEED: Final = hashlib.sha256(b"tresor test vectors: the release root; everybody knows it").digest()
RELEASE_ROOT: Final = (
    Ed25519PrivateKey.from_private_bytes(_RELEASE_SEED)
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)

KID: Final = kid_of(KEY)
JWKS: Final = jwks(jwk(KEY))

# --- Tokens ---------------------------------------------------------------------------------------------------------

HEADER: Final = {"alg": "ES256", "kid": KID, "typ": "tresor-receipt+jwt"}


def integers(
    signing_input: bytes, key: ec.EllipticCurvePrivateKey = KEY, hash_algorithm: HashAlgorithm | None = None
) -> tuple[int, int]:
    """Sign, with the nonce of RFC 6979, and return r and the lower s."""
    algorithm = ec.ECDSA(hash_algorithm or SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(key.sign(signing_input, algorithm))
    return r, min(s, P256_N - s)


def raw_signature(r: int, s: int) -> bytes:
    return r.to_bytes(32) + s.to_bytes(32)


def sign(signing_input: str, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    return f"{signing_input}.{b64(raw_signature(*integers(signing_input.encode(), key)))}"


def token(
    payload: Mapping[str, Any] | bytes | None = None,
    header: Mapping[str, Any] | bytes = HEADER,
    key: ec.EllipticCurvePrivateKey = KEY,
) -> str:
    """Make a token; bytes are taken as they are, and a mapping becomes JSON in its order."""
    header_bytes = header if isinstance(header, bytes) else json_bytes(header)
    body = claims() if payload is None else payload
    payload_bytes = body if isinstance(body, bytes) else json_bytes(body)
    return sign(f"{b64(header_bytes)}.{b64(payload_bytes)}", key)


def token_of(**changes: Any) -> bytes:
    """Make a bare token whose claims differ from the good ones in `changes`."""
    return token(claims(**changes)).encode()


def api_json(compact: str | bytes, receipt_id: object = JTI, **members: Any) -> bytes:
    text = compact.decode() if isinstance(compact, bytes) else compact
    return json_bytes({"id": receipt_id, "receipt": text, **members})


# --- One exchange, and the same as a stream -------------------------------------------------------------------------

_QUESTION: Final = {"role": "user", "content": "Schreib: Grüße"}
REQUEST: Final = json_bytes({"model": "gpt-oss-120b", "messages": [_QUESTION], "temperature": 1.0, "region": "eu"})
UPSTREAM_REQUEST: Final = json_bytes({"model": "openai/gpt-oss-120b", "messages": [_QUESTION], "temperature": 1.0})
_ANSWER: Final = {"index": 0, "message": {"role": "assistant", "content": "Grüße"}, "finish_reason": "stop"}
_USAGE: Final = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
_MODEL: Final = {"id": "chatcmpl-1", "model": "openai/gpt-oss-120b"}
UPSTREAM_RESPONSE: Final = json_bytes({**_MODEL, "choices": [_ANSWER], "usage": _USAGE})
_EXTENSION: Final = {"receipt_id": JTI, "requested_route": ROUTE, "routed_model": ROUTE, "failover": False}
RESPONSE: Final = UPSTREAM_RESPONSE[:-1] + b',"tresor":' + json_bytes(_EXTENSION) + b"}"

STREAM_REQUEST: Final = json_bytes(
    {"model": "gpt-oss-120b", "messages": [_QUESTION], "stream": True, "stream_options": {"include_usage": True}}
)


def _event(value: object) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


def _delta(finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {**_MODEL, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


_FIRST_EVENTS: Final = (
    _event(_delta(role="assistant", content="")),
    _event(_delta(content="Grü")),
    _event(_delta(content="ße")),
)
FINISH_EVENT: Final = _event({**_delta("stop"), "tresor": _EXTENSION})
_LAST_EVENTS: Final = (_event({**_MODEL, "choices": [], "usage": _USAGE}), b"data: [DONE]\n\n")
STREAM_EVENTS: Final = (*_FIRST_EVENTS, FINISH_EVENT, *_LAST_EVENTS)
STREAM: Final = b"".join(STREAM_EVENTS)
_UPSTREAM_STREAM: Final = b"".join((*_FIRST_EVENTS, _event(_delta("stop")), *_LAST_EVENTS))


def attempt(**changes: Any) -> dict[str, Any]:
    served = {
        "route": ROUTE,
        "outcome": "served",
        "reason": None,
        "status": 200,
        "prompt_sent": True,
        "started_at": "2026-03-01T11:59:58.250Z",
    }
    return served | changes


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of the good receipt with `changes`; a change to `...` takes the claim away."""
    good = {
        "schema": "tresor.receipt/v1",
        "receipt_type": "message",
        "iss": "https://router.example",
        "jti": JTI,
        "requested_route": ROUTE,
        "routed_model": ROUTE,
        "failover": False,
        "attempts": [attempt()],
        "prompt_tokens": 12,
        "completion_tokens": 7,
        "total_tokens": 19,
        "request_digest": digest(REQUEST),
        "upstream_request_digest": digest(UPSTREAM_REQUEST),
        "upstream_response_digest": digest(UPSTREAM_RESPONSE),
        "response_digest": digest(RESPONSE),
        "stream": False,
        "status": 200,
        "outcome": "complete",
        "not_checked": ["router_tee", "cpu_tee", "gpu_tee", "tcb", "workload", "revocation", "tls_binding"],
        "iat": IAT,
        "seq": 1,
    }
    return {name: value for name, value in (good | changes).items() if value is not ...}


def stream_claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of the good stream's receipt with `changes`."""
    return claims(
        **{
            "stream": True,
            "request_digest": digest(STREAM_REQUEST),
            "upstream_request_digest": digest(STREAM_REQUEST.replace(b"gpt-oss", b"openai/gpt-oss")),
            "upstream_response_digest": digest(_UPSTREAM_STREAM),
            "response_digest": digest(STREAM),
        }
        | changes
    )
