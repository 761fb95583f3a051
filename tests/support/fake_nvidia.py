"""An NVIDIA of the tests' own: devices, manifests, OCSP responders and a remote verifier, each under its own root.

Always the same bytes: keys come from fixed words, signatures use the nonces of RFC 6979.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp as x509_ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from lxml import etree

__all__ = [
    "AT",
    "CHIPS",
    "GPU",
    "NONCE",
    "NRAS",
    "OTHER_GPU",
    "RIM_CHAIN",
    "Device",
    "Issued",
    "anchors_of",
    "device",
    "device_claims",
    "eat",
    "evidence_list",
    "golden",
    "issue",
    "jwks",
    "measurements",
    "nras_key",
    "ocsp",
    "opaque",
    "overall_claims",
    "pem",
    "report",
    "responder",
    "rim",
    "rim_chain",
    "rim_xml",
    "sign_rim",
    "token",
]

AT: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
NONCE: Final = bytes(range(32))
NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
YEAR: Final = timedelta(days=365)
CHIPS: Final = {
    "GH100": "2.23.133.5.4.1",
    "LS_10": "2.23.133.5.4.1",
    "GB100": "2.23.133.5.4.1.1",
    "GX100": "2.23.133.5.4.1",
}
_SHA384_OID: Final = bytes.fromhex("0609608648016503040202")


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and who issued it; None where it signed itself."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    issuer: "Issued | None"

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def chain(self) -> "tuple[Issued, ...]":
        return (self,) if self.issuer is None else (self, *self.issuer.chain)


def issue(
    name: str,
    issuer: Issued | None,
    *,
    world: str = "nvidia",
    ca: bool = True,
    valid_from: datetime = AT - YEAR,
    valid_until: datetime = NEVER,
    curve: ec.EllipticCurve | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Issued:
    """Issue a certificate named `name`, self-signed where there is no issuer; `world` tells equal names apart."""
    words = f"{world}/{name}/{valid_from.isoformat()}".encode()
    key = ec.derive_private_key(int.from_bytes(hashlib.sha256(words).digest()) >> 1, curve or ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(words).digest()[:15]) + 1)
        .not_valid_before(valid_from)
        .not_valid_after(valid_until)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signer = key if issuer is None else issuer.key
    return Issued(builder.sign(signer, hashes.SHA384(), ecdsa_deterministic=True), key, issuer)


def _raw_signature(message: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384(), deterministic_signing=True)))
    return r.to_bytes(48) + s.to_bytes(48)


def pem(certificates: Iterable[Issued]) -> bytes:
    """Return PEM text, in the order given."""
    return b"".join(issued.certificate.public_bytes(Encoding.PEM) for issued in certificates)


def _der(tag: int, *content: bytes) -> bytes:
    body = b"".join(content)
    size = len(body)
    if size < 128:
        return bytes((tag, size)) + body
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + body


# --- devices


@dataclass(frozen=True)
class Device:
    """A GPU or NVSwitch: its chain, leaf first, and the firmware identity that its leaf states."""

    leaf: Issued
    fwid: bytes

    @property
    def chain(self) -> tuple[Issued, ...]:
        return self.leaf.chain

    @property
    def pem(self) -> bytes:
        return pem(self.chain)


def device(
    number: int = 0,
    *,
    chip: str = "GH100",
    world: str = "nvidia",
    fwid: bytes = bytes(range(48)),
    boot: int = 0,
    provisioner: str | None = None,
    leaf: Mapping[str, Any] | None = None,
) -> Device:
    """Make a device.

    Args:
        number: tells devices apart.
        chip: family, a key of `CHIPS`.
        world: another NVIDIA, with the same names.
        fwid: what the leaf states.
        boot: tells the leaves of one device apart.
        provisioner: name of the third certificate where it is not NVIDIA's.
        leaf: changes to the leaf, as `issue` takes them.
    """
    root = issue("NVIDIA Device Identity CA", None, world=world)
    family = issue(f"NVIDIA {'GH100' if chip == 'LS_10' else chip} Identity", root, world=world)
    ica = issue(provisioner or f"NVIDIA {chip} Provisioner ICA 1", family, world=world)
    rom = issue(f"{chip} A01 GSP BROM {number}", ica, world=world)
    entry = _der(0x30, _SHA384_OID, _der(0x04, fwid))
    if CHIPS[chip].endswith(".1.1"):
        zeros = _der(0x30, _SHA384_OID, _der(0x04, bytes(48)))
        value = _der(
            0x30, _der(0x80, b"NVIDIA"), _der(0x81, b"GSP"), _der(0xA6, entry, zeros), _der(0x87, b"\x05" + bytes(4))
        )
    else:
        public = rom.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        value = _der(0x30, _der(0x02, b"\x01"), public, entry)
    stated = x509.UnrecognizedExtension(x509.ObjectIdentifier(CHIPS[chip]), value)
    options: dict[str, Any] = {"ca": False, "world": world, "extensions": [(stated, False)], **(leaf or {})}
    return Device(issue(f"{chip} A01 GSP FMC LF {number}.{boot}", rom, **options), fwid)


GPU: Final = device(0)
OTHER_GPU: Final = device(1, fwid=bytes(range(1, 49)))


# --- reports


def golden(index: int, word: str = "golden") -> bytes:
    """Return the value that a good device measures at an index."""
    return hashlib.sha384(f"{word}/{index}".encode()).digest()


def measurements(**changed: bytes | None) -> dict[int, bytes]:
    """Return golden index to value, of a few indices; `i7=...` changes index 7, None leaves it out."""
    values = {i: changed.get(f"i{i}", golden(i)) for i in (0, 1, 2, 7, 21, 35)}
    return {index: value for index, value in values.items() if value is not None}


def opaque(maker: Device = GPU, **changed: bytes | None) -> dict[int, bytes]:
    """Return the opaque fields of a good GPU; `f11=...` changes field 11, None leaves it out."""
    fields: dict[int, bytes | None] = {
        3: b"550.90.07\0",
        6: bytes.fromhex("009f009601000000"),
        11: b"\x55",
        15: b"882\0\0\0",
        17: b"1010\0",
        18: b"0200\0",
        20: maker.fwid,
        21: b"\x55",
        34: b"\x01\x00",
        36: b"\x01\x00",
    }
    fields |= {int(name[1:]): value for name, value in changed.items()}
    return {kind: value for kind, value in fields.items() if value is not None}


def report(
    maker: Device = GPU,
    *,
    nonce: bytes = NONCE,
    measured: Mapping[int, bytes] | None = None,
    fields: Mapping[int, bytes] | None = None,
    record: bytes | None = None,
    blocks: int | None = None,
    opaque_data: bytes | None = None,
    request: bytes = b"\x11\xe0\x01\xff",
    slot: bytes = b"\0",
    response: bytes = b"\x11\x60\0\0",
) -> bytes:
    """Return one exchange, signed by the leaf of `maker`; the last six change raw parts of it."""
    values = measurements() if measured is None else measured
    if record is None:
        record = b"".join(struct.pack("<BBHBH", i + 1, 1, len(v) + 3, 1, len(v)) + v for i, v in values.items())
    if opaque_data is None:
        fields = opaque(maker) if fields is None else fields
        opaque_data = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in fields.items())
    count = len(values) if blocks is None else blocks
    signed = (
        request
        + nonce
        + slot
        + response
        + bytes((count,))
        + len(record).to_bytes(3, "little")
        + record
        + bytes(range(32, 64))
        + len(opaque_data).to_bytes(2, "little")
        + opaque_data
    )
    return signed + _raw_signature(signed, maker.leaf.key)


def evidence_list(*entries: tuple[Device, bytes], **changed: Any) -> bytes:
    """Return NVIDIA's JSON of devices and their reports; `changed` are members of every entry, None leaves one out."""
    documents = []
    for maker, exchange in entries:
        members: dict[str, Any] = {
            "arch": {"GB": "BLACKWELL", "LS": "LS10"}.get(
                maker.leaf.certificate.subject.rfc4514_string()[3:5], "HOPPER"
            ),
            "certificate": base64.b64encode(maker.pem).decode(),
            "evidence": base64.b64encode(exchange).decode(),
            "nonce": exchange[4:36].hex(),
            **changed,
        }
        documents.append({name: value for name, value in members.items() if value is not None})
    return json.dumps(documents, indent=1).encode()


# --- manifests

_SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_DS: Final = "http://www.w3.org/2000/09/xmldsig#"
_C14N11: Final = "http://www.w3.org/2006/12/xml-c14n11"


def rim_chain(
    world: str = "nvidia", *, valid_until: datetime = AT + YEAR, signer: str = "HCC RIM L4 Signer"
) -> tuple[Issued, ...]:
    """Return the four certificates of a manifest, signer first."""
    root = issue("NVIDIA CoRIM signing Root CA", None, world=world)
    second = issue("NVIDIA Reference Value GH100 CA", root, world=world)
    third = issue("NVIDIA Reference Value L3 GH100 002", second, world=world)
    return issue(signer, third, world=world, ca=False, valid_until=valid_until).chain


RIM_CHAIN: Final = rim_chain()


def rim_xml(
    version: str = "550.90.07",
    values: Mapping[int, Sequence[bytes]] | None = None,
    *,
    product: str = "GH100",
    payload: str | None = None,
    extra: str = "",
) -> str:
    """Return an unsigned manifest: by default of the driver, over the indices 7, 21 and 35."""
    values = {i: [golden(i)] for i in (7, 21, 35)} if values is None else values
    if payload is None:
        payload = "".join(
            f'<ns0:Resource type="Measurement" index="{i}" active="True" alternatives="{len(v)}" '
            + " ".join(f'ns2:Hash{n}="{h.hex()}"' for n, h in enumerate(v))
            + f' name="Measurement_{i}" size="48"/>'
            for i, v in values.items()
        )
        payload += (
            '<ns0:Resource type="Measurement" index="63" active="False" alternatives="1" '
            f'ns2:Hash0="{"00" * 48}" name="Measurement_63" size="48"/>'
        )
    return (
        f'<SoftwareIdentity xmlns="{_SWID}" xmlns:ns0="{_SWID}" xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384" '
        f'name="{product}" version="1.0">\n    '
        f'<ns0:Meta colloquialVersion="{version}" edition="GPU" product="{product}"/>\n    '
        f"<ns0:Payload>{payload}</ns0:Payload>{extra}\n</SoftwareIdentity>"
    )


def sign_rim(
    xml: str,
    chain: Sequence[Issued] = RIM_CHAIN,
    *,
    signed_info: Mapping[str, str] | None = None,
    certificates: Sequence[Issued] | None = None,
) -> bytes:
    """Put the signature of the first of `chain` into a manifest, before its end.

    Args:
        xml: the manifest.
        chain: signer first.
        signed_info: replacements in the text of SignedInfo.
        certificates: what stands in KeyInfo, where it is not the chain.
    """
    digest = base64.b64encode(hashlib.sha384(etree.tostring(etree.fromstring(xml), method="c14n")).digest()).decode()
    info = (
        f'<ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{_C14N11}"/>'
        '<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/>'
        f'<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="{_DS}enveloped-signature"/>'
        f'<ds:Transform Algorithm="{_C14N11}"/></ds:Transforms>'
        '<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"/>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )
    for old, new in (signed_info or {}).items():
        info = info.replace(old, new)

    def whole(value: str) -> str:
        keys = "".join(
            f"<ds:X509Certificate>{base64.encodebytes(issued.der).decode()}</ds:X509Certificate>"
            for issued in (chain if certificates is None else certificates)
        )
        signature = (
            f'<ds:Signature xmlns:ds="{_DS}">{info}<ds:SignatureValue>{value}</ds:SignatureValue>'
            f"<ds:KeyInfo><ds:X509Data>{keys}</ds:X509Data></ds:KeyInfo></ds:Signature>"
        )
        end = xml.rindex("\n</")
        return xml[:end] + signature + xml[end:]

    parsed = etree.fromstring(whole(""))
    element = next(iter(parsed.iter(f"{{{_DS}}}SignedInfo")))
    value = _raw_signature(etree.tostring(element, method="c14n"), chain[0].key)
    return whole(base64.b64encode(value).decode()).encode()


def rim(version: str = "550.90.07", chain: Sequence[Issued] = RIM_CHAIN, **options: Any) -> bytes:
    """Return a signed manifest; `options` are those of `rim_xml`."""
    return sign_rim(rim_xml(version, **options), chain)


# --- OCSP


def responder(issuer: Issued, *, entitled: bool = True, valid_until: datetime = AT + YEAR) -> Issued:
    """Return a responder that `issuer` made, or one that it did not entitle."""
    usage = ExtendedKeyUsageOID.OCSP_SIGNING if entitled else ExtendedKeyUsageOID.SERVER_AUTH
    name = f"OCSP for {issuer.certificate.subject.rfc4514_string()[3:]}"
    return issue(name, issuer, ca=False, valid_until=valid_until, extensions=[(x509.ExtendedKeyUsage([usage]), True)])


def ocsp(
    about: Issued,
    status: str = "good",
    *,
    at: datetime = AT - timedelta(hours=1),
    life: timedelta | None = timedelta(hours=24),
    signer: Issued | None = None,
    issuer: Issued | None = None,
    serial: int | None = None,
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    """Return an answer about a certificate (RFC 6960).

    Args:
        about: the certificate.
        status: `good`, `revoked`, `on_hold` or `unknown`.
        at: thisUpdate and producedAt.
        life: from there to nextUpdate; None leaves it out.
        signer: who signs, where it is not a responder of the issuer.
        issuer: whose name and key stand in the CertID, where it is not the issuer.
        serial: what stands in the CertID, where it is not the certificate's.
        algorithm: of the hashes in the CertID, SHA-384 by default.
    """
    maker = about.issuer
    assert maker is not None
    signer = responder(maker) if signer is None else signer
    named = (issuer or maker).certificate
    request = (
        x509_ocsp.OCSPRequestBuilder().add_certificate(about.certificate, named, algorithm or hashes.SHA384()).build()
    )
    oid = {"sha384": _SHA384_OID, "sha1": bytes.fromhex("06052b0e03021a")}[request.hash_algorithm.name]
    number = about.certificate.serial_number if serial is None else serial
    cert_id = _der(
        0x30,
        _der(0x30, oid, _der(0x05)),
        _der(0x04, request.issuer_name_hash),
        _der(0x04, request.issuer_key_hash),
        _der(0x02, number.to_bytes(number.bit_length() // 8 + 1)),
    )
    when = _time(at)
    revoked = {"revoked": b"\x01", "on_hold": b"\x06"}.get(status)  # keyCompromise, certificateHold
    verdict = {"good": _der(0x80), "unknown": _der(0x82)}.get(status) or _der(
        0xA1, when, _der(0xA0, _der(0x0A, revoked or b""))
    )
    until = b"" if life is None else _der(0xA0, _time(at + life))
    key_hash = hashlib.sha1(_point(signer), usedforsecurity=False).digest()
    answers = _der(0x30, _der(0x30, cert_id, verdict, when, until))
    data = _der(0x30, _der(0xA2, _der(0x04, key_hash)), when, answers)
    signature = signer.key.sign(data, ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    certificates = b"" if signer is maker else _der(0xA0, _der(0x30, signer.der))
    basic = _der(
        0x30, data, _der(0x30, bytes.fromhex("06082a8648ce3d040303")), _der(0x03, b"\0", signature), certificates
    )
    kind = bytes.fromhex("06092b0601050507300101")
    return _der(0x30, _der(0x0A, b"\0"), _der(0xA0, _der(0x30, kind, _der(0x04, basic))))


def _time(at: datetime) -> bytes:
    return _der(0x18, f"{at:%Y%m%d%H%M%SZ}".encode())


def _point(issued: Issued) -> bytes:
    return issued.certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


# --- the remote verifier


def nras_key(world: str = "nvidia", *, valid_until: datetime = AT + timedelta(days=1)) -> Issued:
    """Return a token key of NVIDIA's service, below its intermediate."""
    root = issue("NVIDIA Attestation Service CA 001", None, world=world)
    intermediate = issue("NVIDIA Attestation Service GPU Intermediate 004", root, world=world)
    return issue(
        "NVIDIA Attestation Service GPU GH100",
        intermediate,
        world=world,
        ca=False,
        valid_from=AT - timedelta(days=1),
        valid_until=valid_until,
    )


NRAS: Final = nras_key()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwks(*keys: Issued, **changed: Any) -> bytes:
    """Return a key set, kids `key-0`, `key-1`, ...; `changed` are members of every key."""
    entries = []
    for number, issued in enumerate(keys or (NRAS,)):
        point = _point(issued)[1:]
        entries.append(
            {
                "kty": "EC",
                "crv": "P-384",
                "kid": f"key-{number}",
                "x": _b64(point[: len(point) // 2]),
                "y": _b64(point[len(point) // 2 :]),
                "x5c": [base64.b64encode(one.der).decode() for one in issued.chain[:2]],
                **changed,
            }
        )
    return json.dumps({"keys": entries}).encode()


def overall_claims(devices: Mapping[str, str], **changed: Any) -> dict[str, Any]:
    """Return the claims of a good overall token over the tokens of devices."""
    at = int(AT.timestamp())
    return {
        "sub": "NVIDIA-PLATFORM-ATTESTATION",
        "x-nvidia-ver": "2.0",
        "iss": "https://nras.attestation.nvidia.com",
        "x-nvidia-overall-att-result": True,
        "submods": {
            name: ["DIGEST", ["SHA-256", hashlib.sha256(text.encode()).hexdigest()]] for name, text in devices.items()
        },
        "eat_nonce": NONCE.hex(),
        "nbf": at - 60,
        "iat": at - 60,
        "exp": at + 3540,
        **changed,
    }


def device_claims(number: int = 0, **changed: Any) -> dict[str, Any]:
    """Return the claims of a good device's token; a change to `...` leaves the claim out."""
    at = int(AT.timestamp())
    claims = {
        "iss": "https://nras.attestation.nvidia.com",
        "eat_nonce": NONCE.hex(),
        "nbf": at - 60,
        "iat": at - 60,
        "exp": at + 3540,
        "ueid": str(10**47 + number),
        "hwmodel": "GH100",
        "measres": "success",
        "secboot": True,
        "dbgstat": "disabled",
        "x-nvidia-gpu-driver-version": "550.90.07",
        "x-nvidia-gpu-vbios-version": "96.00.9F.00.01",
        "x-nvidia-gpu-arch-check": True,
        "x-nvidia-gpu-attestation-report-signature-verified": True,
        "x-nvidia-attestation-warning": None,
        **changed,
    }
    return {name: value for name, value in claims.items() if value is not ...}


def token(claims: Mapping[str, Any], key: Issued = NRAS, *, signature: bytes | None = None, **header: Any) -> str:
    """Return a compact JWS; `header` changes its header, and `signature` stands in place of the key's."""
    members = {"kid": "key-0", "alg": "ES384", **header}
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in (members, claims)]
    signed = ".".join(map(_b64, parts))
    return f"{signed}.{_b64(_raw_signature(signed.encode(), key.key) if signature is None else signature)}"


def eat(devices: Mapping[str, str] | None = None, overall: str | None = None, **changed: Any) -> bytes:
    """Return a detached EAT: by default good, of one GPU; `changed` are claims of its overall token."""
    devices = {"GPU-0": token(device_claims())} if devices is None else devices
    return json.dumps([["JWT", overall or token(overall_claims(devices, **changed))], devices]).encode()


def anchors_of(world: str = "nvidia") -> dict[str, bytes]:
    """Return the certificates that the vectors pin: device root, manifest root, intermediate of the service."""
    return {
        "device_root.der": device(world=world).chain[-1].der,
        "rim_root.der": rim_chain(world)[-1].der,
        "nras_intermediate.der": nras_key(world).chain[1].der,
    }
