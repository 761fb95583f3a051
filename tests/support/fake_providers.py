"""Answers of inference providers, made under the tests' own Intel and NVIDIA: a good one of each, open to changes."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from support.fake_intel import AT, INTEL, body
from support.fake_nvidia import GPU, Device, device, evidence_list, nras_key, report, rim_chain
from tresor.attestation.evidence import Collateral
from tresor.attestation.roots import TrustAnchors

__all__ = [
    "ADDRESS",
    "ANCHORS",
    "AT",
    "COLLATERAL",
    "COMPOSE",
    "HPKE_KEY",
    "INSTANCES",
    "ML_KEM_KEY",
    "NONCE",
    "OTHER",
    "PUBLIC_KEY",
    "SPKI",
    "aci",
    "aci_keyset",
    "chutes",
    "dstack",
    "dstack_node",
    "event_log",
    "gpu_entries",
    "quote",
    "spki_of",
    "tinfoil",
    "tls_certificate",
]

NONCE: Final = hashlib.sha256(b"the caller's challenge").digest()
OTHER: Final = hashlib.sha256(b"anything else").digest()
HPKE_KEY: Final = hashlib.sha256(b"an HPKE key").digest()
ML_KEM_KEY: Final = base64.b64encode(hashlib.shake_256(b"an ML-KEM key").digest(1184)).decode()
# secp256k1, private key 1: its address is known to everybody (SEC 2, 2.4.1, is the point).
PUBLIC_KEY: Final = (
    "0479be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    "483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"
)
ADDRESS: Final = "0x7e5f4552091a69125d5dfcb7b8c2659029395bdf"
COMPOSE: Final = '{"name":"model","docker_compose_file":"services: {}"}'
INSTANCES: Final = ("instance-0", "instance-1")

ANCHORS: Final = TrustAnchors(
    amd={},
    intel=(INTEL.root.certificate,),
    nvidia_device=(GPU.chain[-1].certificate,),
    nvidia_rim=(rim_chain()[-1].certificate,),
    nras_intermediates=frozenset({nras_key().chain[1].certificate.fingerprint(hashes.SHA256()).hex()}),
)
COLLATERAL: Final = Collateral(tdx=(INTEL.collateral(),))

_TLS_KEY: Final = ec.derive_private_key(int.from_bytes(hashlib.sha384(b"TLS key").digest()) >> 1, ec.SECP384R1())


def tls_certificate(key: ec.EllipticCurvePrivateKey = _TLS_KEY, *, at: datetime = AT) -> x509.Certificate:
    """Return a certificate for a TLS key; who issued it, nobody asks."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "inference.example")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, at, at + timedelta(days=90))
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)


def spki_of(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of the SubjectPublicKeyInfo."""
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).digest()


SPKI: Final = spki_of(tls_certificate())


def quote(report_data: bytes, **changes: Any) -> bytes:
    """Return a quote of a domain that signed `report_data`, zero padded."""
    return INTEL.quote(td=body(report_data=report_data.ljust(64, b"\0"), **changes))


def gpu_entries(challenge: bytes, /, *makers: Device, **changed: Any) -> list[dict[str, Any]]:
    """Return NVIDIA's list of devices, one GPU by default, that answer `challenge`."""
    entries = [(maker, report(maker, nonce=challenge)) for maker in makers or (device(0),)]
    decoded: list[dict[str, Any]] = msgspec.json.decode(evidence_list(*entries, **changed))
    return decoded


# --- Tinfoil


def tinfoil(
    *,
    gpus: list[dict[str, Any]] | None = None,
    signed: bytes | None = None,
    stated: dict[str, str] | None = None,
    members: dict[str, Any] | None = None,
    gpu_text: str | None = None,
    sign: bool = True,
    key: ec.EllipticCurvePrivateKey = _TLS_KEY,
    nonce: bytes = NONCE,
    spki: bytes = SPKI,
    td: Mapping[str, Any] | None = None,
) -> bytes:
    """Return a document of format v3.

    Args:
        gpus: devices; None for an answer without GPUs.
        signed: REPORT_DATA, where it is not what the rule says.
        stated: changes to `report_data`.
        members: changes to the document, `...` leaves one out.
        gpu_text: JSON text of the member `gpu` in the document, where it is not the one that was hashed.
        sign: with the signature of the TLS key.
        key: the TLS key of certificate and signature.
        nonce: the challenge.
        spki: the TLS key that REPORT_DATA covers.
        td: changes to the domain, as of `quote`.
    """
    hashed = None if gpus is None else json.dumps({"evidences": gpus}, separators=(",", ":"))
    parts = [spki, HPKE_KEY, nonce]
    report_data = {"tls_key_fp": spki.hex(), "hpke_key": HPKE_KEY.hex(), "nonce": nonce.hex()}
    if hashed is not None:
        parts.append(hashlib.sha256(hashed.encode()).digest())
        report_data["gpu_evidence_hash"] = parts[-1].hex()
    evidence = quote(hashlib.sha256(b"".join(parts)).digest() if signed is None else signed, **(td or {}))
    document = {
        "format": "https://tinfoil.sh/predicate/attestation/v3",
        "report_data": report_data | (stated or {}),
        "cpu": {"platform": "tdx", "report": base64.b64encode(evidence).decode()},
        **({} if hashed is None else {"gpu": "GPU"}),
        "certificate": tls_certificate(key).public_bytes(Encoding.PEM).decode(),
        "signature": "",
        **(members or {}),
    }
    text = json.dumps({name: value for name, value in document.items() if value is not ...}, separators=(",", ":"))
    text = text.replace('"gpu":"GPU"', f'"gpu":{hashed if gpu_text is None else gpu_text}')
    if sign:
        signature = key.sign(text.encode(), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        text = text.replace('"signature":""', f'"signature":"{base64.b64encode(signature).decode()}"')
    return text.encode()


# --- dstack


def event_log(*payloads: tuple[str, bytes]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return dstack's log, one event for each of RTMR0 to RTMR2 and `payloads` for RTMR3, and the four registers."""
    registers = [bytes(48) for _ in range(4)]
    events: list[dict[str, Any]] = []

    def extend(register: int, kind: int, digest: bytes, name: str, payload: bytes) -> None:
        registers[register] = hashlib.sha384(registers[register] + digest).digest()
        events.append(
            {
                "imr": register,
                "event_type": kind,
                "digest": digest.hex(),
                "event": name,
                "event_payload": payload.hex(),
            }
        )

    for register in range(3):
        extend(register, 1, hashlib.sha384(b"firmware %d" % register).digest(), "", b"")
    for name, payload in payloads:
        digest = hashlib.sha384(b":".join(((0x08000001).to_bytes(4, "little"), name.encode(), payload))).digest()
        extend(3, 0x08000001, digest, name, payload)
    return events, registers


def dstack_node(
    *,
    tls: bool = True,
    signed: bytes | None = None,
    compose: str = COMPOSE,
    measured: str = COMPOSE,
    gpus: list[dict[str, Any]] | None = None,
    nonce: bytes = NONCE,
    spki: bytes = SPKI,
    td: Mapping[str, Any] | None = None,
    **members: Any,
) -> dict[str, Any]:
    """Return one attestation of NEAR's form; `members` change it, `...` leaves one out."""
    compose_hash = hashlib.sha256(measured.encode()).digest()
    events, registers = event_log(("app-id", b"app"), ("compose-hash", compose_hash), ("system-ready", b""))
    key = HPKE_KEY if tls else bytes.fromhex(ADDRESS[2:])
    first = hashlib.sha256(key + spki).digest() if tls else key.ljust(32, b"\0")
    evidence = quote(
        first + nonce if signed is None else signed,
        mrconfigid=b"\x01" + compose_hash + bytes(15),
        **{f"rtmr{index}": value for index, value in enumerate(registers)},
        **(td or {}),
    )
    node = {
        "signing_address": HPKE_KEY.hex() if tls else ADDRESS,
        "signing_algo": "ed25519" if tls else "ecdsa",
        "signing_public_key": HPKE_KEY.hex() if tls else PUBLIC_KEY,
        "request_nonce": nonce.hex(),
        "intel_quote": evidence.hex(),
        "nvidia_payload": json.dumps(
            {"arch": "HOPPER", "nonce": nonce.hex(), "evidence_list": gpu_entries(nonce) if gpus is None else gpus}
        ),
        "event_log": events,
        "info": {"tcb_info": {"app_compose": compose, "event_log": events}},
        "tls_cert_fingerprint": spki.hex() if tls else ...,
        **members,
    }
    return {name: value for name, value in node.items() if value is not ...}


def dstack(**changes: Any) -> bytes:
    """Return an answer about one node; see `dstack_node`."""
    return json.dumps(dstack_node(**changes)).encode()


# --- ACI


def aci_keyset(**members: Any) -> dict[str, Any]:
    """Return a keyset that ends an hour after `AT`; `members` change it, `...` leaves one out."""
    keyset = {
        "subject": None,
        "not_after": int(AT.timestamp()) + 3600,
        "receipt_signing_keys": [{"key_id": "r1", "algo": "ed25519", "public_key": HPKE_KEY.hex()}],
        "e2ee_public_keys": [],
        "tls_public_keys": [{"spki_sha256": SPKI.hex()}],
        **members,
    }
    return {name: value for name, value in keyset.items() if value is not ...}


def aci(
    *,
    keyset: dict[str, Any] | None = None,
    shown: dict[str, Any] | None = None,
    nonce: bytes | None = NONCE,
    signed: bytes | None = None,
    compose: str | None = COMPOSE,
    evidence: dict[str, Any] | None = None,
    stated: dict[str, Any] | None = None,
    members: dict[str, Any] | None = None,
    td: Mapping[str, Any] | None = None,
) -> bytes:
    """Return a report.

    Args:
        keyset: what the quote binds.
        shown: what the report shows, where it is another one.
        nonce: of the statement; None for a node that was not asked for one.
        signed: REPORT_DATA, where it is not what the rule says.
        compose: the compose file of the report; `COMPOSE` is what was measured.
        evidence: changes to the evidence.
        stated: changes to `attestation`; of these and of `members`, `...` leaves one out.
        members: changes to the report.
        td: changes to the domain, as of `quote`.
    """
    bound = aci_keyset() if keyset is None else keyset
    canonical = json.dumps(bound, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    keyset_digest = f"sha256:{hashlib.sha256(canonical).hexdigest()}"
    statement = {"keyset_digest": keyset_digest, "nonce": nonce and nonce.hex(), "purpose": "aci.report_data.v1"}
    bound_data = hashlib.sha256(json.dumps(statement, separators=(",", ":")).encode()).digest()
    events, registers = event_log(("compose-hash", hashlib.sha256(COMPOSE.encode()).digest()), ("system-ready", b""))
    hardware = quote(
        bound_data if signed is None else signed,
        **{f"rtmr{index}": value for index, value in enumerate(registers)},
        **(td or {}),
    )
    attestation = {
        "tee_type": "tdx",
        "workload_keyset": bound if shown is None else shown,
        "report_data": bound_data.hex(),
        "source_provenance": {"repo_url": "https://git.example/gateway", "repo_commit": "0" * 40},
        "evidence": {
            "quote": hardware.hex(),
            "event_log": json.dumps(events),
            "app_compose": compose,
            **(evidence or {}),
        },
        **(stated or {}),
    }
    report = {
        "api_version": "aci/1",
        "workload_keyset_digest": keyset_digest,
        "attestation": {name: value for name, value in attestation.items() if value is not ...},
        "service_capabilities": {"supported_e2ee_versions": [], "serving": "direct"},
        **(members or {}),
    }
    return json.dumps({name: value for name, value in report.items() if value is not ...}, indent=1).encode()


# --- Chutes


def chutes(
    *,
    names: Sequence[str] = INSTANCES,
    nonce: bytes = NONCE,
    key: str = ML_KEM_KEY,
    gpu_nonce: bytes | None = None,
    signed: bytes | None = None,
    **members: Any,
) -> bytes:
    """Return an answer about some instances, each with one GPU; `members` change each of them."""
    first = hashlib.sha256(nonce.hex().encode() + key.encode()).digest()
    certificate = base64.b64encode(tls_certificate().public_bytes(Encoding.DER)).decode()
    evidence = base64.b64encode(quote(first + SPKI if signed is None else signed)).decode()
    instances = [
        {
            "quote": evidence,
            "gpu_evidence": gpu_entries(first if gpu_nonce is None else gpu_nonce, nonce=None),
            "instance_id": name,
            "certificate": certificate,
            **members,
        }
        for name in names
    ]
    return json.dumps({"evidence": instances, "failed_instance_ids": []}).encode()
