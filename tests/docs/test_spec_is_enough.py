"""receipt.md and attestation.md suffice: a verifier written from them alone, with PyJWT and cryptography.

`verify` and what stands before it use nothing of the program, and were written without a look at it.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from support.ceremony import Ceremony, simulated_ceremony, spki_of
from support.certificates import Tls
from support.router import ORIGIN, UpstreamEntry, chat, running_router
from support.upstream import Upstream, completion, reply

_MINUTE = timedelta(seconds=60)
_MARK = x509.ObjectIdentifier("2.25.184538050190783119644498441750174876931.1")


def _digest(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


def _thumbprint(jwk: Mapping[str, Any]) -> bytes:
    members = {name: jwk[name] for name in ("crv", "kty", "x", "y") if name in jwk}
    return sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _signed(token: str, typ: str, algorithm: str, jwk: Mapping[str, Any], kid: str) -> dict[str, Any]:
    """Receipt.md 2 and release.md 2: what a token says that this very key signed."""
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "typ": typ, "kid": kid}
    payload: dict[str, Any] = jwt.decode(token, jwt.PyJWK(dict(jwk), algorithm), algorithms=[algorithm])
    return payload


def _report(report: bytes, chain: bytes, root: x509.Certificate) -> tuple[bytes, str]:
    """Attestation.md 5.6: REPORT_DATA and MEASUREMENT of a simulated report that is genuine."""
    leaf = x509.load_pem_x509_certificates(chain)[0]
    leaf.verify_directly_issued_by(root)
    assert leaf.extensions.get_extension_for_oid(_MARK).critical
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(SHA384()))
    name = b"SIMULATED-NOT-A-TEE"
    stated = {0x000: b"\x03", 0x00A: b"\x02", 0x010: name[:16], 0x020: name[:16], 0x034: b"\x01", 0x048: b"\x1c"}
    stated |= {0x050: report[0x050:0x0C0], 0x1A0: name, 0x2A0: report[0x2A0:0x330]}
    expected = bytearray(1184)
    for at, value in stated.items():
        expected[at : at + len(value)] = value
    assert report == expected
    return report[0x050:0x090], report[0x090:0x0C0].hex()


def verify(answer: bytes, root: Mapping[str, Any], request: bytes, response: bytes) -> dict[str, Any]:
    """Return the claims of a receipt as the API hands it out, if a router that the release root allows issued it."""
    document = json.loads(answer)  # noqa: TID251 - nothing of ours
    unverified = jwt.decode(document["receipt"], options={"verify_signature": False})
    node = unverified["router_attestation"]
    key = node["receipt_key"]

    # receipt.md 8.1: signature, id, bodies.
    assert key["kid"] == "router-receipt-" + _base64url(_thumbprint(key))[:16]
    claims = _signed(document["receipt"], "tresor-receipt+jwt", "ES256", key, key["kid"])
    assert (claims["schema"], claims["jti"]) == ("tresor.receipt/v1", document["id"])
    assert (claims["request_digest"], claims["response_digest"]) == (_digest(request), _digest(response))

    # attestation.md 6.3: what the block refers to.
    parts: dict[str, bytes] = {}
    for reference in node["evidence"]:
        data = base64.b64decode(document["evidence"][reference["digest"]]["data"], validate=True)
        assert (reference["digest"], reference["size"]) == (_digest(data), len(data))
        parts[reference["type"]] = data

    # attestation.md 6.4 (1), release.md 5.2: the bundle is the release root's, and was in force.
    issued = datetime.fromtimestamp(claims["iat"], UTC)
    kid = _base64url(_thumbprint(root))
    bundle = _signed(parts["trust_bundle"].decode(), "tresor-trust-bundle+jwt", "EdDSA", root, kid)
    assert (bundle["schema"], bundle["workload"]) == ("tresor.trust-bundle/v1", node["workload"])
    assert datetime.fromisoformat(bundle["issued_at"]) - _MINUTE <= issued
    assert issued < datetime.fromisoformat(bundle["valid_until"])

    # (2) The receipt was issued within the life of the evidence.
    asked = datetime.fromisoformat(node["issued_at"])
    assert asked - _MINUTE <= issued <= asked + timedelta(seconds=node["max_age_seconds"]) + _MINUTE

    # (3) The manifest.
    manifest_jws = parts["workload_identity_manifest"]
    tag = sha256(manifest_jws).digest()
    keys = {_base64url(_thumbprint(jwk)): jwk for jwk in bundle["manifest_keys"]["keys"]}
    kid = jwt.get_unverified_header(manifest_jws)["kid"]
    manifest = _signed(manifest_jws.decode(), "tresor-workload-identity+jwt", "EdDSA", keys[kid], kid)
    assert (manifest["schema"], manifest["workload"]) == ("workload-identity/v1", bundle["workload"])
    assert node["workload_identity_tag"] == tag.hex()
    assert f"sha256:{tag.hex()}" in bundle["allowed_workload_identity_tags"]

    # (4), (5) The report; its measurement follows from the image alone, as 5.6 says.
    assert (node["tee"], bundle["simulated"]) == ("simulated", True)
    anchor = x509.load_pem_x509_certificate(bundle["hw_roots"]["simulated"].encode())
    report_data, measurement = _report(parts["snp_report"], parts["vcek_chain"], anchor)
    image = bytes.fromhex(manifest["image_digest"].removeprefix("sha256:"))
    assert measurement == (b"SIMULATE" + sha384(b"SIMULATED-NOT-A-TEE" + image).digest()[8:]).hex()
    assert measurement in bundle["allowed_hw_measurements"]

    # (6), section 6.2: both halves of REPORT_DATA; a receipt's evidence has no nonce.
    assert "nonce" not in node
    assert report_data[:32] == sha256(bytes.fromhex(node["tls_spki_sha256"]) + tag).digest()
    assert report_data[32:] == sha256(b"tresor.receipt-key/v1\0" + _thumbprint(key)).digest()
    return claims


# The tests


@dataclass(frozen=True)
class Exchange:
    """A completion by a router of the tests', its receipt, and who released the router."""

    receipt: bytes
    request: bytes
    response: bytes
    ceremony: Ceremony

    @property
    def root(self) -> dict[str, Any]:
        return dict(json.loads(self.ceremony.root_file.read_bytes()))  # noqa: TID251 - nothing of ours


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Exchange:
    folder = tmp_path_factory.mktemp("spec")
    ceremony = simulated_ceremony(folder)
    request = chat()
    with (
        Upstream() as upstream,
        running_router(
            folder, [UpstreamEntry(upstream)], tls=tls, settings={"identity": ceremony.identity()}
        ) as router,
    ):
        upstream.script(reply(completion()))
        answer = router.complete(request)
        receipt_id = answer.headers["x-tresor-receipt-id"]
        receipt = router.ask("GET", f"/v1/receipts/{receipt_id}?include=evidence", key=router.key)
    return Exchange(receipt.body, request, answer.body, ceremony)


def test_the_documents_lead_to_a_verifier(exchange: Exchange, tls: Tls) -> None:
    claims = verify(exchange.receipt, exchange.root, exchange.request, exchange.response)
    assert (claims["iss"], claims["routed_model"], claims["seq"]) == (ORIGIN, "eu/alpha/m", 1)
    assert claims["router_attestation"]["tls_spki_sha256"] == spki_of(tls.certificate_file).hex()


@pytest.mark.parametrize("spoiled", ["request", "response", "signature", "evidence", "root"])
def test_that_verifier_is_no_rubber_stamp(spoiled: str, exchange: Exchange, tmp_path: Path) -> None:
    document = json.loads(exchange.receipt)  # noqa: TID251 - nothing of ours
    if spoiled == "signature":
        signed, _, signature = document["receipt"].rpartition(".")
        document["receipt"] = f"{signed}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    if spoiled == "evidence":
        for part in document["evidence"].values():
            part["data"] = base64.b64encode(base64.b64decode(part["data"])[:-1] + b"?").decode()
    root = simulated_ceremony(tmp_path).root_file if spoiled == "root" else exchange.ceremony.root_file
    request = exchange.request + b" " if spoiled == "request" else exchange.request
    response = exchange.response[:-1] if spoiled == "response" else exchange.response
    with pytest.raises((AssertionError, jwt.InvalidSignatureError)):
        verify(json.dumps(document).encode(), json.loads(root.read_bytes()), request, response)  # noqa: TID251 - as above
