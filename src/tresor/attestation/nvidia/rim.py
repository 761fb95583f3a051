"""Reference integrity manifests: NVIDIA's signed golden measurements of one driver or VBIOS version.

A manifest is a SWID tag (ISO 19770-2:2015, TCG RIM Information Model 1.01) with one enveloped XML signature
(XML-DSig 1.1) in one profile, to which the document is held letter for letter:

    reference "" (the whole document), transforms enveloped-signature and C14N 1.1, SHA-384
    ECDSA P-384 with SHA-384, r and s raw
    KeyInfo with the whole chain, signer first, pinned root last

A document with DOCTYPE, entities, comments, processing instructions or `xml:` attributes is refused: NVIDIA writes
none, and without them C14N 1.0, which lxml has, and C14N 1.1 give the same bytes.

Not looked at: the schema beyond the members used here, `tagId`, and CoRIM manifests (CBOR), which NVIDIA writes for
later chips.  Project and SKU of a VBIOS stand in the name of its manifest only, not in what is signed.
"""

import base64
import binascii
import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from cryptography import x509
from lxml import etree

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError, EvidenceMalformedError, EvidenceUndecidedError
from tresor.attestation.nvidia.evidence_list import decode_base64
from tresor.attestation.nvidia.verify import verify_ecdsa_p384
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.x509 import MAX_CHAIN, build_chain, fingerprint, load_certificate
from tresor.encodings import parse_json
from tresor.errors import JsonError

__all__ = ["MAX_RIM_BYTES", "GenuineRim", "Rim", "RimKind", "parse_rim", "rim_url", "verify_rim"]

MAX_RIM_BYTES = 1 << 20
_RIM_SERVICE = "https://rim.attestation.nvidia.com/v1/rim/"

RimKind: TypeAlias = Literal["driver", "vbios"]

_SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_SHA384 = "{http://www.w3.org/2001/04/xmlenc#sha384}"
_DS = "{http://www.w3.org/2000/09/xmldsig#}"
_XML = "{http://www.w3.org/XML/1998/namespace}"
_C14N11 = "http://www.w3.org/2006/12/xml-c14n11"

_Shape: TypeAlias = "tuple[str, dict[str, str], list[_Shape]]"
# What SignedInfo must be; only the text of DigestValue is free.
_SIGNED_INFO: Final[_Shape] = (
    f"{_DS}SignedInfo",
    {},
    [
        (f"{_DS}CanonicalizationMethod", {"Algorithm": _C14N11}, []),
        (f"{_DS}SignatureMethod", {"Algorithm": "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"}, []),
        (
            f"{_DS}Reference",
            {"URI": ""},
            [
                (
                    f"{_DS}Transforms",
                    {},
                    [
                        (f"{_DS}Transform", {"Algorithm": f"{_DS[1:-1]}enveloped-signature"}, []),
                        (f"{_DS}Transform", {"Algorithm": _C14N11}, []),
                    ],
                ),
                (f"{_DS}DigestMethod", {"Algorithm": "http://www.w3.org/2001/04/xmldsig-more#sha384"}, []),
                (f"{_DS}DigestValue", {}, []),
            ],
        ),
    ],
)

_FORBIDDEN = (b"<!DOCTYPE", b"<!ENTITY", b"\x00")
_MAX_NAMESPACES = 16
"""Declarations in one manifest; NVIDIA writes six.  C14N takes the time of elements times namespaces in scope."""
_MAX_ATTRIBUTES = 1024
"""Of one element: the alternatives of one measurement and some more.  C14N sorts them in quadratic time."""
_VERSION = re.compile(r"[A-Za-z0-9._-]{1,32}\Z")
_VBIOS_VERSION = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}\Z")
_NUMBER = re.compile(r"[0-9]{1,3}\Z")
_GOLDEN = re.compile(r"[0-9a-fA-F]{96}\Z")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Rim:
    """A well-formed manifest; nothing says yet who signed it.  Equal to itself only.

    Attributes:
        kind: `vbios` where the version is five hexadecimal pairs, else `driver`.
        product: chip it is for, such as `GH100`.
        version: of the driver or the VBIOS.
        golden: index (from 0) to the values allowed for it, 48 bytes each; active measurements only, never empty.
        certificates: signer first, root last, as the document orders them.
        digest: SHA-384 that the signature states for the document.
        content: what that digest must be of: the document without its signature, canonical.
        signed_info: what the signature is over, canonical.
        signature: r and s, 48 bytes each, big-endian.
    """

    kind: RimKind
    product: str
    version: str
    golden: Mapping[int, tuple[bytes, ...]]
    certificates: tuple[x509.Certificate, ...]
    digest: bytes
    content: bytes
    signed_info: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, repr=False)
class GenuineRim:
    """A manifest that NVIDIA signed; made by `verify_rim` only.

    Attributes:
        rim: what it says.
        chain: signer first, pinned root last.
    """

    rim: Rim
    chain: tuple[x509.Certificate, ...]


def rim_url(rim_id: str) -> str:
    """Return where NVIDIA serves the manifest `rim_id`; the answer is JSON, which `parse_rim` takes as it comes."""
    return _RIM_SERVICE + rim_id


def parse_rim(data: bytes) -> Rim:
    """Parse a manifest: the XML, or the JSON answer of NVIDIA's service around it (`{"rim": base64}`).

    Raises:
        EvidenceMalformedError: not strict XML in the one profile above, no measurement in it, or more than 1 MiB.
    """
    if len(data) > MAX_RIM_BYTES:
        raise _malformed(f"manifest is {len(data)} bytes, want at most {MAX_RIM_BYTES}")
    if data.lstrip().startswith(b"{"):
        data = _unwrap(data)
    root = _parse_xml(data)
    signature = _only_signature(root)
    signed_info, signature_value, key_info = _children(signature, "SignedInfo", "SignatureValue", "KeyInfo")
    if _shape(signed_info) != _SIGNED_INFO:
        raise EvidenceMalformedError(
            AttestationCode.ALGORITHM_NOT_ALLOWED,
            "SignedInfo is not one reference to the whole document by enveloped-signature, C14N 1.1, SHA-384 and "
            "ECDSA P-384",
        )
    (x509_data,) = _children(key_info, "X509Data")
    if not 1 <= len(x509_data) <= MAX_CHAIN or any(child.tag != f"{_DS}X509Certificate" for child in x509_data):
        raise _malformed(f"KeyInfo holds {len(x509_data)} elements, want 1 to {MAX_CHAIN} certificates")
    meta, payload = (_only(root, name) for name in ("Meta", "Payload"))
    version, product = meta.get("colloquialVersion", ""), meta.get("product", "")
    if not _VERSION.match(version) or not _VERSION.match(product):
        raise _malformed("Meta has no colloquialVersion and product of letters, digits, dots and dashes")
    return Rim(
        kind="vbios" if _VBIOS_VERSION.match(version) else "driver",
        product=product,
        version=version,
        golden=_golden(payload),
        certificates=tuple(load_certificate(_base64(child, "X509Certificate")) for child in x509_data),
        digest=_base64(signed_info[2][2], "DigestValue"),
        content=_without_signature(root, signature),
        signed_info=_canonical(signed_info),
        signature=_base64(signature_value, "SignatureValue"),
    )


def verify_rim(data: bytes, *, anchors: TrustAnchors, now: datetime) -> GenuineRim:
    """Parse a manifest and verify that NVIDIA signed it.

    Does not look at revocation of its certificates (`ocsp`) nor at whom it is for (`appraise`).

    Args:
        data: the document.
        anchors: `nvidia_rim` holds the pinned roots.
        now: instant at which every certificate must be valid (aware, UTC); a manifest dies with its signer.

    Raises:
        EvidenceMalformedError: it is no manifest.
        EvidenceForgedError: digest or signature do not hold, the chain ends elsewhere or is not valid at `now`.
    """
    rim = parse_rim(data)
    signer = rim.certificates[0]
    if hashlib.sha384(rim.content).digest() != rim.digest:
        raise EvidenceForgedError(
            AttestationCode.COLLATERAL_SIGNATURE_INVALID,
            f"{rim.kind} manifest {rim.version} was changed after it was signed: its digest is not the signed one",
        )
    if not verify_ecdsa_p384(signer, rim.signature, rim.signed_info):
        raise EvidenceForgedError(
            AttestationCode.COLLATERAL_SIGNATURE_INVALID,
            f"the key of {signer.subject.rfc4514_string()} did not sign {rim.kind} manifest {rim.version}",
        )
    if rim.certificates[-1] not in anchors.nvidia_rim:
        raise EvidenceForgedError(
            AttestationCode.ROOT_NOT_PINNED,
            f"chain of {rim.kind} manifest {rim.version} ends at "
            f"{rim.certificates[-1].subject.rfc4514_string()} with SHA-256 {fingerprint(rim.certificates[-1])}, "
            "which is not the pinned root",
        )
    try:
        chain = build_chain(signer, rim.certificates[1:], roots=anchors.nvidia_rim, now=now)
    except EvidenceUndecidedError as error:  # a manifest brings its whole chain; nothing else could complete it
        raise EvidenceForgedError(AttestationCode.CHAIN_INVALID, str(error)) from error
    if chain != rim.certificates:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID,
            f"KeyInfo holds {len(rim.certificates)} certificates, of which {len(chain)} are the chain, in this order",
        )
    return GenuineRim(rim=rim, chain=chain)


def _unwrap(data: bytes) -> bytes:
    try:
        document = parse_json(data)
    except JsonError as error:
        raise _malformed(f"manifest: {error}") from error
    rim = document.get("rim") if isinstance(document, dict) else None
    if not isinstance(rim, str):
        raise _malformed("JSON holds no manifest: there is no member `rim` with a string")
    return decode_base64(rim, "rim")


def _parse_xml(data: bytes) -> etree._Element:
    if any(forbidden in data for forbidden in _FORBIDDEN):
        raise _malformed("manifest has a DOCTYPE, an entity or a NUL byte")
    if (declared := data.count(b"xmlns")) > _MAX_NAMESPACES:
        raise _malformed(f"manifest declares {declared} namespaces, want at most {_MAX_NAMESPACES}")
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, collect_ids=False
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError, LookupError) as error:
        raise _malformed("manifest is not well-formed XML in UTF-8") from error
    if root is None or root.tag != f"{_SWID}SoftwareIdentity" or root.getroottree().docinfo.internalDTD is not None:
        raise _malformed("document element is not the SoftwareIdentity of a SWID tag")
    if root.getprevious() is not None or root.getnext() is not None:
        raise _malformed("something stands beside the document element")
    for element in root.iter():
        if not isinstance(element.tag, str):  # a comment, a processing instruction or an entity reference
            raise _malformed("manifest has a comment, a processing instruction or an entity")
        if len(element.attrib) > _MAX_ATTRIBUTES:
            raise _malformed(f"an element has {len(element.attrib)} attributes, want at most {_MAX_ATTRIBUTES}")
        if any(str(name).startswith(_XML) for name in element.attrib):
            raise _malformed("manifest has an xml: attribute, which C14N 1.1 would treat apart")
    return root


def _only_signature(root: etree._Element) -> etree._Element:
    """Return the signature, of which there is exactly one, as a child of the document element.

    More than one, or one elsewhere, is signature wrapping: what is verified and what is read would differ.
    """
    signatures = list(root.iter(f"{_DS}Signature"))
    if len(signatures) != 1 or signatures[0].getparent() is not root:
        raise _malformed(f"manifest has {len(signatures)} signatures, want one, enveloped by the document element")
    return signatures[0]


def _only(root: etree._Element, name: str) -> etree._Element:
    found = list(root.iter(_SWID + name))
    if len(found) != 1 or found[0].getparent() is not root:
        raise _malformed(f"manifest has {len(found)} elements {name}, want one, below the document element")
    return found[0]


def _children(element: etree._Element, *names: str) -> list[etree._Element]:
    children = list(element)
    if [child.tag for child in children] != [_DS + name for name in names]:
        raise _malformed(f"{etree.QName(element).localname} does not hold {', '.join(names)}")
    return children


def _shape(element: etree._Element) -> _Shape:
    attributes = {str(name): str(value) for name, value in element.attrib.items()}
    return str(element.tag), attributes, [_shape(child) for child in element]


def _base64(element: etree._Element, name: str) -> bytes:
    try:
        if len(element):
            raise _malformed(f"{name} holds elements, want text")
        return base64.b64decode("".join((element.text or "").split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(f"{name} is not base64") from error


def _without_signature(root: etree._Element, signature: etree._Element) -> bytes:
    """Return the document as the enveloped-signature transform leaves it: the text behind the signature stays."""
    rest = copy.deepcopy(root)
    twin = rest[root.index(signature)]
    previous = twin.getprevious()
    if previous is None:
        rest.text = (rest.text or "") + (twin.tail or "")
    else:
        previous.tail = (previous.tail or "") + (twin.tail or "")
    rest.remove(twin)
    return _canonical(rest)


def _canonical(element: etree._Element) -> bytes:
    try:
        return etree.tostring(element, method="c14n")
    except etree.C14NError as error:  # of a namespace whose name is a relative URI (C14N 1.1, 1.3)
        raise _malformed("manifest has no canonical form") from error


def _golden(payload: etree._Element) -> dict[int, tuple[bytes, ...]]:
    golden: dict[int, tuple[bytes, ...]] = {}
    seen: set[int] = set()
    for resource in payload:
        index, active, alternatives = (resource.get(name, "") for name in ("index", "active", "alternatives"))
        if resource.tag != f"{_SWID}Resource" or resource.get("type") != "Measurement":
            raise _malformed("Payload holds something else than measurements")
        if not _NUMBER.match(index) or int(index) in seen or active not in {"True", "False"}:
            raise _malformed(f"measurement {index[:8]!r} stands twice, or has no index and activity")
        seen.add(int(index))
        hashes = {str(n): str(v) for n, v in resource.attrib.items() if str(n).startswith(_SHA384)}
        names = [f"{_SHA384}Hash{n}" for n in range(int(alternatives) if _NUMBER.match(alternatives) else 0)]
        if not names or hashes.keys() != set(names) or not all(map(_GOLDEN.match, hashes.values())):
            raise _malformed(
                f"measurement {index} does not hold the {alternatives[:8]} SHA-384 values that it announces"
            )
        if active == "True":
            golden[int(index)] = tuple(bytes.fromhex(hashes[name]) for name in names)
    if not golden:  # all() over nothing would accept every device
        raise _malformed("manifest holds no active measurement")
    return golden


def _malformed(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.COLLATERAL_MALFORMED, message)
