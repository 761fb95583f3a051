"""Trust vectors 300 to 399: signatures and keys, the weak points of Ed25519 among them (RFC 8032, section 5.1)."""

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from trust_case import Case
from trust_material import (
    BUNDLE_TYP,
    GOOD_BUNDLE,
    GOOD_MANIFEST,
    GROUP_ORDER,
    MALLORY,
    MANIFEST_KEY,
    ROOT,
    b64,
    bundle_claims,
    bundle_token,
    header,
    json_bytes,
    jwk,
    kid_of,
    manifest_token,
    scalar_of,
    token,
)

__all__ = ["keys", "signatures"]

# --- The curve, as RFC 8032 section 6 computes on it ----------------------------------------------------------------

_P: Final = (1 << 255) - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P
_Point = tuple[int, int]
_IDENTITY: Final = (0, 1)


def _add(a: _Point, b: _Point) -> _Point:
    product = _D * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + product, -1, _P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, _P)
    return x % _P, y % _P


def _times(scalar: int, point: _Point) -> _Point:
    result = _IDENTITY
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _recover_x(y: int) -> int:
    """Return the even x of the point with this y."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    if (x * x - square) % _P:
        raise ValueError("no point has this y")
    return _P - x if x & 1 else x


def _encode(point: _Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


_BASE_Y: Final = 4 * pow(5, -1, _P) % _P
_BASE: Final = (_recover_x(_BASE_Y), _BASE_Y)
_Y_OF_ORDER_8: Final = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_TORSION: Final = (_recover_x(_Y_OF_ORDER_8), _Y_OF_ORDER_8)
_SMALL_ORDER: Final = tuple(_encode(_times(n, _TORSION)) for n in range(8))

# --- Signatures -----------------------------------------------------------------------------------------------------

_SIGNING_INPUT, _, _LAST = GOOD_BUNDLE.decode().rpartition(".")
_SIGNATURE: Final = ROOT.sign(_SIGNING_INPUT.encode())
_S: Final = int.from_bytes(_SIGNATURE[32:], "little")
_NONCE: Final = int.from_bytes(hashlib.sha512(b"a nonce").digest(), "little") % GROUP_ORDER


def _with(signature: bytes) -> bytes:
    return f"{_SIGNING_INPUT}.{b64(signature)}".encode()


def _s(value: int) -> bytes:
    return _with(_SIGNATURE[:32] + value.to_bytes(32, "little"))


def _signed_with(r: bytes, nonce: int) -> bytes:
    """Sign as the root with a chosen R whose discrete logarithm, but for a part of small order, is `nonce`."""
    public = ROOT.public_key().public_bytes_raw()
    h = int.from_bytes(hashlib.sha512(r + public + _SIGNING_INPUT.encode()).digest(), "little")
    return _with(r + ((nonce + h * scalar_of(ROOT)) % GROUP_ORDER).to_bytes(32, "little"))


def _flipped(segment: int) -> bytes:
    """Return the good bundle with one bit in the middle of a segment flipped, base64url and JSON intact."""
    segments = [json_bytes(header(BUNDLE_TYP, ROOT)), json_bytes(bundle_claims()), _SIGNATURE]
    changed = bytearray(segments[segment])
    changed[len(changed) // 2] ^= 1
    segments[segment] = bytes(changed)
    return ".".join(map(b64, segments)).encode()


def signatures() -> Iterator[Case]:
    """Yield tokens of which the signature is wrong or of something else."""
    malformed, invalid = "signature_malformed", "bundle_signature_invalid"
    claims, protected = json_bytes(bundle_claims()), json_bytes(header(BUNDLE_TYP, ROOT))
    other = bundle_token(version=18).decode()
    for number, name, title, bundle, code in (
        (300, "short", "63 bytes", _with(_SIGNATURE[:-1]), malformed),
        (301, "long", "65 bytes", _with(_SIGNATURE + b"\0"), malformed),
        (302, "hex", "Hexadecimal text of the signature", _with(_SIGNATURE.hex().encode()), malformed),
        (303, "ed448-length", "114 bytes, as Ed448 has", _with(_SIGNATURE + bytes(50)), malformed),
        (304, "zeros", "All zeros", _with(bytes(64)), malformed),
        (310, "s-plus-order", "S and the group's order: the malleable twin", _s(_S + GROUP_ORDER), malformed),
        (311, "s-is-order", "S is the group's order", _s(GROUP_ORDER), malformed),
        (312, "s-of-ones", "S is 2^256 - 1", _s((1 << 256) - 1), malformed),
        (
            313,
            "r-identity",
            "R is the neutral point, and the equation holds",
            _signed_with(_encode(_IDENTITY), 0),
            malformed,
        ),
        (314, "r-order-8", "R has order 8", _signed_with(_encode(_TORSION), 0), malformed),
        (
            315,
            "r-second-spelling",
            "R is the neutral point, spelt y + p",
            _signed_with((1 + _P).to_bytes(32, "little"), 0),
            malformed,
        ),
        (
            316,
            "cofactored-only",
            "The equation holds after multiplication by 8 only",
            _signed_with(_encode(_add(_times(_NONCE, _BASE), _TORSION)), _NONCE),
            invalid,
        ),
        (320, "signature-bit-flipped", "A bit of the signature is flipped", _flipped(2), invalid),
        (321, "payload-bit-flipped", "A bit of the payload is flipped", _flipped(1), invalid),
        (322, "halves-swapped", "S stands before R", _with(_SIGNATURE[32:] + _SIGNATURE[:32]), invalid),
        (323, "of-another-bundle", "The signature of another bundle", _with_last(other), invalid),
        (324, "of-payload-alone", "Only the payload was signed", _with(ROOT.sign(claims)), invalid),
        (
            325,
            "of-decoded-segments",
            "The decoded segments were signed",
            _with(ROOT.sign(protected + b"." + claims)),
            invalid,
        ),
        (326, "of-digest", "The SHA-512 was signed, as Ed25519ph begins", _with(ROOT.sign(_sha512())), invalid),
        (327, "of-nothing", "The signature of an empty text", _with(ROOT.sign(b"")), invalid),
        (328, "by-another-key-under-our-kid", "Another key signed under the root's kid", _by_mallory(), invalid),
        (329, "by-a-non-root", "Another key signed under its own kid", bundle_token(MALLORY), invalid),
        (
            330,
            "by-a-manifest-key",
            "A manifest key signed the bundle that names it",
            bundle_token(MANIFEST_KEY),
            invalid,
        ),
        (331, "header-written-anew", "The same header in another order", _header_reordered(), invalid),
        (332, "payload-written-anew", "The same payload with other white space", _payload_spaced(), invalid),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="2", code=code, bundle=bundle)
    yield Case(
        name="333-root-rotated-without-cross-signature",
        title="The new root signed, and the verifier was given the old one",
        spec="5.2",
        code=invalid,
        bundle=bundle_token(MALLORY, version=18, manifest_keys={"keys": [jwk(ROOT), jwk(MANIFEST_KEY)]}),
    )
    for number, name, title, manifest, code in (
        (340, "manifest-by-unknown-key", "No key of the bundle", manifest_token(MALLORY), "manifest_key_not_allowed"),
        (341, "manifest-by-the-root", "The root is no manifest key", manifest_token(ROOT), "manifest_key_not_allowed"),
        (
            342,
            "manifest-under-foreign-kid",
            "Another key under the manifest key's kid",
            _manifest_by_mallory(),
            "manifest_signature_invalid",
        ),
        (343, "manifest-s-plus-order", "The malleable twin has another tag", _manifest_twin(), "signature_malformed"),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="4", kind="manifest", code=code, manifest=manifest)


def _with_last(other: str) -> bytes:
    return f"{_SIGNING_INPUT}.{other.rpartition('.')[2]}".encode()


def _sha512() -> bytes:
    return hashlib.sha512(_SIGNING_INPUT.encode()).digest()


def _by_mallory() -> bytes:
    return token(header(BUNDLE_TYP, ROOT), bundle_claims(), MALLORY)


def _header_reordered() -> bytes:
    reordered = b64(json_bytes(dict(reversed(header(BUNDLE_TYP, ROOT).items()))))
    return f"{reordered}.{GOOD_BUNDLE.decode().partition('.')[2]}".encode()


def _payload_spaced() -> bytes:
    return f"{_SIGNING_INPUT.partition('.')[0]}.{b64(json_bytes(bundle_claims()) + b' ')}.{_LAST}".encode()


def _manifest_by_mallory() -> bytes:
    signing_input = GOOD_MANIFEST.decode().rpartition(".")[0]
    return f"{signing_input}.{b64(MALLORY.sign(signing_input.encode()))}".encode()


def _manifest_twin() -> bytes:
    signing_input = GOOD_MANIFEST.decode().rpartition(".")[0]
    signature = MANIFEST_KEY.sign(signing_input.encode())
    s = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    return f"{signing_input}.{b64(signature[:32] + s.to_bytes(32, 'little'))}".encode()


# --- Keys -----------------------------------------------------------------------------------------------------------


def _under_weak_key(raw: bytes) -> tuple[bytes, bytes]:
    """Return a root and a bundle that anybody can sign for it, where the point is the neutral one."""
    root = json_bytes(jwk(raw))
    protected = {"alg": "EdDSA", "kid": kid_of(raw), "typ": BUNDLE_TYP}
    signing_input = f"{b64(json_bytes(protected))}.{b64(json_bytes(bundle_claims()))}"
    signature = _encode(_times(_NONCE, _BASE)) + _NONCE.to_bytes(32, "little")
    return root, f"{signing_input}.{b64(signature)}".encode()


def _root(**changes: Any) -> bytes:
    return json_bytes(jwk(ROOT, **changes))


def keys() -> Iterator[Case]:
    """Yield release roots and manifest keys that are none."""
    weak, refused = "key_weak", "key_not_allowed"
    for number, point in enumerate(_SMALL_ORDER, start=350):
        root, bundle = _under_weak_key(point)
        title = f"A root of small order: {number - 350} times a point of order 8"
        yield Case(name=f"{number}-root-of-small-order", title=title, spec="3", code=weak, root=root, bundle=bundle)
    for number, name, title, root, code in (
        (
            360,
            "root-second-spelling",
            "A root whose y is not below p",
            json_bytes(jwk((1 + _P).to_bytes(32, "little"))),
            weak,
        ),
        (361, "root-not-on-curve", "A root that is no point", json_bytes(jwk((2).to_bytes(32, "little"))), refused),
        (362, "root-short", "A root of 31 bytes", json_bytes(jwk(bytes(31))), refused),
        (363, "root-private", "A root with its private half", _root(d=b64(bytes(32))), "key_private"),
        (364, "root-x25519", "A key for key agreement", _root(crv="X25519"), refused),
        (365, "root-ed448", "A key of another curve", _root(crv="Ed448"), refused),
        (366, "root-ec", "A P-256 key", _root(kty="EC", crv="P-256"), refused),
        (367, "root-use-enc", "A key for encryption", _root(use="enc"), refused),
        (368, "root-alg-es256", "A key for another algorithm", _root(alg="ES256"), refused),
        (369, "root-key-ops-sign", "A key for signing, not verifying", _root(key_ops=["sign"]), refused),
        (370, "root-kid-other", "A root under the kid of another key", _root(kid=jwk(MALLORY)["kid"]), "kid_invalid"),
        (371, "root-unknown-member", "A member nobody knows", _root(x5u="https://mallory.example/"), "key_malformed"),
        (372, "root-is-jwks", "A key set in place of a key", json_bytes({"keys": [jwk(ROOT)]}), "key_malformed"),
        (373, "root-padded", "x with padding", _root(x=jwk(ROOT)["x"] + "="), "key_malformed"),
        (374, "root-member-twice", "x stands twice", _root()[:-1] + b',"x":"AA"}', "key_malformed"),
        (375, "root-is-text", "No key at all", b"root", "key_malformed"),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="3", code=code, root=root)
    good = jwk(MANIFEST_KEY)
    for number, name, title, value, code in (
        (380, "manifest-keys-empty", "No manifest key", [], "keys_empty"),
        (381, "manifest-keys-twice", "A manifest key stands twice", [good, good], "key_duplicate"),
        (382, "manifest-key-private", "A manifest key with its private half", [good | {"d": "AA"}], "key_private"),
        (383, "manifest-key-weak", "A manifest key that anybody can sign for", [jwk(_SMALL_ORDER[4])], weak),
        (384, "manifest-key-of-another-kid", "Same kid, another key", [jwk(MALLORY, kid=good["kid"])], "kid_invalid"),
        (385, "manifest-key-symmetric", "A symmetric key", [{"kty": "oct", "k": "AA"}], "key_private"),
        (386, "manifest-keys-no-array", "keys is no array", good, "key_malformed"),
        (387, "manifest-keys-65", "More keys than anybody needs", [good] * 65, "key_malformed"),
    ):
        bundle = bundle_token(manifest_keys={"keys": value})
        yield Case(name=f"{number}-{name}", title=title, spec="3", code=code, bundle=bundle)
