"""NVIDIA's JSON of evidence: one object per device with `arch`, `evidence`, `certificate` and `nonce`.

Three forms occur: the bare array of NVIDIA's tools; the request body of NVIDIA's remote verifier, `{"arch", "nonce",
"evidence_list": [...]}`, which dstack hands on; and `{"evidences": [...]}`, as Tinfoil writes it.  `evidence` is the
SPDM exchange and `certificate` a PEM chain, both in standard base64.  Members that are not named here are ignored:
nothing of this document is signed but what stands inside `evidence` and `certificate`.
"""

import base64
import binascii
import re
from dataclasses import dataclass

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError
from tresor.encodings import JsonValue, parse_json
from tresor.errors import JsonError

__all__ = ["MAX_DEVICES", "MAX_LIST_BYTES", "DeviceEvidence", "decode_base64", "parse_evidence_list"]

MAX_DEVICES = 64
MAX_LIST_BYTES = 2 << 20
_ARRAYS = ("evidence_list", "evidences")
_NONCE = re.compile(r"[0-9a-fA-F]{64}\Z")


@dataclass(frozen=True, slots=True, repr=False)
class DeviceEvidence:
    """What the document says of one device; unverified.

    Attributes:
        architecture: what the sender calls it (`HOPPER`), upper case; None where it does not say.
        nonce: the challenge as the sender states it, 32 bytes; None where it does not say.
        report: one SPDM exchange.
        certificates: PEM, or None where the chain stands elsewhere.
    """

    architecture: str | None
    nonce: bytes | None
    report: bytes
    certificates: bytes | None


def parse_evidence_list(data: bytes) -> tuple[DeviceEvidence, ...]:
    """Parse the JSON document in any of its three forms.

    Raises:
        EvidenceMalformedError: not strict JSON, another form, no device in it, more than 64, or more than 2 MiB.
    """
    if len(data) > MAX_LIST_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"evidence list is {len(data)} bytes, want at most {MAX_LIST_BYTES}"
        )
    try:
        document = parse_json(data)
    except JsonError as error:
        raise _malformed(f"evidence list: {error}") from error
    common: dict[str, JsonValue] = {}
    if isinstance(document, dict):
        common = document
        arrays = [document[name] for name in _ARRAYS if name in document]
        document = arrays[0] if len(arrays) == 1 else None
    if not isinstance(document, list) or not 1 <= len(document) <= MAX_DEVICES:
        raise _malformed(f"evidence list is not one array of 1 to {MAX_DEVICES} devices")
    return tuple(_parse_device(entry, common, f"evidence[{position}]") for position, entry in enumerate(document))


def decode_base64(text: str, where: str) -> bytes:
    """Decode standard base64 with padding (RFC 4648 section 4), in its one spelling.

    Raises:
        EvidenceMalformedError: any other text.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(f"{where} is not base64") from error
    if base64.b64encode(data).decode("ascii") != text:
        raise _malformed(f"{where} is base64 with stray bits")
    return data


def _parse_device(entry: JsonValue, common: dict[str, JsonValue], where: str) -> DeviceEvidence:
    if not isinstance(entry, dict):
        raise _malformed(f"{where} is not an object")
    texts: dict[str, str | None] = {}
    for name in ("arch", "nonce", "evidence", "certificate"):
        # A member of the document speaks for every device, except where the device speaks for itself.
        value = entry.get(name, common.get(name) if name in ("arch", "nonce") else None)
        if value is not None and not isinstance(value, str):
            raise _malformed(f"{where}.{name} is not a string")
        texts[name] = value
    report, certificate, nonce, architecture = (texts[n] for n in ("evidence", "certificate", "nonce", "arch"))
    if report is None:
        raise _malformed(f"{where}.evidence is missing")
    if nonce is not None and not _NONCE.match(nonce):
        raise _malformed(f"{where}.nonce is not 64 hexadecimal digits")
    return DeviceEvidence(
        architecture=None if architecture is None else architecture.upper(),
        nonce=None if nonce is None else bytes.fromhex(nonce),
        report=decode_base64(report, f"{where}.evidence"),
        certificates=None if certificate is None else decode_base64(certificate, f"{where}.certificate"),
    )


def _malformed(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, message)
