"""An AMD of the tests' own: a hierarchy like AMD's, processors that sign reports, and revocation lists.

    amd = fake_amd("Genoa")                                  # ARK, ASK, ASVK; the same ones each time in one process
    chip = amd.vcek(chip_id=bytes(range(64)), tcb={"bl": 4, "snp": 24})
    report = chip.sign(make_report("Genoa", chip_id=chip.chip_id, reported_tcb={"bl": 4, "snp": 24}))
    appraise_snp(..., collateral=Collateral((chip.der, amd.ask_der)), anchors=amd.anchors, now=AT)

Keys are made at run time and are nobody's; RSA has 2048 bits, because nothing but AMD's own keys needs 4096.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tresor.attestation.roots import TrustAnchors
from tresor.attestation.snp.tcb import LAYOUTS, Product

__all__ = ["AT", "CHIP_ID", "TCB", "Chip", "FakeAmd", "fake_amd", "make_report"]

AT: Final = datetime(2026, 6, 1, tzinfo=UTC)
CHIP_ID: Final = bytes(range(1, 65))
TCB: Final[Mapping[str, int]] = {"fmc": 1, "bl": 4, "tee": 0, "snp": 24, "ucode": 219}
CPUID: Final[dict[Product, tuple[int, int, int]]] = {
    "Milan": (0x19, 0x01, 1),
    "Genoa": (0x19, 0x11, 1),
    "Turin": (0x1A, 0x02, 1),
}
PSS: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
ARC: Final = "1.3.6.1.4.1.3704.1"
SPL: Final = {"bl": 1, "tee": 2, "snp": 3, "ucode": 8, "fmc": 9}


@asn1.sequence
class _Certificate:
    tbs_certificate: asn1.TLV
    signature_algorithm: asn1.TLV
    signature: asn1.BitString


@dataclass(frozen=True)
class Chip:
    """A key that signs reports, and its certificate."""

    der: bytes
    key: ec.EllipticCurvePrivateKey
    chip_id: bytes

    def sign(self, report: bytes) -> bytes:
        """Return a report with its signature."""
        signed = report[:0x2A0]
        scalars = decode_dss_signature(self.key.sign(signed, ec.ECDSA(hashes.SHA384())))
        return (signed + b"".join(scalar.to_bytes(72, "little") for scalar in scalars)).ljust(0x4A0, b"\0")


@dataclass(frozen=True)
class FakeAmd:
    """The hierarchy of one product line: names, roles and extensions are AMD's; another `world` has other keys."""

    product: Product
    world: str = ""

    @cached_property
    def _keys(self) -> dict[str, rsa.RSAPrivateKey]:
        return {name: rsa.generate_private_key(65537, 2048) for name in ("ark", "ask", "asvk")}

    @cached_property
    def ark(self) -> x509.Certificate:
        return self.authority(f"ARK-{self.product}", "ark", issuer="ark")

    @cached_property
    def ask(self) -> x509.Certificate:
        return self.authority(f"SEV-{self.product}", "ask")

    @cached_property
    def asvk(self) -> x509.Certificate:
        return self.authority(f"SEV-VLEK-{self.product}", "asvk")

    @property
    def issuers(self) -> tuple[bytes, ...]:
        """ASK and ASVK, DER."""
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in (self.ask, self.asvk))

    @property
    def anchors(self) -> TrustAnchors:
        return TrustAnchors(amd={self.product: (self.ark,)})

    def authority(
        self,
        name: str,
        key: str,
        *,
        issuer: str = "ark",
        ca: bool = True,
        may_sign: bool = True,
        not_after: datetime = AT + timedelta(days=7000),
        critical_oid: str | None = None,
        serial: int | None = None,
    ) -> x509.Certificate:
        """Make the certificate of an ARK, ASK or ASVK, or of something like it."""
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(amd_name(name))
            .issuer_name(amd_name(f"ARK-{self.product}"))
            .public_key(self._keys[key].public_key())
            .serial_number(x509.random_serial_number() if serial is None else serial)
            .not_valid_before(AT - timedelta(days=1000))
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage, key_cert_sign=may_sign, crl_sign=True), critical=True)
        )
        if critical_oid is not None:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(critical_oid), b"\x05\x00"), critical=True
            )
        return builder.sign(self._keys[issuer], hashes.SHA384(), rsa_padding=PSS)

    def vcek(self, **changes: Any) -> Chip:
        """Make a chip and its VCEK; see `certify` for what can be changed."""
        chip_id = changes.pop("chip_id", CHIP_ID if self.product != "Turin" else CHIP_ID[:8])
        key = ec.generate_private_key(ec.SECP384R1())
        return Chip(self.certify(key, hwid=chip_id, **changes), key, chip_id.ljust(64, b"\0"))

    def vlek(self, **changes: Any) -> Chip:
        """Make a key lent to a cloud and its VLEK."""
        key = ec.generate_private_key(ec.SECP384R1())
        changes = {"csp_id": "CN=cloud.example", "name": "SEV-VLEK", "issuer": "asvk"} | changes
        return Chip(self.certify(key, **changes), key, bytes(64))

    def certify(
        self,
        key: ec.EllipticCurvePrivateKey,
        *,
        hwid: bytes | None = None,
        csp_id: str | None = None,
        tcb: Mapping[str, int] = TCB,
        product_name: str | None = None,
        name: str = "SEV-VCEK",
        issuer: str = "ask",
        issuer_name: x509.Name | None = None,
        not_before: datetime = AT - timedelta(days=100),
        not_after: datetime = AT + timedelta(days=100),
        changed: Mapping[str, bytes | None] | None = None,
        critical: str | None = None,
        pss: padding.PSS = PSS,
    ) -> bytes:
        """Return a VCEK or VLEK, DER, numbered 0 as all of AMD's are.

        Args:
            key: what is certified.
            changed: last part of an AMD extension's object identifier to its value; None leaves it out.
            critical: last part of the one that is marked critical.
        """
        values = {
            "1": b"\x02\x01\x01",
            "2": _tlv(0x16, (product_name or self.product).encode()),
            **{f"3.{number}": asn1.encode_der(0) for number in (4, 5, 6, 7)},
            **{f"3.{SPL[part]}": asn1.encode_der(tcb.get(part, 0)) for part in LAYOUTS[self.product]},
            "4": hwid,
            "5": None if csp_id is None else _tlv(0x16, csp_id.encode()),
        } | dict(changed or {})
        certified_by = {"ark": self.ark, "ask": self.ask, "asvk": self.asvk}[issuer]
        builder = (
            x509.CertificateBuilder()
            .subject_name(amd_name(name))
            .issuer_name(certified_by.subject if issuer_name is None else issuer_name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )
        for oid, value in values.items():
            if value is not None:
                extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{ARC}.{oid}"), value)
                builder = builder.add_extension(extension, critical=oid == critical)
        certificate = builder.sign(self._keys[issuer], hashes.SHA384(), rsa_padding=pss)
        # No builder numbers a certificate 0, so the number is exchanged and what then is there signed again.
        one, zero = b"\xa0\x03\x02\x01\x02\x02\x01\x01", b"\xa0\x03\x02\x01\x02\x02\x01\x00"
        tbs = certificate.tbs_certificate_bytes.replace(one, zero, 1)
        algorithm = asn1.decode_der(_Certificate, certificate.public_bytes(Encoding.DER)).signature_algorithm
        signature = self._keys[issuer].sign(tbs, pss, hashes.SHA384())
        return _tlv(0x30, tbs + asn1.encode_der(algorithm) + _tlv(0x03, b"\0" + signature))

    def crl(
        self,
        revoked: Iterable[x509.Certificate] = (),
        *,
        issuer: str = "ark",
        last_update: datetime = AT - timedelta(days=10),
        next_update: datetime = AT + timedelta(days=10),
    ) -> bytes:
        """Return a revocation list of the ARK, DER, signed by the key of `issuer`."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.ark.subject)
            .last_update(last_update)
            .next_update(next_update)
        )
        for certificate in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(last_update)
                .build()
            )
        return builder.sign(self._keys[issuer], hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)


def fake_amd(product: Product = "Milan", world: str = "") -> FakeAmd:
    """Return the hierarchy of a product line, the same one each time."""
    return _fake_amd(product, world)


_fake_amd = cache(FakeAmd)


def amd_name(common_name: str) -> x509.Name:
    """Return a name as AMD writes them."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    length = bytes((size,)) if size < 0x80 else bytes((0x82, size >> 8, size & 0xFF))
    return bytes((tag,)) + length + value


_OFFSETS: Final = {
    "version": (0x000, 4),
    "guest_svn": (0x004, 4),
    "policy": (0x008, 8),
    "family_id": (0x010, 16),
    "image_id": (0x020, 16),
    "vmpl": (0x030, 4),
    "signature_algo": (0x034, 4),
    "current_tcb": (0x038, 8),
    "platform_info": (0x040, 8),
    "key_information": (0x048, 4),
    "report_data": (0x050, 64),
    "measurement": (0x090, 48),
    "host_data": (0x0C0, 32),
    "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "reported_tcb": (0x180, 8),
    "cpuid": (0x188, 3),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "current_version": (0x1E8, 3),
    "committed_version": (0x1EC, 3),
    "launch_tcb": (0x1F0, 8),
}


def make_report(product: Product = "Milan", **changes: Any) -> bytes:
    """Return a report without its signature: a good one of `product` but for `changes`.

    Fields are AMD's; integers are written little-endian, a TCB version may be given by its parts.
    """
    fields: dict[str, Any] = {
        "version": 3,
        "guest_svn": 2,
        "policy": 0x30000,
        "signature_algo": 1,
        "platform_info": 0x25,
        "report_data": bytes(range(64)),
        "measurement": b"\xab" * 48,
        "host_data": b"\xcd" * 32,
        "id_key_digest": b"\x1d" * 48,
        "author_key_digest": b"\xa0" * 48,
        "family_id": b"\xfa" * 16,
        "image_id": b"\x1a" * 16,
        "report_id": b"\x77" * 32,
        "cpuid": bytes(CPUID[product]),
        "chip_id": CHIP_ID if product != "Turin" else CHIP_ID[:8],
        **dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), TCB),
        **dict.fromkeys(("current_version", "committed_version"), bytes((29, 55, 1))),
    } | changes
    report = bytearray(0x4A0)
    for name, value in fields.items():
        offset, size = _OFFSETS[name]
        if isinstance(value, int):
            raw = value.to_bytes(size, "little")
        elif isinstance(value, bytes):
            raw = value
        else:
            parts = bytearray(8)
            for part, index in LAYOUTS[product].items():
                parts[index] = value.get(part, 0)
            raw = bytes(parts)
        report[offset : offset + len(raw)] = raw
    return bytes(report)
