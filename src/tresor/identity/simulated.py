"""The maker of simulated reports: for laptops and demonstrations, and never to be mistaken for a TEE.

A root is made on the machine that uses it and its private key never leaves that: a published test key would be a
skeleton key to everybody who once trusted it.  Layout and names stand in `tresor.attestation.simulated.layout`.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.simulated.layout import (
    LEAF_NAME,
    ROOT_NAME,
    leaf_extensions,
    marker_extension,
    measurement_of,
    unsigned_report,
)
from tresor.attestation.snp.abi import REPORT_BYTES
from tresor.attestation.x509 import load_certificates
from tresor.errors import KeyFileError

__all__ = ["SimulatedProcessor", "SimulatedRoot"]

_CLOCK_SKEW: Final = timedelta(hours=1)
_ROOT_LIFE: Final = timedelta(days=3650)
_LEAF_LIFE: Final = timedelta(days=1)
_SCALAR_BYTES: Final = 72
_REPORT_DATA_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class SimulatedProcessor:
    """A key that signs reports as a processor's would.

    Attributes:
        certificates: leaf and root, DER.
    """

    certificates: tuple[bytes, bytes]
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    def report(self, report_data: bytes, image_digest: bytes) -> bytes:
        """Return a report of 1184 bytes.

        Args:
            report_data: 64 bytes to bind.
            image_digest: digest of what runs, from which MEASUREMENT follows.
        """
        if len(report_data) != _REPORT_DATA_BYTES:
            raise ValueError(f"REPORT_DATA is {len(report_data)} bytes, want {_REPORT_DATA_BYTES}")
        signed = unsigned_report(report_data, measurement_of(image_digest))
        scalars = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA384())))
        signature = b"".join(scalar.to_bytes(_SCALAR_BYTES, "little") for scalar in scalars)
        return (signed + signature).ljust(REPORT_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class SimulatedRoot:
    """A root of no TEE.

    Attributes:
        certificate: what a verifier must opt in to.
    """

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, now: datetime) -> Self:
        """Make a root that is valid for ten years from `now` (aware, UTC)."""
        key = ec.generate_private_key(ec.SECP384R1())
        builder = _certificate(ROOT_NAME, key, now, _ROOT_LIFE).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        return cls(builder.sign(key, hashes.SHA384()), key)

    @classmethod
    def load(cls, pem: bytes) -> Self:
        """Read what `private_bytes` wrote.

        Raises:
            KeyFileError: it is not a private key with the certificate of a simulated root.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
            (certificate,) = load_certificates(pem)
        except (ValueError, TypeError, UnsupportedAlgorithm, EvidenceMalformedError) as error:
            raise KeyFileError("want one unencrypted private key and one certificate in PEM") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise KeyFileError("the certificate is not that of the private key")
        if certificate.subject != ROOT_NAME or certificate.issuer != ROOT_NAME:
            raise KeyFileError(f"the certificate is of {certificate.subject.rfc4514_string()}, not of a simulated root")
        return cls(certificate, key)

    def private_bytes(self) -> bytes:
        """Return private key (PKCS #8, unencrypted) and certificate in PEM, for a file of mode 0600."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, now: datetime) -> SimulatedProcessor:
        """Make a processor whose certificate is valid for a day from `now` (aware, UTC); its key stays in memory."""
        key = ec.generate_private_key(ec.SECP384R1())
        builder = _certificate(LEAF_NAME, key, now, _LEAF_LIFE).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        for extension in leaf_extensions():
            builder = builder.add_extension(extension, critical=False)
        leaf = builder.sign(self._key, hashes.SHA384())
        encoding = serialization.Encoding.DER
        return SimulatedProcessor((leaf.public_bytes(encoding), self.certificate.public_bytes(encoding)), key)


def _certificate(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(ROOT_NAME)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(marker_extension(), critical=True)
    )
