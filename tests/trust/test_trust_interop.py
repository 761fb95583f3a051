"""Tokens that we sign verify elsewhere and the other way round: PyJWT, and OpenSSL's command line."""

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc.jwk import OKPKey

from tresor.encodings import base64url_decode, base64url_encode
from tresor.trust.bundle import parse_bundle, verify_bundle
from tresor.trust.errors import TrustError
from tresor.trust.jwk import TrustKey
from tresor.trust.manifest import ManifestClaims, parse_manifest, sign_manifest, verify_manifest_signature
from tresor.trust.release_root import (
    encode_private_key,
    encode_public_jwk,
    encode_public_pem,
    parse_private_key,
    parse_public_key,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "trust"
BUNDLE = (VECTORS / "bundle.jws").read_bytes()
ROOT = parse_public_key((VECTORS / "root.jwk").read_bytes())
MANIFEST_CLAIMS: dict[str, Any] = msgspec.json.decode(
    base64url_decode((VECTORS / "manifest.jws").read_text().split(".")[1])
)
KEY = Ed25519PrivateKey.generate()
PUBLIC = TrustKey.of(KEY.public_key())
PASSPHRASE = b"twenty characters of it"
OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the program openssl is not installed")


def our_token() -> str:
    return sign_manifest(msgspec.convert(MANIFEST_CLAIMS, ManifestClaims), KEY)


def openssl(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([OPENSSL or "openssl", *arguments], input=data, capture_output=True, timeout=30, check=False)


# --- PyJWT ----------------------------------------------------------------------------------------------------------


def test_what_we_sign_verifies_with_pyjwt() -> None:
    whole = jwt.decode_complete(our_token(), KEY.public_key(), algorithms=["EdDSA"])
    assert whole["payload"] == MANIFEST_CLAIMS
    assert whole["header"] == {"alg": "EdDSA", "kid": PUBLIC.kid, "typ": "tresor-workload-identity+jwt"}
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(our_token(), Ed25519PrivateKey.generate().public_key(), algorithms=["EdDSA"])


def test_what_pyjwt_signs_verifies_here() -> None:
    header = {"kid": PUBLIC.kid, "typ": "tresor-workload-identity+jwt"}
    token = jwt.encode(MANIFEST_CLAIMS, KEY, algorithm="EdDSA", headers=header)
    manifest = verify_manifest_signature(parse_manifest(token.encode()), {PUBLIC.kid: PUBLIC})
    assert msgspec.to_builtins(manifest.claims) == MANIFEST_CLAIMS


def test_a_bundle_of_the_vectors_verifies_with_pyjwt() -> None:
    claims = jwt.decode(BUNDLE, Ed25519PublicKey.from_public_bytes(ROOT.raw), algorithms=["EdDSA"])
    assert claims["version"] == 17


def test_public_file_is_a_jwk_to_others() -> None:
    file = encode_public_jwk(PUBLIC)
    assert jwt.PyJWK.from_json(file.decode()).key.public_bytes_raw() == PUBLIC.raw
    assert OKPKey.import_key(msgspec.json.decode(file)).thumbprint() == PUBLIC.kid


def test_thumbprint_of_rfc_8037() -> None:
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"  # appendix A.2
    key = parse_public_key(f'{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}'.encode())
    assert key.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"  # appendix A.3


# --- OpenSSL --------------------------------------------------------------------------------------------------------


def verify_with_openssl(token: bytes, key: TrustKey, folder: Path) -> bool:
    signing_input, _, signature = token.rpartition(b".")
    (folder / "input").write_bytes(signing_input)
    (folder / "signature").write_bytes(base64url_decode(signature.decode()))
    (folder / "key.pem").write_bytes(encode_public_pem(key))
    files = ("-inkey", folder / "key.pem", "-in", folder / "input", "-sigfile", folder / "signature")
    return openssl("pkeyutl", "-verify", "-pubin", "-rawin", *files).returncode == 0


@needs_openssl
def test_what_we_sign_verifies_with_openssl(tmp_path: Path) -> None:
    token = our_token().encode()
    assert verify_with_openssl(token, PUBLIC, tmp_path)
    assert not verify_with_openssl(token, ROOT, tmp_path)
    assert verify_with_openssl(BUNDLE, ROOT, tmp_path)


@needs_openssl
def test_what_openssl_signs_verifies_here(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    assert openssl("genpkey", "-algorithm", "ED25519", "-out", key).returncode == 0
    private_key = parse_private_key(key.read_bytes(), None)
    public = TrustKey.of(private_key.public_key())
    assert parse_public_key(openssl("pkey", "-in", key, "-pubout").stdout) == public
    token = sign_manifest(msgspec.convert(MANIFEST_CLAIMS, ManifestClaims), private_key)
    signing_input, _, ours = token.rpartition(".")
    (tmp_path / "input").write_text(signing_input)
    done = openssl("pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", tmp_path / "input")
    assert base64url_encode(done.stdout) == ours


@needs_openssl
def test_private_keys_open_with_openssl(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    for passphrase in (None, PASSPHRASE):
        file.write_bytes(encode_private_key(KEY, passphrase))
        done = openssl("pkey", "-in", file, "-pubout", "-passin", f"pass:{PASSPHRASE.decode()}")
        assert parse_public_key(done.stdout) == PUBLIC


@needs_openssl
def test_a_key_that_openssl_encrypted_with_scrypt(tmp_path: Path) -> None:
    plain, file = tmp_path / "plain.pem", tmp_path / "scrypt.pem"
    plain.write_bytes(encode_private_key(KEY, None))
    words = PASSPHRASE.decode()
    assert (
        openssl("pkcs8", "-topk8", "-scrypt", "-in", plain, "-out", file, "-passout", f"pass:{words}").returncode == 0
    )
    assert parse_private_key(file.read_bytes(), PASSPHRASE).private_bytes_raw() == KEY.private_bytes_raw()


# Signatures that OpenSSL takes and we do not: R is the neutral point; the key is.
STRICTER = {"313-r-identity", "350-root-of-small-order"}


def is_refused_here(token: bytes, root_file: bytes) -> bool:
    try:
        root = parse_public_key(root_file)
        verify_bundle(parse_bundle(token), root, now=datetime(2026, 3, 10, tzinfo=UTC), min_version=0)
    except TrustError:
        return True
    return False


@needs_openssl
def test_openssl_takes_nothing_forged_that_we_take(tmp_path: Path) -> None:
    """Of every vector whose fault is the signature or the root, OpenSSL's word; where it says yes, we are stricter."""
    taken = set()
    for folder in sorted(path for path in VECTORS.glob("3[0-5]*") if (path / "bundle.jws").is_file()):
        root_file = (folder / "root.jwk" if (folder / "root.jwk").is_file() else VECTORS / "root.jwk").read_bytes()
        token = (folder / "bundle.jws").read_bytes()
        assert is_refused_here(token, root_file)
        raw = base64url_decode(msgspec.json.decode(root_file)["x"])
        if verify_with_openssl(token, TrustKey(kid="unchecked", raw=raw), tmp_path):
            taken.add(folder.name)
    assert taken == STRICTER
