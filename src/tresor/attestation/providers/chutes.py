"""Evidence of Chutes instances (attestation.md, 5.7.3).

    REPORT_DATA = SHA-256(nonce as hexadecimal text || ML-KEM-768 public key as base64 text) || SHA-256(TLS SPKI)

The key is not in the answer; it comes from the provider's list of instances.  Neither is the nonce: without both, the
first half cannot be computed.  The GPUs' challenge is REPORT_DATA[0:32], which ties them to this TD.  An answer holds
several instances; which one serves is for the provider to say, so all must be good.
"""

import base64
import binascii
from dataclasses import replace
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.evidence import Evidence, EvidenceFormat
from tresor.attestation.providers.answer import (
    MAX_NODES,
    Half,
    Known,
    Node,
    digest,
)
from tresor.attestation.recognise import decode_binary
from tresor.attestation.x509 import load_certificate
from tresor.encodings import parse_json
from tresor.errors import EncodingError, JsonError

__all__ = ["parse_chutes", "parse_chutes_keys"]

_Keys = Annotated[dict[str, str], msgspec.Meta(max_length=1024)]


class _Device(msgspec.Struct, frozen=True, omit_defaults=True):
    certificate: str
    evidence: str
    arch: str | None = None
    nonce: str | None = None


class _Instance(msgspec.Struct, frozen=True):
    quote: str
    instance_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
    gpu_evidence: tuple[_Device, ...] = ()
    certificate: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    evidence: Annotated[tuple[_Instance, ...], msgspec.Meta(min_length=1, max_length=MAX_NODES)]
    failed_instance_ids: tuple[str, ...] = ()


def parse_chutes_keys(document: bytes) -> dict[str, str]:
    """Parse a list of end-to-end keys: instance id to base64 text, whose spelling is what the instance hashed.

    Raises:
        EvidenceMalformedError: it is none.
    """
    try:
        keys: dict[str, str] = msgspec.convert(parse_json(document), _Keys)
    except (JsonError, msgspec.ValidationError) as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"chutes keys: {error}") from error
    return keys


def parse_chutes(document: bytes, known: Known) -> tuple[Node, ...]:
    """Parse a whole answer, with the nonce and the keys that the caller knows.

    Raises:
        EvidenceMalformedError: it is none, or holds more than 16 instances.
    """
    try:
        answer = msgspec.convert(parse_json(document), _Answer)
        nodes = tuple(_node(instance, known) for instance in answer.evidence)
    except (JsonError, EncodingError, msgspec.ValidationError, binascii.Error) as error:
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"chutes answer: {error}") from error
    if len({node.name for node in nodes}) != len(nodes):
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, "chutes answer names an instance twice")
    return nodes


def _node(instance: _Instance, known: Known) -> Node:
    key = known.keys.get(instance.instance_id)
    spki = None if instance.certificate is None else _spki(instance.certificate)
    first = Half("SHA-256(hexadecimal nonce || base64 ML-KEM key)", None, ("nonce", "key"))
    if known.nonce is not None and key is not None:
        first = replace(first, value=digest(known.nonce.hex().encode("ascii"), key.encode("utf-8")))
    devices = msgspec.json.encode(instance.gpu_evidence)
    return Node(
        name=instance.instance_id,
        cpu=Evidence(EvidenceFormat.TDX_QUOTE, decode_binary(instance.quote)),
        gpus=Evidence(EvidenceFormat.NVIDIA_GPU_LIST, devices) if instance.gpu_evidence else None,
        halves=(first, Half("SHA-256 of the TLS certificate's SPKI", spki, ("tls",))),
        spki_sha256=spki,
        key=None if key is None else f"ML-KEM-768 SHA-256 {digest(key.encode('utf-8')).hex()}",
        gpus_answer_first_half=True,
    )


def _spki(certificate: str) -> bytes:
    """Return the SHA-256 of the SPKI in a certificate, base64 of DER."""
    loaded = load_certificate(base64.b64decode(certificate, validate=True))
    return digest(loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
