"""What trust vectors are made of: keys that everybody knows, roots, a good bundle and a good manifest."""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

__all__ = [
    "AMD_ROOT",
    "AT",
    "BUNDLE_TYP",
    "GOOD_BUNDLE",
    "GOOD_MANIFEST",
    "GROUP_ORDER",
    "HW_ROOT",
    "MALLORY",
    "MANIFEST_KEY",
    "MANIFEST_TYP",
    "MEASUREMENT",
    "ROOT",
    "ROOT_JWK",
    "TAG",
    "b64",
    "bundle_claims",
    "bundle_token",
    "digest",
    "header",
    "json_bytes",
    "jwk",
    "kid_of",
    "manifest_claims",
    "manifest_token",
    "public_pem",
    "scalar_of",
    "self_signed",
    "sign",
    "token",
]

BUNDLE_TYP: Final = "tresor-trust-bundle+jwt"
MANIFEST_TYP: Final = "tresor-workload-identity+jwt"
AT: Final = "2026-03-10T12:00:00Z"
GROUP_ORDER: Final = (1 << 252) + 27742317777372353535851937790883648493
MEASUREMENT: Final = hashlib.sha384(b"a launch").hexdigest()
_ROOTS: Final = Path(__file__).parents[2] / "src" / "tresor" / "attestation" / "roots"


def _seed(text: str) -> bytes:
    return hashlib.sha256(f"tresor test vectors: {text}; everybody knows it".encode()).digest()


def _test_key(text: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_seed(text))


ROOT: Final = _test_key("the release root")
MANIFEST_KEY: Final = _test_key("the key for manifests")
MALLORY: Final = _test_key("the key of somebody else")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def json_bytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# --- Keys and roots -------------------------------------------------------------------------------------------------


def scalar_of(key: Ed25519PrivateKey) -> int:
    """Return the secret scalar of a key (RFC 8032, 5.1.5)."""
    raw = bytearray(hashlib.sha512(key.private_bytes_raw()).digest()[:32])
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    return int.from_bytes(raw, "little")


def kid_of(raw: bytes) -> str:
    return b64(hashlib.sha256(json_bytes({"crv": "Ed25519", "kty": "OKP", "x": b64(raw)})).digest())


def jwk(key: Ed25519PrivateKey | bytes, **changes: Any) -> dict[str, Any]:
    """Return a public JWK with `changes`; a change to `...` takes the member away."""
    raw = key if isinstance(key, bytes) else key.public_key().public_bytes_raw()
    good = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw), "kid": kid_of(raw), "alg": "EdDSA", "use": "sig"}
    return {name: value for name, value in (good | changes).items() if value is not ...}


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def self_signed(name: str, key: Ed25519PrivateKey) -> str:
    """Return PEM of a self-made root; always the same, for Ed25519 signs without chance."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2036, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    return certificate.public_bytes(Encoding.PEM).decode()


HW_ROOT: Final = self_signed("SIMULATED - NOT A TEE", _test_key("a simulated root"))
AMD_ROOT: Final = (
    x509.load_der_x509_certificate((_ROOTS / "amd_milan_ark.der").read_bytes()).public_bytes(Encoding.PEM).decode()
)
ROOT_JWK: Final = json_bytes(jwk(ROOT))

# --- Tokens ---------------------------------------------------------------------------------------------------------


def header(typ: str, key: Ed25519PrivateKey, /, **changes: Any) -> dict[str, Any]:
    good = {"alg": "EdDSA", "kid": kid_of(key.public_key().public_bytes_raw()), "typ": typ}
    return {name: value for name, value in (good | changes).items() if value is not ...}


def sign(signing_input: str, key: Ed25519PrivateKey) -> bytes:
    return f"{signing_input}.{b64(key.sign(signing_input.encode()))}".encode()


def token(protected: Mapping[str, Any] | bytes, payload: Mapping[str, Any] | bytes, key: Ed25519PrivateKey) -> bytes:
    """Make a token; bytes are taken as they are, and a mapping becomes JSON in its order."""
    parts = (part if isinstance(part, bytes) else json_bytes(part) for part in (protected, payload))
    return sign(".".join(map(b64, parts)), key)


def manifest_claims(**changes: Any) -> dict[str, Any]:
    good = {
        "schema": "workload-identity/v1",
        "workload": "tresor-router",
        "version": "0.2.0",
        "image_digest": digest(b"image"),
        "binary_digest": digest(b"binary"),
        "build_metadata": {"commit": "d6cd1e2bd19e03a81132a23b2025920577f84e37"},
    }
    return {name: value for name, value in (good | changes).items() if value is not ...}


def manifest_token(key: Ed25519PrivateKey = MANIFEST_KEY, /, **changes: Any) -> bytes:
    return token(header(MANIFEST_TYP, key), manifest_claims(**changes), key)


GOOD_MANIFEST: Final = manifest_token()
TAG: Final = digest(GOOD_MANIFEST)


def bundle_claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of the good bundle with `changes`; a change to `...` takes the claim away."""
    good = {
        "schema": "tresor.trust-bundle/v1",
        "workload": "tresor-router",
        "version": 17,
        "issued_at": "2026-03-01T00:00:00Z",
        "valid_until": "2026-03-31T00:00:00Z",
        "allowed_hw_measurements": [MEASUREMENT],
        "allowed_workload_identity_tags": [TAG],
        "min_tcb": {"Milan": {"bl": 4, "tee": 0, "snp": 24, "ucode": 219}},
        "hw_roots": {"amd": AMD_ROOT},
        "manifest_keys": {"keys": [jwk(MANIFEST_KEY)]},
    }
    return {name: value for name, value in (good | changes).items() if value is not ...}


def bundle_token(key: Ed25519PrivateKey = ROOT, /, **changes: Any) -> bytes:
    return token(header(BUNDLE_TYP, key), bundle_claims(**changes), key)


GOOD_BUNDLE: Final = bundle_token()
