"""An AWS Nitro hypervisor of the tests' own: a chain like AWS's, and documents signed under it.

Always the same bytes: keys come from fixed words, signatures use the nonces of RFC 6979.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

__all__ = [
    "AT",
    "CHAIN",
    "ES384",
    "GOOD",
    "Issued",
    "document",
    "issue",
    "make_chain",
    "raw_signature",
    "sign",
    "statement",
]

AT: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""When documents are made; certificates are valid from three seconds before for three hours, as AWS's."""

ES384: Final = cbor2.dumps({1: -35})


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def _key(words: str, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(words.encode()).digest()) >> 1, curve)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What one certificate of a chain looks like; `world` tells keys of the same name apart.

    `usage` is the one key usage; None for the one that fits.
    """

    name: str
    world: str = "aws"
    ca: bool = True
    path_length: int | None = None
    valid_from: datetime = AT - timedelta(seconds=3)
    valid_for: timedelta = timedelta(hours=3, seconds=3)
    curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)
    usage: str | None = None


def _usage(only: str) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    none = dict.fromkeys((*others, "digital_signature", "key_cert_sign", "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(**{**none, only: True})


def issue(name: str, issuer: Issued | None, **shape: Any) -> Issued:
    """Issue a certificate named `name`, self-signed where there is no issuer; `shape` is that of `_Shape`."""
    made = _Shape(name=name, **shape)
    key = _key(f"{made.world}/{name}", made.curve)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(f"{made.world}/{name}".encode()).digest()[:15]) + 1)
        .not_valid_before(made.valid_from)
        .not_valid_after(made.valid_from + made.valid_for)
        .add_extension(x509.BasicConstraints(made.ca, made.path_length), critical=True)
        .add_extension(_usage(made.usage or ("key_cert_sign" if made.ca else "digital_signature")), critical=True)
    )
    signer = key if issuer is None else issuer.key
    return Issued(builder.sign(signer, hashes.SHA384(), ecdsa_deterministic=True), key)


def make_chain(world: str = "aws", **shapes: dict[str, Any]) -> tuple[Issued, ...]:
    """Make a chain, root first, leaf last; `shapes` change `root`, `region`, `zone`, `instance` or `leaf`."""
    years = timedelta(days=3650)
    steps: dict[str, dict[str, Any]] = {
        "root": {"valid_from": AT - years, "valid_for": 2 * years},
        "region": {"path_length": 2},
        "zone": {"path_length": 1},
        "instance": {"path_length": 0},
        "leaf": {"ca": False},
    }
    chain: tuple[Issued, ...] = ()
    for step, shape in steps.items():
        changes = {"world": world, **shape, **shapes.get(step, {})}
        chain = (*chain, issue(f"{step}.nitro.test", chain[-1] if chain else None, **changes))
    return chain


def statement(chain: tuple[Issued, ...], **changes: Any) -> dict[Any, Any]:
    """Return the members of a good document; a change to `...` leaves the member out."""
    members: dict[Any, Any] = {
        "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
        "digest": "SHA384",
        "timestamp": int(AT.timestamp() * 1000),
        "pcrs": {index: bytes([index + 1]) * 48 if index in {0, 1, 2, 4} else bytes(48) for index in range(16)},
        "certificate": chain[-1].der,
        "cabundle": [issued.der for issued in chain[:-1]],
        "public_key": None,
        "user_data": bytes(range(64)),
        "nonce": b"n" * 32,
        **changes,
    }
    return {name: value for name, value in members.items() if value is not ...}


def sign(
    payload: bytes, key: ec.EllipticCurvePrivateKey, *, protected: bytes = ES384, unprotected: Any = None
) -> bytes:
    """Wrap a payload as an untagged COSE_Sign1 signed by `key`."""
    signature = raw_signature(cbor2.dumps(["Signature1", protected, b"", payload]), key)
    return cbor2.dumps([protected, {} if unprotected is None else unprotected, payload, signature])


def raw_signature(message: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Sign `message` with SHA-384; r and s, 48 bytes each."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384(), deterministic_signing=True)))
    return r.to_bytes(48) + s.to_bytes(48)


def document(chain: tuple[Issued, ...], /, **changes: Any) -> bytes:
    """Return a document with changed members, signed by the leaf of `chain`."""
    return sign(cbor2.dumps(statement(chain, **changes)), chain[-1].key)


CHAIN: Final = make_chain()
GOOD: Final = document(CHAIN)
