"""The answer of NVIDIA's Remote Attestation Service: a detached EAT (RFC 9711, 5), API versions 3 and 4.

    [["JWT", overall token], {"GPU-0": token of one device, "GPU-1": ...}]

The overall token states the verdict, the nonce, and the SHA-256 of the text of each device's token.  Tokens are compact
JWS (RFC 7515) with ES384; their keys live two days and stand in a JWK set, each under a certificate that a pinned
intermediate signed.  A signature is no verdict: NVIDIA signs negative tokens too, so every claim is looked at
(`appraise`).

Not checked: `jti` (a token may be shown again within its hour; the nonce is what makes it fresh), and whatever NVIDIA
saw: the evidence itself, its certificates, manifests and OCSP answers are not part of a token.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from msgspec import Meta

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError, EvidenceMalformedError, EvidenceUndecidedError
from tresor.attestation.nvidia.evidence_list import MAX_DEVICES, decode_base64
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.x509 import build_chain, fingerprint, load_certificate, validity
from tresor.encodings import JsonValue, base64url_decode, base64url_encode, parse_json
from tresor.errors import EncodingError, JsonError

__all__ = [
    "JWKS_URL",
    "MAX_EAT_BYTES",
    "CertificateClaims",
    "DetachedEat",
    "DeviceClaims",
    "GenuineToken",
    "NrasKey",
    "OverallClaims",
    "parse_eat",
    "parse_nras_jwks",
    "verify_device_token",
    "verify_overall_token",
]

JWKS_URL = "https://nras.attestation.nvidia.com/.well-known/jwks.json"
MAX_EAT_BYTES = 1 << 20
_MAX_JWKS_BYTES = 4 << 20
_MAX_TOKEN_BYTES = 64 * 1024
_ISSUER = "https://nras.attestation.nvidia.com"
_SUBJECT = "NVIDIA-PLATFORM-ATTESTATION"
_ALGORITHM = "ES384"
_HEADER_MEMBERS = frozenset({"alg", "kid", "typ"})
_PRIVATE_MEMBERS = frozenset({"d", "k"})
_COORDINATE_BYTES = 48
_DEVICE_NAME = re.compile(r"(GPU|SWITCH)-(0|[1-9][0-9]?)\Z")
_CLOCK_SKEW = timedelta(seconds=60)  # between NVIDIA's clock and ours, for `iat` and `nbf` only
_MAX_LIFE = timedelta(hours=24)  # NVIDIA's tokens live one hour

_Nonce = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Time = Annotated[int, Meta(ge=0, lt=1 << 37)]


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What every token states (RFC 7519, 4.1); times in Unix seconds."""

    iss: str
    iat: _Time
    exp: _Time
    nbf: _Time = 0

    @property
    def span(self) -> tuple[datetime, datetime]:
        """Instant from which the token is good, and until which."""
        return datetime.fromtimestamp(max(self.iat, self.nbf), UTC), datetime.fromtimestamp(self.exp, UTC)


class OverallClaims(_Claims, frozen=True, kw_only=True):
    """Claims of the overall token.

    Attributes:
        sub: `NVIDIA-PLATFORM-ATTESTATION`; a device's token has none.
        eat_nonce: the challenge that stands in the evidence, hexadecimal.
        overall: NVIDIA's verdict on all devices together.
        submods: name of a device to the digest of its token.
        version: of the claims: `2.0` from API version 3, `3.0` from API version 4.
    """

    sub: str
    eat_nonce: _Nonce
    overall: bool = msgspec.field(name="x-nvidia-overall-att-result")
    submods: Annotated[
        dict[str, tuple[Literal["DIGEST"], tuple[Literal["SHA-256", "SHA256"], _Digest]]],
        Meta(min_length=1, max_length=MAX_DEVICES),
    ]
    version: str = msgspec.field(name="x-nvidia-ver", default="")


class CertificateClaims(msgspec.Struct, frozen=True, kw_only=True):
    """What NVIDIA found of one certificate chain (claims version 3.0)."""

    status: str = msgspec.field(name="x-nvidia-cert-status")
    ocsp_status: str = msgspec.field(name="x-nvidia-cert-ocsp-status")


class DeviceClaims(_Claims, frozen=True, kw_only=True):
    """Claims of one device's token; a negative one may hold nothing but `error`.

    Attributes:
        eat_nonce: the challenge.
        measres: `success` where every measurement matched NVIDIA's manifests.
        secboot: secure boot; stated only where the measurements matched.
        dbgstat: `disabled` where no debug feature is on; likewise.
        hwmodel: chip, such as `GH100` or `GH100 A01 GSP BROM`.
        ueid: serial number of the device's leaf certificate, decimal.
        driver: driver version; None for an NVSwitch.
        vbios: VBIOS version of a GPU.
        error: what NVIDIA could not do with the evidence.
        warning: what NVIDIA wants known without refusing.
        refused: names of the claims that are false.
        chains: what NVIDIA found of the certificate chains of device and manifests, by claim; version 3.0 only.
    """

    eat_nonce: _Nonce | None = None
    measres: str | None = None
    secboot: bool | None = None
    dbgstat: str | None = None
    hwmodel: str | None = None
    ueid: str | None = None
    driver: str | None = msgspec.field(name="x-nvidia-gpu-driver-version", default=None)
    vbios: str | None = msgspec.field(name="x-nvidia-gpu-vbios-version", default=None)
    error: dict[str, str | int | None] | None = msgspec.field(name="x-nvidia-error-details", default=None)
    warning: str | None = msgspec.field(name="x-nvidia-attestation-warning", default=None)
    refused: tuple[str, ...] = ()
    chains: dict[str, CertificateClaims] = {}


@dataclass(frozen=True, slots=True, repr=False)
class DetachedEat:
    """A well-formed detached EAT; nothing says yet who signed its tokens.

    Attributes:
        overall: compact JWS.
        devices: name (`GPU-0`, `SWITCH-0`) to compact JWS, in the order of their names.
    """

    overall: str
    devices: Mapping[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class NrasKey:
    """A key of NVIDIA's set; what vouches for it is verified with the token, at the token's instant.

    Attributes:
        x: coordinate, base64url; likewise `y`.
        x5c: DER certificates, the key's own first.
    """

    x: str
    y: str
    x5c: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, repr=False)
class GenuineToken:
    """The overall token, signed by NVIDIA; made by `verify_overall_token` only.

    Attributes:
        claims: what it says.
        valid_from: instant from which the token and the certificates of its key are all valid.
        valid_until: likewise, the end.
    """

    claims: OverallClaims
    valid_from: datetime
    valid_until: datetime


_C = TypeVar("_C", bound=_Claims)


def parse_eat(data: bytes) -> DetachedEat:
    """Parse the JSON of a detached EAT.

    Raises:
        EvidenceMalformedError: not strict JSON, another form, no device's token, more than 64, or more than 1 MiB.
    """
    if len(data) > MAX_EAT_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE, f"detached EAT is {len(data)} bytes, want at most {MAX_EAT_BYTES}"
        )
    try:
        kind_and_token, devices = msgspec.convert(parse_json(data), tuple[tuple[Literal["JWT"], str], dict[str, str]])
    except (JsonError, msgspec.ValidationError) as error:
        raise _malformed(f'detached EAT is not [["JWT", token], {{name: token}}]: {error}') from error
    if not 1 <= len(devices) <= MAX_DEVICES or not all(map(_DEVICE_NAME.match, devices)):
        raise _malformed(f"detached EAT has tokens of {len(devices)} devices, want 1 to {MAX_DEVICES} named GPU-<n>")
    ordered = sorted(devices, key=lambda name: (name.rpartition("-")[0], int(name.rpartition("-")[2])))
    return DetachedEat(overall=kind_and_token[1], devices={name: devices[name] for name in ordered})


def parse_nras_jwks(documents: Sequence[bytes]) -> dict[str, NrasKey]:
    """Parse recorded key sets into one, by kid.

    Raises:
        EvidenceMalformedError: not a JWK set, one kid for two keys, private key material, or a key without `x5c`.
    """
    keys: dict[str, NrasKey] = {}
    for document in documents:
        if len(document) > _MAX_JWKS_BYTES:
            raise _bad_keys(f"{len(document)} bytes, want at most {_MAX_JWKS_BYTES}")
        try:
            members = parse_json(document)
        except JsonError as error:
            raise _bad_keys(str(error)) from error
        entries = members.get("keys") if isinstance(members, dict) else None
        if not isinstance(entries, list):
            raise _bad_keys("no array `keys` (RFC 7517, 5)")
        for position, entry in enumerate(entries):
            kid, key = _parse_key(entry, f"keys[{position}]")
            if keys.setdefault(kid, key) != key:
                raise _bad_keys(f"kid {kid[:64]!r} stands for two keys")
    return keys


def verify_overall_token(
    token: str, keys: Mapping[str, NrasKey], *, anchors: TrustAnchors, now: datetime
) -> GenuineToken:
    """Verify that NVIDIA's service signed the overall token, for now.

    Does not look at the verdict, the nonce, nor the tokens of devices.

    Args:
        token: compact JWS.
        keys: from `parse_nras_jwks`; empty where no key set is at hand.
        anchors: `nras_intermediates` holds the pinned certificates.
        now: instant at which token and certificates must be valid (aware, UTC).

    Raises:
        EvidenceMalformedError: not a compact JWS with ES384, or not an overall token.
        EvidenceForgedError: no key of NVIDIA's signed it, another issuer, or another time.
        EvidenceUndecidedError: no key set is at hand.
    """
    claims, chain = _verify_token(token, OverallClaims, keys, anchors=anchors, now=now)
    if claims.sub != _SUBJECT:
        raise _invalid(f"subject is {claims.sub[:64]!r}, want {_SUBJECT!r}")
    valid_from, valid_until = validity(chain)
    begins, ends = claims.span
    return GenuineToken(claims=claims, valid_from=max(valid_from, begins), valid_until=min(valid_until, ends))


def verify_device_token(
    name: str,
    eat: DetachedEat,
    overall: GenuineToken,
    keys: Mapping[str, NrasKey],
    *,
    anchors: TrustAnchors,
    now: datetime,
) -> DeviceClaims:
    """Verify that the token of device `name` is the one that the overall token means, and NVIDIA's.

    Raises:
        EvidenceMalformedError: not a compact JWS with ES384, or claims of another form.
        EvidenceForgedError: the overall token knows another digest or no such device, no key of NVIDIA's signed it,
            another issuer, another nonce, or another time.
    """
    token = eat.devices.get(name)
    stated = overall.claims.submods.get(name)
    digest = None if token is None else hashlib.sha256(token.encode()).hexdigest()
    if token is None or stated is None or stated[1][1] != digest:
        raise EvidenceForgedError(
            AttestationCode.TOKEN_SUBMODULE_MISMATCH,
            f"the overall token states the digest {stated and stated[1][1]} for {name}, its token has {digest}",
        )
    claims, _ = _verify_token(token, DeviceClaims, keys, anchors=anchors, now=now)
    if claims.eat_nonce not in (None, overall.claims.eat_nonce):
        raise EvidenceForgedError(
            AttestationCode.NONCE_MISMATCH,
            f"{name} has the nonce {claims.eat_nonce}, the overall token {overall.claims.eat_nonce}",
        )
    return claims


def _parse_key(entry: JsonValue, where: str) -> tuple[str, NrasKey]:
    if not isinstance(entry, dict) or _PRIVATE_MEMBERS & entry.keys():
        raise _bad_keys(f"{where} is no object, or holds private key material")
    kid, x, y, x5c = (entry.get(name) for name in ("kid", "x", "y", "x5c"))
    if (entry.get("kty"), entry.get("crv")) != ("EC", "P-384") or not isinstance(x5c, list) or not x5c:
        raise _bad_keys(f"{where} is no P-384 key with certificates")
    if not isinstance(kid, str) or not isinstance(x, str) or not isinstance(y, str):
        raise _bad_keys(f"{where} has no kid, x and y")
    try:
        certificates = tuple(decode_base64(str(item), f"{where}.x5c") for item in x5c)
    except EvidenceMalformedError as error:
        raise _bad_keys(str(error)) from error
    return kid, NrasKey(x=x, y=y, x5c=certificates)


def _verify_token(
    token: str, claims_type: type[_C], keys: Mapping[str, NrasKey], *, anchors: TrustAnchors, now: datetime
) -> tuple[_C, tuple[x509.Certificate, ...]]:
    kid = _parse_header(token)
    if not keys:
        raise EvidenceUndecidedError(
            AttestationCode.COLLATERAL_MISSING, f"no key set of NVIDIA's service is at hand ({JWKS_URL})"
        )
    key = keys.get(kid)
    if key is None:
        raise _invalid(f"kid {kid[:64]!r} is not among the {len(keys)} keys of the set")
    chain = _verify_key(key, anchors=anchors, now=now)
    try:
        public = ECKey.import_key({"kty": "EC", "crv": "P-384", "x": key.x, "y": key.y})
        payload = jws.deserialize_compact(token, public, algorithms=[_ALGORITHM]).payload
    except (JoseError, ValueError) as error:
        raise EvidenceForgedError(
            AttestationCode.SIGNATURE_INVALID, f"the key {kid[:64]!r} did not sign this token"
        ) from error
    claims = _parse_claims(payload, claims_type)
    if claims.iss != _ISSUER:
        raise EvidenceForgedError(
            AttestationCode.TOKEN_ISSUER_MISMATCH, f"issuer is {claims.iss[:64]!r}, want {_ISSUER!r}"
        )
    begins, ends = claims.span
    if now < begins - _CLOCK_SKEW or ends - begins > _MAX_LIFE:
        raise EvidenceForgedError(
            AttestationCode.TIME_IMPLAUSIBLE,
            f"token is good from {begins.isoformat()} to {ends.isoformat()}, asked for {now.isoformat()}",
        )
    if now >= ends:
        raise EvidenceForgedError(
            AttestationCode.TOKEN_EXPIRED, f"token expired at {ends.isoformat()}, asked for {now.isoformat()}"
        )
    return claims, chain


def _parse_header(token: str) -> str:
    """Return the kid of a compact JWS whose header says ES384 and names no key of its own."""
    segments = token.split(".")
    if len(token) > _MAX_TOKEN_BYTES or len(segments) != 3:  # noqa: PLR2004 - RFC 7515, 7.1
        raise _malformed(f"token has {len(token)} characters in {len(segments)} segments, want three segments")
    try:
        header, _, _ = (base64url_decode(segment) for segment in segments)
        members = parse_json(header)
    except (EncodingError, JsonError) as error:
        raise _malformed(f"token: {error}") from error
    if not isinstance(members, dict) or not isinstance(kid := members.get("kid"), str):
        raise _malformed("token header is no object with a kid")
    if members.get("alg") != _ALGORITHM:
        raise EvidenceMalformedError(
            AttestationCode.ALGORITHM_NOT_ALLOWED, f"alg is {str(members.get('alg'))[:16]!r}, want {_ALGORITHM!r}"
        )
    if strange := sorted(members.keys() - _HEADER_MEMBERS):
        raise _invalid(f"token header has {', '.join(strange)[:64]!r}, want alg, kid and typ only")
    return kid


def _verify_key(key: NrasKey, *, anchors: TrustAnchors, now: datetime) -> tuple[x509.Certificate, ...]:
    """Verify that a pinned intermediate vouches for the key, and return the chain."""
    certificates = [load_certificate(der) for der in key.x5c]
    if _coordinates(certificates[0]) != (key.x, key.y):
        raise _invalid("the key of the set is not the one its certificate is for")
    pinned = [c for c in certificates[1:] if fingerprint(c) in anchors.nras_intermediates]
    if not pinned:
        raise EvidenceForgedError(
            AttestationCode.ROOT_NOT_PINNED,
            f"certificate {certificates[0].subject.rfc4514_string()} does not come with a pinned intermediate",
        )
    return build_chain(certificates[0], pinned, roots=pinned, now=now)


def _coordinates(certificate: x509.Certificate) -> tuple[str, str] | None:
    """Return x and y of a P-384 key as a JWK states them (RFC 7518, 6.2.1); None for any other key."""
    key = certificate.public_key()
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        return None
    numbers = key.public_numbers()
    x, y = (base64url_encode(n.to_bytes(_COORDINATE_BYTES, "big")) for n in (numbers.x, numbers.y))
    return x, y


def _parse_claims(payload: bytes, claims_type: type[_C]) -> _C:
    try:
        members = parse_json(payload)
        claims = msgspec.convert(members, claims_type)
        if isinstance(claims, DeviceClaims) and isinstance(members, dict):
            vendor = {name: value for name, value in members.items() if name.startswith("x-nvidia-")}
            return msgspec.structs.replace(
                claims,
                refused=tuple(sorted(name for name, value in vendor.items() if value is False)),
                chains={
                    name: msgspec.convert(value, CertificateClaims)
                    for name, value in sorted(vendor.items())
                    if name.endswith("-cert-chain")
                },
            )
    except (JsonError, msgspec.ValidationError) as error:
        raise _invalid(f"claims: {error}") from error
    return claims


def _malformed(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, message)


def _invalid(message: str) -> EvidenceForgedError:
    return EvidenceForgedError(AttestationCode.TOKEN_INVALID, message)


def _bad_keys(message: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.COLLATERAL_MALFORMED, f"key set: {message}")
