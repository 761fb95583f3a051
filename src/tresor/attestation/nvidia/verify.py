"""Did a device of NVIDIA's sign this exchange?  Steps (2) to (4) of docs/spec/attestation.md, 5.3.

The chain has five certificates: the leaf, whose key the measured firmware holds; the boot ROM's, made on the chip; the
provisioner's and the chip family's, which name the chip; the device identity root, which is pinned.  Device
certificates never expire (9999-12-31), so only revocation retires a device: see `ocsp`.

The leaf states the identity of the firmware (FWID) that holds its key: in 2.23.133.5.4.1 (Hopper, LS10) as the end of a
composite device id, in 2.23.133.5.4.1.1 (Blackwell) as the first FWID of a DiceTcbInfo (TCG DICE Attestation
Architecture).  Not compared: the other members of TcbInfo (vendor, model, version, SVN).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import NameOID

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError, EvidenceUndecidedError
from tresor.attestation.nvidia.spdm import SpdmReport
from tresor.attestation.x509 import build_chain

__all__ = [
    "DeviceIdentity",
    "architecture_of",
    "is_device_leaf",
    "select_leaf",
    "verify_device_chain",
    "verify_ecdsa_p384",
    "verify_fwid",
    "verify_signature",
]

_CHAIN_LENGTH = 5
_PROVISIONER = 2
_PROVISIONER_NAME = re.compile(r"NVIDIA (?P<chip>[A-Z0-9_]{2,16}) Provisioner ICA [0-9]{1,8}\Z")
_ARCHITECTURES: Final = {"GH": "HOPPER", "GB": "BLACKWELL", "LS": "LS10"}

_COMPOSITE_DEVICE_ID = x509.ObjectIdentifier("2.23.133.5.4.1")
_DICE_TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1.1")
# FWID ::= SEQUENCE { hashAlg 2.16.840.1.101.3.4.2.2 (SHA-384), digest OCTET STRING (48) }
_FWID_PREFIX = bytes.fromhex("303d06096086480165030402020430")
_FWID_BYTES = 48
_TAG_SEQUENCE = 0x30
_TAG_FWIDS = 0xA6  # [6] IMPLICIT FWIDLIST of DiceTcbInfo
_LONG_FORM = 0x80
_COORDINATE_BYTES = 48


@dataclass(frozen=True, slots=True, repr=False)
class DeviceIdentity:
    """A device that NVIDIA provisioned.

    Attributes:
        chain: leaf first, pinned root last.
        chip: chip family that the provisioner's certificate names: `GH100`, `GB100`, `LS10`.
        architecture: `HOPPER`, `BLACKWELL`, `LS10`, or the chip where its family has no name here.
    """

    chain: tuple[x509.Certificate, ...]
    chip: str
    architecture: str

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of the key that signs reports."""
        return self.chain[0]

    @property
    def is_switch(self) -> bool:
        """Whether the device is an NVSwitch and no GPU."""
        return self.architecture == "LS10"


def architecture_of(chip: str) -> str:
    """Return the architecture of a chip (`GH100` is `HOPPER`), or the chip where its family has no name here."""
    return _ARCHITECTURES.get(chip[:2], chip)


def is_device_leaf(certificate: x509.Certificate) -> bool:
    """Return whether `certificate` states a FWID: whether it could be the leaf of a device chain."""
    return _fwid_extension(certificate) is not None


def select_leaf(certificates: Sequence[x509.Certificate], report: SpdmReport) -> x509.Certificate:
    """Return the leaf under which the signature of `report` verifies, else the first leaf there is.

    A bag of certificates holds the leaves of all devices of a machine; the signature tells which is meant.

    Raises:
        EvidenceUndecidedError: there is no leaf among them.
    """
    leaves = [certificate for certificate in certificates if is_device_leaf(certificate)]
    if not leaves:
        raise EvidenceUndecidedError(
            AttestationCode.ENDORSEMENT_MISSING,
            f"the certificate of the device is missing: none of {len(certificates)} certificates states a FWID",
        )
    for leaf in leaves:
        if verify_ecdsa_p384(leaf, report.signature, report.signed):
            return leaf
    return leaves[0]


def verify_device_chain(
    leaf: x509.Certificate,
    certificates: Sequence[x509.Certificate],
    *,
    roots: Sequence[x509.Certificate],
    now: datetime,
) -> DeviceIdentity:
    """Verify that NVIDIA provisioned the device whose leaf this is.

    Args:
        leaf: what `select_leaf` found.
        certificates: where the certificates between leaf and root are.
        roots: pinned device identity roots.
        now: instant at which every certificate must be valid (aware, UTC).

    Raises:
        EvidenceForgedError: the chain does not hold, is not of the five certificates of a device, or ends elsewhere.
        EvidenceUndecidedError: a certificate in between is missing.
    """
    chain = build_chain(leaf, certificates, roots=roots, now=now)
    provisioner = _common_name(chain[_PROVISIONER]) if len(chain) == _CHAIN_LENGTH else ""
    match = _PROVISIONER_NAME.match(provisioner)
    if match is None:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID,
            f"chain of {len(chain)} certificates with provisioner {provisioner[:64]!r}, want {_CHAIN_LENGTH} and "
            "'NVIDIA <chip> Provisioner ICA <n>'",
        )
    chip = match["chip"].replace("_", "")
    return DeviceIdentity(chain=chain, chip=chip, architecture=architecture_of(chip))


def verify_signature(report: SpdmReport, leaf: x509.Certificate) -> None:
    """Verify ECDSA P-384 with SHA-384 over everything before the signature.

    Raises:
        EvidenceForgedError: the key of the leaf did not sign this.
    """
    if not verify_ecdsa_p384(leaf, report.signature, report.signed):
        raise EvidenceForgedError(
            AttestationCode.SIGNATURE_INVALID,
            f"the key of {leaf.subject.rfc4514_string()} did not sign this report",
        )


def verify_fwid(report: SpdmReport, leaf: x509.Certificate) -> bool:
    """Compare the firmware identity in the report with that in the leaf.

    Returns:
        False where the report states none (drivers up to 535, NVSwitches), so that nothing was compared.

    Raises:
        EvidenceForgedError: they differ, or the leaf states none of the known form.
    """
    certified = _certified_fwid(leaf)
    if report.fwid is None:
        return False
    if report.fwid != certified:
        raise EvidenceForgedError(
            AttestationCode.FWID_MISMATCH,
            f"FWID of the report is {report.fwid.hex()}, of the certificate {certified.hex()}",
        )
    return True


def verify_ecdsa_p384(certificate: x509.Certificate, signature: bytes, signed: bytes) -> bool:
    """Return whether the P-384 key of `certificate` made `signature` (r and s, big-endian) over SHA-384 of `signed`."""
    key = certificate.public_key()
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        return False
    if len(signature) != 2 * _COORDINATE_BYTES:
        return False
    r, s = (int.from_bytes(half, "big") for half in (signature[:_COORDINATE_BYTES], signature[_COORDINATE_BYTES:]))
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _fwid_extension(certificate: x509.Certificate) -> tuple[x509.ObjectIdentifier, bytes] | None:
    for extension in certificate.extensions:
        if extension.oid in (_COMPOSITE_DEVICE_ID, _DICE_TCB_INFO):
            return extension.oid, extension.value.public_bytes()
    return None


def _certified_fwid(leaf: x509.Certificate) -> bytes:
    oid, value = _fwid_extension(leaf) or (None, b"")
    if oid == _DICE_TCB_INFO:
        members = dict(_elements(dict(_elements(value)).get(_TAG_SEQUENCE, b"")))
        fwid = members.get(_TAG_FWIDS, b"")[: len(_FWID_PREFIX) + _FWID_BYTES]
    else:
        fwid = value[-(len(_FWID_PREFIX) + _FWID_BYTES) :]
    if len(fwid) != len(_FWID_PREFIX) + _FWID_BYTES or not fwid.startswith(_FWID_PREFIX):
        raise EvidenceForgedError(
            AttestationCode.CERTIFICATE_EXTENSION_MISSING,
            f"certificate {leaf.subject.rfc4514_string()} states no FWID of SHA-384",
        )
    return fwid[len(_FWID_PREFIX) :]


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each DER element of `data` (X.690, 8.1); stop where it is none."""
    position = 0
    while position + 2 <= len(data):
        tag, size = data[position], data[position + 1]
        position += 2
        if size >= _LONG_FORM:
            octets = size - _LONG_FORM
            size = int.from_bytes(data[position : position + octets], "big")
            position += octets
        if position + size > len(data):
            return
        yield tag, data[position : position + size]
        position += size
