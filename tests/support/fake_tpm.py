"""A vTPM of the tests' own, as Azure's paravisor makes it: an attestation key, runtime data that name it, quotes by it.

    tpm = fake_tpm()
    runtime_data = tpm.runtime_data()
    report = chip.sign(make_report("Milan", report_data=hashlib.sha256(runtime_data).digest().ljust(64, b"\0")))
    document = azure_document(hcl_report(2, report, runtime_data), tpm.quote(b"qualifying data"))

The key is made at run time and is nobody's.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from struct import Struct
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tresor.attestation.tdx.abi import TdBody
from tresor.encodings import base64url_encode

__all__ = ["PCRS", "FakeTpm", "azure_document", "fake_tpm", "hcl_report", "tdreport"]

SHA1, SHA256, SHA384 = 0x0004, 0x000B, 0x000C
PCRS: Final = {index: bytes([index]) * 32 for index in range(24)}


@dataclass(frozen=True)
class FakeTpm:
    """The TPM: its attestation key."""

    key: rsa.RSAPrivateKey

    def jwk(self, kid: str = "HCLAkPub", **changes: Any) -> dict[str, Any]:
        """Return the public key as the paravisor writes it."""
        numbers = self.key.public_key().public_numbers()
        n, e = (base64url_encode(number.to_bytes((number.bit_length() + 7) // 8)) for number in (numbers.n, numbers.e))
        return {"kid": kid, "key_ops": ["sign"], "kty": "RSA", "e": e, "n": n} | changes

    def runtime_data(self, **changes: Any) -> bytes:
        """Return runtime data that name the key; `changes` are members of the JSON."""
        members = {
            "keys": [self.jwk()],
            "vm-configuration": {
                "console-enabled": True,
                "secure-boot": True,
                "tpm-enabled": True,
                "vmUniqueId": "390CBCF5-6C67-4D9B-98EF-C3F1699CC8FC",
            },
            "user-data": "00" * 64,
        } | changes
        return json.dumps(members, separators=(",", ":")).encode()

    def attest(
        self,
        extra_data: bytes = b"",
        pcrs: Mapping[int, bytes] = PCRS,
        *,
        bank: int = SHA256,
        magic: bytes = b"\xffTCG",
        kind: int = 0x8018,
        digest: bytes | None = None,
        selections: bytes | None = None,
    ) -> bytes:
        """Return a TPMS_ATTEST over these registers."""
        if selections is None:
            mask = sum(1 << index for index in pcrs)
            selections = Struct(">IHB").pack(1, bank, 3) + mask.to_bytes(3, "little")
        if digest is None:
            digest = hashlib.sha256(b"".join(pcrs.values())).digest()
        clock = Struct(">QIIBQ").pack(123_456, 7, 1, 1, 0x2020_0312_0012_0003)
        name = _sized(b"\x00\x0b" + bytes(32))
        return magic + kind.to_bytes(2) + name + _sized(extra_data) + clock + selections + _sized(digest)

    def sign(self, message: bytes) -> bytes:
        """Sign as RSASSA with SHA-256."""
        return self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())

    def sign_tpmt(self, message: bytes, *, pss: bool = False, digest: int = SHA256) -> bytes:
        """Sign, and wrap the signature as a TPMT_SIGNATURE."""
        function = {SHA1: hashes.SHA1(), SHA256: hashes.SHA256(), SHA384: hashes.SHA384()}[digest]  # noqa: S303 - refused
        scheme = padding.PSS(padding.MGF1(function), padding.PSS.MAX_LENGTH) if pss else padding.PKCS1v15()
        signature = self.key.sign(message, scheme, function)
        return Struct(">HH").pack(0x0016 if pss else 0x0014, digest) + _sized(signature)

    def quote(self, extra_data: bytes = b"", pcrs: Mapping[int, bytes] = PCRS, /, **attest: Any) -> dict[str, Any]:
        """Return a quote as it stands in documents."""
        message = self.attest(extra_data, pcrs, **attest)
        return {
            "message": message.hex(),
            "signature": self.sign(message).hex(),
            "pcrs": [value.hex() for value in pcrs.values()],
        }


@cache
def fake_tpm(world: str = "") -> FakeTpm:
    """Return a TPM; another `world` has another key."""
    assert world is not None
    return FakeTpm(rsa.generate_private_key(65537, 2048))


def hcl_report(
    kind: int,
    hardware_report: bytes,
    runtime_data: bytes,
    *,
    version: int = 2,
    hash_type: int = 1,
    request_version: int = 1,
    request_type: int = 2,
    size: int | None = None,
    tail: bytes = bytes(100),
) -> bytes:
    """Make an HCL report: kind 2 for SEV-SNP, 4 for TDX; `size` is what it says of the runtime data."""
    size = len(runtime_data) if size is None else size
    header = b"HCLA" + Struct("<IIII12x").pack(version, 1236 + size, request_type, 0)
    request = Struct("<IIIII").pack(20 + size, request_version, kind, hash_type, size)
    return header + hardware_report.ljust(1184, b"\0") + request + runtime_data + tail


def tdreport(td: TdBody) -> bytes:
    """Make the TDREPORT of which a quote with this body is made; nobody can check its MAC."""
    module = bytes(8) + td.tee_tcb_svn + td.mrseam + td.mrsignerseam + td.seamattributes
    tcb_info = (module + (td.tee_tcb_svn2 or bytes(16))).ljust(239, b"\0")
    domain = td.tdattributes + td.xfam + td.mrtd + td.mrconfigid + td.mrowner + td.mrownerconfig + b"".join(td.rtmrs)
    info = (domain + (td.mrservicetd or bytes(48))).ljust(512, b"\0")
    hashed = hashlib.sha384(tcb_info).digest() + hashlib.sha384(info).digest()
    mac = b"\x81\0\0\0".ljust(16, b"\0") + bytes(16) + hashed + td.report_data + bytes(32) + bytes(32)
    return mac + tcb_info.ljust(256, b"\0") + info


def azure_document(hcl: bytes, quote: Mapping[str, Any] | None = None, **members: str) -> bytes:
    """Return a document in our form."""
    parts = {"hcl_report_b64": base64.b64encode(hcl).decode(), **members}
    if quote is not None:
        parts["tpm_quote_b64"] = base64.b64encode(json.dumps(quote).encode()).decode()
    return json.dumps(parts).encode()


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data
