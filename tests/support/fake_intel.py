"""An Intel of the tests' own: roots, platforms, collateral and a quoting enclave that signs whatever it is given.

Names are Intel's, letter for letter: names prove nothing.  Always the same bytes: keys come from fixed words,
signatures use the nonces of RFC 6979.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from tresor.attestation.tdx.abi import TdBody

__all__ = [
    "AT",
    "ATTESTATION_KEY",
    "INTEL",
    "QE_VENDOR",
    "SEPT_VE_DISABLE",
    "Intel",
    "Issued",
    "Platform",
    "body",
    "isv_level",
    "make_quote",
    "qe_identity",
    "qe_report",
    "raw_signature",
    "sgx_extension",
    "tcb_info",
    "tcb_level",
]

AT: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""When quotes are made; collateral was issued a day before and lives thirty."""

ISSUED: Final = AT - timedelta(days=1)
ENDS: Final = ISSUED + timedelta(days=30)
QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
QE_MRSIGNER: Final = hashlib.sha256(b"signer of the quoting enclave").digest()
SEPT_VE_DISABLE: Final = 1 << 28
_SGX: Final = "1.2.840.113741.1.13.1"


def _key(words: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(words.encode()).digest()) >> 1, ec.SECP256R1())


ATTESTATION_KEY: Final = _key("attestation key")


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def _issue(
    name: str,
    issuer: Issued | None,
    *,
    world: str,
    ca: bool,
    valid: tuple[datetime, datetime],
    extension: bytes | None = None,
) -> Issued:
    key = _key(f"{world}/{name}")
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
        ]
    )
    serial = int.from_bytes(hashlib.sha256(f"{world}/{name}/{valid}/{extension!r}".encode()).digest()[:15]) + 1
    signs = {"key_cert_sign": ca, "crl_sign": ca, "digital_signature": not ca, "content_commitment": not ca}
    others = ("key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(**signs, **dict.fromkeys(others, False)), critical=True)
    )
    if extension is not None:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), extension), critical=False
        )
    signer = key if issuer is None else issuer.key
    return Issued(builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True), key)


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What a PCK certificate says."""

    fmspc: bytes = bytes.fromhex("00f1e2d3c4b5")
    pceid: bytes = bytes(2)
    cpusvn: bytes = bytes([5, 5, 2, 2, 4, 1, 0, 5]) + bytes(8)
    pcesvn: int = 13
    flags: tuple[bool, bool, bool] | None = (True, False, True)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2)
    return bytes([tag]) + length + content


def _pair(oid: bytes, value: bytes) -> bytes:
    return _der(0x30, _der(0x06, bytes.fromhex("2a864886f84d010d01") + oid) + value)


def sgx_extension(platform: Platform, *, without: bytes | None = None) -> bytes:
    """Return the SGX extensions of a PCK certificate; `without` leaves one value out, by the end of its OID."""
    tcb = [_pair(bytes([2, 1 + index]), _der(0x02, bytes([svn]))) for index, svn in enumerate(platform.cpusvn)]
    tcb += [_pair(b"\x02\x11", _der(0x02, bytes([platform.pcesvn]))), _pair(b"\x02\x12", _der(0x04, platform.cpusvn))]
    values = {
        b"\x01": _der(0x04, bytes(range(16))),
        b"\x02": _der(0x30, b"".join(tcb)),
        b"\x03": _der(0x04, platform.pceid),
        b"\x04": _der(0x04, platform.fmspc),
        b"\x05": _der(0x0A, b"\x01"),
    }
    if platform.flags is not None:
        flags = [
            _pair(bytes([7, 1 + at]), _der(0x01, b"\xff" if flag else b"\0")) for at, flag in enumerate(platform.flags)
        ]
        values[b"\x06"] = _der(0x04, bytes(range(16, 32)))
        values[b"\x07"] = _der(0x30, b"".join(flags))
    return _der(0x30, b"".join(_pair(oid, value) for oid, value in values.items() if oid != without))


@dataclass(frozen=True, kw_only=True)
class Intel:
    """A hierarchy; `world` tells keys of the same names apart."""

    world: str = "intel"
    valid: tuple[datetime, datetime] = (AT - timedelta(days=3650), AT + timedelta(days=3650))
    platform: Platform = field(default_factory=Platform)

    @property
    def root(self) -> Issued:
        return self.issue("Intel SGX Root CA", None, ca=True)

    @property
    def platform_ca(self) -> Issued:
        return self.issue("Intel SGX PCK Platform CA", self.root, ca=True)

    @property
    def processor_ca(self) -> Issued:
        return self.issue("Intel SGX PCK Processor CA", self.root, ca=True)

    @property
    def tcb_signer(self) -> Issued:
        return self.issue("Intel SGX TCB Signing", self.root)

    @property
    def pck(self) -> Issued:
        return self.issue("Intel SGX PCK Certificate", self.platform_ca, extension=sgx_extension(self.platform))

    def issue(self, name: str, issuer: Issued | None, **shape: Any) -> Issued:
        return _issue(name, issuer, **{"world": self.world, "ca": False, "valid": self.valid, **shape})

    def pem(self, *issued: Issued) -> str:
        return "".join(one.pem for one in issued)

    def crl(
        self,
        issuer: Issued,
        *,
        revoked: Iterable[Issued] = (),
        issued: datetime = ISSUED,
        ends: datetime = ENDS,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> str:
        """Return a revocation list in hexadecimal."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(issued)
            .next_update(ends)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for one in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(one.certificate.serial_number)
                .revocation_date(issued)
                .build()
            )
        signed = builder.sign(issuer.key if key is None else key, hashes.SHA256(), ecdsa_deterministic=True)
        return signed.public_bytes(Encoding.DER).hex()

    def collateral(
        self,
        *,
        tcb: Mapping[str, Any] | str | None = None,
        qe: Mapping[str, Any] | str | None = None,
        signer: Issued | None = None,
        **members: Any,
    ) -> bytes:
        """Return a document; `tcb` and `qe` are signed texts or their content, `members` go in as they are."""
        signer = self.tcb_signer if signer is None else signer
        tcb_text, qe_text = (
            _text(tcb_info(self.platform) if tcb is None else tcb),
            _text(qe_identity() if qe is None else qe),
        )
        document = {
            "pck_crl_issuer_chain": self.pem(self.platform_ca, self.root),
            "root_ca_crl": self.crl(self.root, ends=ISSUED + timedelta(days=365)),
            "pck_crl": self.crl(self.platform_ca),
            "tcb_info_issuer_chain": self.pem(signer, self.root),
            "tcb_info": tcb_text,
            "tcb_info_signature": raw_signature(tcb_text.encode(), signer.key).hex(),
            "qe_identity_issuer_chain": self.pem(signer, self.root),
            "qe_identity": qe_text,
            "qe_identity_signature": raw_signature(qe_text.encode(), signer.key).hex(),
            **members,
        }
        return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()

    def quote(self, **changes: Any) -> bytes:
        """Return a quote of this world's platform; `changes` are those of `make_quote`."""
        chain = self.pem(self.pck, self.platform_ca, self.root)
        return make_quote(**{"pck": self.pck, "certification": (5, chain.encode() + b"\0"), **changes})


def _text(content: Mapping[str, Any] | str) -> str:
    return content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _components(values: bytes) -> list[dict[str, int]]:
    return [{"svn": value} for value in values.ljust(16, b"\0")]


def tcb_level(
    status: str, *, sgx: bytes = b"", tdx: bytes = b"", pcesvn: int = 0, advisories: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return one level of TCB information."""
    level: dict[str, Any] = {
        "tcb": {"sgxtcbcomponents": _components(sgx), "pcesvn": pcesvn, "tdxtcbcomponents": _components(tdx)},
        "tcbDate": "2025-05-14T00:00:00Z" if status == "UpToDate" else "2024-03-13T00:00:00Z",
        "tcbStatus": status,
    }
    return level | ({"advisoryIDs": list(advisories)} if advisories else {})


def isv_level(status: str, isvsvn: int, advisories: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return one level of a TDX module or a quoting enclave."""
    level: dict[str, Any] = {"tcb": {"isvsvn": isvsvn}, "tcbDate": "2025-05-14T00:00:00Z", "tcbStatus": status}
    return level | ({"advisoryIDs": list(advisories)} if advisories else {})


_MODULE: Final = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
_OLD: Final = ("INTEL-SA-01036", "INTEL-SA-01079")


def tcb_info(platform: Platform | None = None, **changes: Any) -> dict[str, Any]:
    """Return TCB information for a platform, whose TCB is up to date."""
    platform = Platform() if platform is None else platform
    return {
        "id": "TDX",
        "version": 3,
        "issueDate": _time(ISSUED),
        "nextUpdate": _time(ENDS),
        "fmspc": platform.fmspc.hex(),
        "pceId": platform.pceid.hex(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": 18,
        "tdxModule": _MODULE,
        "tdxModuleIdentities": [
            {"id": "TDX_01", **_MODULE, "tcbLevels": [isv_level("UpToDate", 6), isv_level("OutOfDate", 4, _OLD[:1])]}
        ],
        "tcbLevels": [
            tcb_level("UpToDate", sgx=bytes([3, 3, 2, 2, 4, 1, 0, 5]), tdx=bytes([5, 0, 3]), pcesvn=13),
            tcb_level(
                "OutOfDate", sgx=bytes([2, 2, 2, 2, 3, 1, 0, 5]), tdx=bytes([4, 0, 2]), pcesvn=11, advisories=_OLD
            ),
        ],
        **changes,
    }


def qe_identity(**changes: Any) -> dict[str, Any]:
    """Return the identity of the quoting enclave."""
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": _time(ISSUED),
        "nextUpdate": _time(ENDS),
        "tcbEvaluationDataNumber": 18,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_MRSIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [isv_level("UpToDate", 4), isv_level("OutOfDate", 2, _OLD[1:])],
        **changes,
    }


def qe_report(**changes: Any) -> bytes:
    """Return the report on the quoting enclave, 384 bytes."""
    values: dict[str, Any] = {
        "attributes": bytes.fromhex("1500000000000000e700000000000000"),
        "mrsigner": QE_MRSIGNER,
        "miscselect": 0,
        "isvprodid": 2,
        "isvsvn": 6,
        "report_data": bytes(64),
        **changes,
    }
    return struct.pack(
        "<16sI28x16s32s32x32s96xHH60x64s",
        bytes(16),
        values["miscselect"],
        values["attributes"],
        hashlib.sha256(b"quoting enclave").digest(),
        values["mrsigner"],
        values["isvprodid"],
        values["isvsvn"],
        values["report_data"],
    )


def body(*, attributes: int = SEPT_VE_DISABLE, xfam: int = 0x602E7, **changes: bytes) -> TdBody:
    """Return the report on a domain of TDX 1.0; give `tee_tcb_svn2` and `mrservicetd` for one of 1.5."""
    values: dict[str, bytes] = {
        "tee_tcb_svn": bytes([6, 1, 3]) + bytes(13),
        "mrseam": hashlib.sha384(b"mrseam").digest(),
        "mrsignerseam": bytes(48),
        "seamattributes": bytes(8),
        "tdattributes": attributes.to_bytes(8, "little"),
        "xfam": xfam.to_bytes(8, "little"),
        **{name: hashlib.sha384(name.encode()).digest() for name in ("mrtd", "mrconfigid", "mrowner", "mrownerconfig")},
        **{f"rtmr{index}": hashlib.sha384(b"rtmr%d" % index).digest() for index in range(4)},
        "report_data": bytes(range(64)),
    }
    return TdBody(**(values | changes))


def raw_signature(message: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Sign `message` with SHA-256; r and s, 32 bytes each."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32) + s.to_bytes(32)


def make_quote(
    *,
    pck: Issued,
    certification: tuple[int, bytes],
    td: TdBody | None = None,
    version: int = 4,
    header: bytes | None = None,
    descriptor: bytes | None = None,
    qe: bytes | None = None,
    bound: bytes | None = None,
    authentication: bytes = bytes(range(32)),
    key: ec.EllipticCurvePrivateKey = ATTESTATION_KEY,
    outer_type: int = 6,
    tail: bytes = b"",
) -> bytes:
    """Make a quote: `qe` is the report on the enclave without REPORT_DATA, `bound` what stands there instead."""
    td = body() if td is None else td
    fields = [getattr(td, item.name) for item in dataclasses.fields(td)]
    packed = b"".join(value for value in fields if value is not None)
    public = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
    if header is None:
        header = struct.pack("<HHI4x16s20s", version, 2, 0x81, QE_VENDOR, b"user data")
    if descriptor is None:
        descriptor = b"" if version == 4 else struct.pack("<HI", 2 if td.mrservicetd is None else 3, len(packed))
    signed = header + descriptor + packed
    if bound is None:
        bound = hashlib.sha256(public + authentication).digest() + bytes(32)
    report = (qe_report() if qe is None else qe)[:-64] + bound
    inner = report + raw_signature(report, pck.key) + struct.pack("<H", len(authentication)) + authentication
    inner += struct.pack("<HI", certification[0], len(certification[1])) + certification[1]
    data = raw_signature(signed, key) + public + struct.pack("<HI", outer_type, len(inner)) + inner
    return signed + struct.pack("<I", len(data)) + data + tail


INTEL: Final = Intel()
