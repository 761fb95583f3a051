"""Trust vectors 001 to 099 and 400 to 999: good ones, content, time and version, roots, allow-lists."""

from collections.abc import Iterator
from typing import Any

from trust_case import Case
from trust_material import (
    AMD_ROOT,
    BUNDLE_TYP,
    GOOD_BUNDLE,
    HW_ROOT,
    MALLORY,
    MANIFEST_KEY,
    MANIFEST_TYP,
    MEASUREMENT,
    ROOT,
    TAG,
    bundle_claims,
    bundle_token,
    digest,
    header,
    json_bytes,
    jwk,
    manifest_claims,
    manifest_token,
    public_pem,
    self_signed,
    token,
)

__all__ = ["bundle_content", "good", "in_force", "manifest_content", "manifests", "measurements", "roots"]

_Refused = tuple[int, str, str, dict[str, Any], str]
"""Number, name, title, arguments, code."""
_REGISTERS = {"MRTD": "11" * 48, "RTMR0": "22" * 48, "RTMR3": "33" * 48}
_AZURE = {"MEASUREMENT": MEASUREMENT, "PCR4": "44" * 32, "PCR11": "55" * 32}
_SIMULATED = bundle_token(simulated=True, hw_roots={"simulated": HW_ROOT})


def good() -> Iterator[Case]:
    """Yield what is accepted."""
    cases: tuple[tuple[int, str, str, dict[str, Any]], ...] = (
        (1, "bundle", "A bundle", {}),
        (2, "root-in-pem", "The root as SubjectPublicKeyInfo in PEM", {"root": public_pem(ROOT)}),
        (3, "root-without-optional-members", "The root without kid, alg and use", {"root": _bare_root()}),
        (4, "first-second", "In the second in which it begins", {"at": "2026-03-01T00:00:00Z"}),
        (5, "clock-behind", "A clock that is 60 seconds behind", {"at": "2026-02-28T23:59:00Z"}),
        (6, "last-second", "In the last second", {"at": "2026-03-30T23:59:59Z"}),
        (7, "same-version-again", "The bundle that was accepted before", {"options": _seen(17, digest(GOOD_BUNDLE))}),
        (8, "newer-than-remembered", "A version above the remembered one", {"options": _seen(16, digest(b"other"))}),
        (9, "workload-known", "The workload that was asked for", {"options": {"workload": "tresor-router"}}),
        (10, "simulated", "A simulated one, which was asked for", _of(_SIMULATED, options={"allow_simulated": True})),
        (11, "empty-lists", "Empty allow-lists are in force, and allow nothing", _of(_empty_lists())),
        (12, "fraction-of-a-second", "Times with a fraction", _of(bundle_token(issued_at="2026-03-01T00:00:00.25Z"))),
        (13, "two-roots-of-one-vendor", "Two roots in one PEM text", _of(bundle_token(hw_roots={"amd": AMD_ROOT * 2}))),
        (14, "measurement", "A measurement that is allowed", {"measured": {"MEASUREMENT": MEASUREMENT, "PCR4": "00"}}),
        (15, "registers", "Registers that are allowed together", _of(_allowing(_REGISTERS), measured=_REGISTERS)),
        (16, "vtpm-registers", "Firmware and PCRs", _of(_allowing("66" * 48, _AZURE), measured=_AZURE)),
        (
            17,
            "key-alg-ed25519",
            "A manifest key with the name of RFC 9864",
            _of(_keys(jwk(MANIFEST_KEY, alg="Ed25519"))),
        ),
        (30, "manifest", "A manifest", {"kind": "manifest"}),
        (31, "manifest-unknown-claim", "A claim nobody knows is ignored", _allowed_manifest(later=[1])),
        (32, "manifest-no-metadata", "No build metadata", _allowed_manifest(build_metadata={})),
        (33, "manifest-simulated", "Under a simulated bundle that was asked for", _simulated_manifest()),
    )
    for number, name, title, arguments in cases:
        yield Case(name=f"{number:03}-{name}", title=title, spec="5.2", code=None, **arguments)


def _of(bundle: bytes, **arguments: Any) -> dict[str, Any]:
    return {"bundle": bundle, **arguments}


def _seen(version: int, known_digest: str | None = None) -> dict[str, Any]:
    return {"min_version": version} | ({} if known_digest is None else {"known_digest": known_digest})


def _bare_root() -> bytes:
    return json_bytes(jwk(ROOT, kid=..., alg=..., use=...))


def _empty_lists() -> bytes:
    return bundle_token(allowed_hw_measurements=[], allowed_workload_identity_tags=[], min_tcb={})


def _allowing(*measurements: object) -> bytes:
    return bundle_token(allowed_hw_measurements=list(measurements))


def _keys(*entries: object) -> bytes:
    return bundle_token(manifest_keys={"keys": list(entries)})


def _allowed_manifest(**changes: Any) -> dict[str, Any]:
    manifest = manifest_token(**changes)
    bundle = bundle_token(allowed_workload_identity_tags=[digest(manifest)])
    return {"kind": "manifest", "manifest": manifest, "bundle": bundle}


def _simulated_manifest() -> dict[str, Any]:
    return {"kind": "manifest", "bundle": _SIMULATED, "options": {"allow_simulated": True}}


def bundle_content() -> Iterator[Case]:
    """Yield content that the root signed and that is no bundle."""
    malformed, not_json = "bundle_malformed", "json_malformed"
    floor = {"bl": 4, "tee": 0, "snp": 24, "ucode": 219}
    of = bundle_token
    for number, name, title, bundle, code in (
        (400, "schema-missing", "schema is missing", of(schema=...), "schema_unknown"),
        (401, "schema-of-tomorrow", "The next schema", of(schema="tresor.trust-bundle/v2"), "schema_unknown"),
        (402, "schema-of-manifest", "A manifest's schema", of(schema="workload-identity/v1"), "schema_unknown"),
        (403, "schema-list", "schema is a list", of(schema=["tresor.trust-bundle/v1"]), "schema_unknown"),
        (404, "array", "The payload is an array", _payload(b"[]"), "schema_unknown"),
        (405, "payload-no-json", "The payload is no JSON", _payload(b"workload = 1"), not_json),
        (406, "payload-empty", "The payload is empty", _payload(b""), not_json),
        (407, "version-twice", "version stands twice", _behind(b',"version":99}'), not_json),
        (408, "deep-duplicate", "A duplicate below", _payload(_spliced(b'"bl":4', b'"bl":4,"bl":0')), not_json),
        (409, "nan", "NaN", _payload(_spliced(b'"version":17', b'"version":NaN')), not_json),
        (410, "not-utf-8", "Latin-1", _payload(_spliced(b"tresor-router", b"tr\xe9sor")), not_json),
        (411, "surrogate", "A lone surrogate", _payload(_spliced(b"tresor-router", b"\\ud800")), not_json),
        (412, "nested", "Nested without end", _payload(b'{"x":' + b"[" * 20_000), not_json),
        (
            413,
            "byte-order-mark",
            "A byte order mark",
            _payload(b"\xef\xbb\xbf" + json_bytes(bundle_claims())),
            not_json,
        ),
        (420, "unknown-member", "A restriction nobody knows", of(forbidden_regions=["moon"]), malformed),
        (
            421,
            "unknown-member-in-key",
            "A member nobody knows, in a key",
            _keys(jwk(MANIFEST_KEY) | {"exp": 1}),
            "key_malformed",
        ),
        *(
            (430 + i, f"{claim.replace('_', '-')}-missing", f"{claim} is missing", of(**{claim: ...}), code)
            for i, (claim, code) in enumerate(_REQUIRED.items())
        ),
        (440, "version-zero", "Version 0", of(version=0), malformed),
        (441, "version-negative", "Version -1", of(version=-1), malformed),
        (442, "version-float", "Version 17.0", of(version=17.0), malformed),
        (443, "version-true", "Version true", of(version=True), malformed),
        (444, "version-string", "Version as a string", of(version="17"), malformed),
        (445, "version-huge", "Version 2^53", of(version=1 << 53), malformed),
        (446, "version-null", "Version null", of(version=None), malformed),
        (450, "workload-upper-case", "A workload in capital letters", of(workload="Tresor"), malformed),
        (451, "workload-empty", "An empty workload", of(workload=""), malformed),
        (452, "workload-line-end", "A line end behind the workload", of(workload="tresor-router\n"), malformed),
        (460, "issued-at-number", "Times as numbers", of(issued_at=1_772_323_200), malformed),
        (461, "issued-at-offset", "A time with an offset", of(issued_at="2026-03-01T01:00:00+01:00"), malformed),
        (462, "issued-at-local", "A time without zone", of(issued_at="2026-03-01T00:00:00"), malformed),
        (463, "issued-at-no-day", "The 30th of February", of(issued_at="2026-02-30T00:00:00Z"), malformed),
        (
            464,
            "valid-until-before-issue",
            "It ends before it begins",
            of(valid_until="2026-02-28T00:00:00Z"),
            malformed,
        ),
        (465, "valid-until-at-issue", "It ends as it begins", of(valid_until="2026-03-01T00:00:00Z"), malformed),
        (466, "valid-for-ever", "Valid for more than a year", of(valid_until="2027-03-03T00:00:00Z"), malformed),
        (470, "measurement-short", "A digit too few", _allowing(MEASUREMENT[:-1]), malformed),
        (471, "measurement-upper-case", "Capital digits", _allowing(MEASUREMENT.upper()), malformed),
        (472, "measurement-prefixed", "With sha384: in front", _allowing("sha384:" + MEASUREMENT[7:]), malformed),
        (473, "measurement-number", "A number", _allowing(7), malformed),
        (474, "measurement-empty", "An empty string", _allowing(""), malformed),
        (475, "registers-empty", "An entry without registers, which everything would fit", _allowing({}), malformed),
        (
            476,
            "registers-without-launch",
            "PCRs that no hardware vouches for",
            _allowing({"PCR4": "44" * 32}),
            malformed,
        ),
        (
            477,
            "registers-two-launches",
            "Two TEEs in one entry",
            _allowing(_REGISTERS | {"MEASUREMENT": MEASUREMENT}),
            malformed,
        ),
        (
            478,
            "register-unknown",
            "A register nobody knows",
            _allowing({"MRTD": "11" * 48, "RTMR4": "22" * 48}),
            malformed,
        ),
        (
            479,
            "register-of-other-length",
            "A PCR of the SHA-1 bank",
            _allowing(_AZURE | {"PCR4": "44" * 20}),
            malformed,
        ),
        (480, "tag-without-prefix", "A tag without sha256:", of(allowed_workload_identity_tags=[TAG[7:]]), malformed),
        (481, "tag-truncated", "A truncated tag", of(allowed_workload_identity_tags=[TAG[:-2]]), malformed),
        (482, "tags-string", "One tag in place of a list", of(allowed_workload_identity_tags=TAG), malformed),
        (490, "tcb-component-missing", "A component without floor", of(min_tcb={"Milan": {"bl": 4}}), malformed),
        (
            491,
            "tcb-component-unknown",
            "A component nobody knows",
            of(min_tcb={"Milan": floor | {"fmc": 0}}),
            malformed,
        ),
        (492, "tcb-product-unknown", "A product nobody knows", of(min_tcb={"Rome": floor}), malformed),
        (493, "tcb-product-empty", "A product without floor", of(min_tcb={"Milan": {}}), malformed),
        (494, "tcb-negative", "A negative floor", of(min_tcb={"Milan": floor | {"snp": -1}}), malformed),
        (
            495,
            "tcb-as-one-number",
            "The 64-bit number in place of its parts",
            of(min_tcb={"Milan": 0xDB18000000000004}),
            malformed,
        ),
        (496, "tcb-float", "A floor of 24.0", of(min_tcb={"Milan": floor | {"snp": 24.0}}), malformed),
        (499, "tcb-above-byte", "A floor of 256", of(min_tcb={"Milan": floor | {"snp": 256}}), malformed),
        (497, "simulated-null", "simulated is null", of(simulated=None), malformed),
        (498, "simulated-one", "simulated is 1", of(simulated=1), malformed),
    ):
        yield Case(name=f"{number}-{name}", title=title, spec="5.1", code=code, bundle=bundle)


_REQUIRED = {
    "workload": "bundle_malformed",
    "version": "bundle_malformed",
    "issued_at": "bundle_malformed",
    "valid_until": "bundle_malformed",
    "allowed_hw_measurements": "bundle_malformed",
    "allowed_workload_identity_tags": "bundle_malformed",
    "min_tcb": "bundle_malformed",
    "hw_roots": "bundle_malformed",
    "manifest_keys": "key_malformed",
}


def _payload(raw: bytes) -> bytes:
    return token(header(BUNDLE_TYP, ROOT), raw, ROOT)


def _behind(tail: bytes) -> bytes:
    return _payload(json_bytes(bundle_claims())[:-1] + tail)


def _spliced(old: bytes, new: bytes) -> bytes:
    payload = json_bytes(bundle_claims())
    if old not in payload:
        raise ValueError("nothing to splice")
    return payload.replace(old, new, 1)


def manifest_content() -> Iterator[Case]:
    """Yield content that a manifest key signed and that is no manifest."""
    malformed = "manifest_malformed"
    cases: tuple[_Refused, ...] = (
        (500, "manifest-schema-missing", "schema is missing", {"schema": ...}, "schema_unknown"),
        (501, "manifest-schema-other", "The next schema", {"schema": "workload-identity/v2"}, "schema_unknown"),
        (502, "manifest-workload-missing", "workload is missing", {"workload": ...}, malformed),
        (503, "manifest-version-missing", "version is missing", {"version": ...}, malformed),
        (504, "manifest-image-digest-missing", "image_digest is missing", {"image_digest": ...}, malformed),
        (505, "manifest-binary-digest-missing", "binary_digest is missing", {"binary_digest": ...}, malformed),
        (506, "manifest-metadata-missing", "build_metadata is missing", {"build_metadata": ...}, malformed),
        (507, "manifest-digest-without-name", "A digest of unnamed kind", {"image_digest": "0" * 64}, malformed),
        (508, "manifest-digest-sha512", "A digest of another kind", {"image_digest": "sha512:" + "0" * 128}, malformed),
        (509, "manifest-digest-null", "A digest that is null", {"binary_digest": None}, malformed),
        (510, "manifest-version-number", "A version that is a number", {"version": 2}, malformed),
        (511, "manifest-metadata-list", "Metadata as a list", {"build_metadata": ["commit"]}, malformed),
        (512, "manifest-metadata-number", "A number in the metadata", {"build_metadata": {"n": 1}}, malformed),
    )
    for number, name, title, changes, code in cases:
        manifest = manifest_token(**changes)
        yield Case(name=f"{number}-{name}", title=title, spec="4", kind="manifest", code=code, manifest=manifest)
    twice = json_bytes(manifest_claims())[:-1] + b',"workload":"other"}'
    yield Case(
        name="513-manifest-workload-twice",
        title="workload stands twice",
        spec="4",
        kind="manifest",
        code="json_malformed",
        manifest=token(header(MANIFEST_TYP, MANIFEST_KEY), twice, MANIFEST_KEY),
    )


def in_force() -> Iterator[Case]:
    """Yield genuine bundles that are not in force."""
    cases: tuple[_Refused, ...] = (
        (600, "expired", "In the second in which it ends", {"at": "2026-03-31T00:00:00Z"}, "bundle_expired"),
        (601, "expired-long-ago", "A year later", {"at": "2027-03-31T00:00:00Z"}, "bundle_expired"),
        (602, "not-yet-valid", "More than a minute early", {"at": "2026-02-28T23:58:59Z"}, "bundle_not_yet_valid"),
        (610, "rolled-back", "A version below the remembered one", {"options": _seen(18)}, "bundle_rolled_back"),
        (
            611,
            "replaced",
            "The same version with other content",
            {"options": _seen(17, digest(b"other"))},
            "bundle_replaced",
        ),
        (
            612,
            "rolled-back-and-expired",
            "Both",
            {"options": _seen(18), "at": "2026-05-01T00:00:00Z"},
            "bundle_expired",
        ),
        (
            620,
            "workload-other",
            "Of another service",
            {"options": {"workload": "tresor-audio"}},
            "bundle_workload_mismatch",
        ),
        (
            621,
            "workload-look-alike",
            "A name that begins alike",
            {"options": {"workload": "tresor-router-2"}},
            "bundle_workload_mismatch",
        ),
        (
            630,
            "simulated-unasked",
            "Simulated, which nobody asked for",
            {"bundle": _SIMULATED},
            "simulated_not_allowed",
        ),
        (
            631,
            "manifest-under-expired-bundle",
            "A manifest when its bundle has expired",
            {"kind": "manifest", "at": "2026-04-01T00:00:00Z"},
            "bundle_expired",
        ),
        (
            632,
            "manifest-under-forged-bundle",
            "A manifest under somebody's bundle",
            {"kind": "manifest", "bundle": bundle_token(MALLORY)},
            "bundle_signature_invalid",
        ),
    )
    for number, name, title, arguments, code in cases:
        yield Case(name=f"{number}-{name}", title=title, spec="5.2", code=code, **arguments)


def roots() -> Iterator[Case]:
    """Yield hardware roots that a bundle may not have."""
    fake = self_signed("ARK-Milan", MALLORY)
    opt_in = {"allow_simulated": True}
    malformed, mixed, refused = "bundle_malformed", "roots_mixed", "root_not_allowed"
    for number, name, title, hw_roots, simulated, code in (
        (700, "roots-empty", "No root at all", {}, False, malformed),
        (701, "root-vendor-unknown", "A vendor nobody knows", {"acme": fake}, False, malformed),
        (702, "root-no-pem", "No PEM text", {"amd": "ARK-Milan"}, False, malformed),
        (703, "root-broken", "PEM text of no certificate", {"amd": fake.replace("M", "A")}, False, malformed),
        (704, "roots-seventeen", "More roots than any vendor has", {"amd": fake * 17}, False, malformed),
        (705, "root-list", "A list in place of PEM text", {"amd": [fake]}, False, malformed),
        (
            710,
            "simulated-root-unsaid",
            "A simulated root, and the bundle does not say so",
            {"simulated": HW_ROOT},
            False,
            mixed,
        ),
        (
            711,
            "simulated-beside-vendor",
            "A simulated root beside a vendor's",
            {"simulated": HW_ROOT, "amd": AMD_ROOT},
            True,
            mixed,
        ),
        (712, "simulated-with-vendor-alone", "simulated, and a vendor's root alone", {"amd": AMD_ROOT}, True, mixed),
        (720, "root-of-the-right-name", "A self-made root of the vendor's name", {"amd": fake}, False, refused),
        (721, "simulated-root-as-vendor", "A simulated root under a vendor's name", {"amd": HW_ROOT}, False, refused),
        (
            722,
            "root-of-another-vendor",
            "A vendor's root under another vendor's name",
            {"intel": AMD_ROOT},
            False,
            refused,
        ),
        (723, "root-added", "The vendor's root and one more", {"amd": AMD_ROOT + fake}, False, refused),
        (724, "vendor-root-as-simulated", "A vendor's root as a simulated one", {"simulated": AMD_ROOT}, True, refused),
    ):
        bundle = bundle_token(hw_roots=hw_roots, **({"simulated": True} if simulated else {}))
        options = opt_in if simulated else None
        yield Case(name=f"{number}-{name}", title=title, spec="5.3", code=code, bundle=bundle, options=options)


def manifests() -> Iterator[Case]:
    """Yield genuine manifests that the bundle does not allow."""
    other = manifest_token(version="0.1.0")
    elsewhere = manifest_token(workload="tresor-audio")
    look_alike = manifest_token(workload="tresor-router-2")
    cases: tuple[_Refused, ...] = (
        (800, "tag-not-allowed", "A former release", {"manifest": other}, "tag_not_allowed"),
        (
            801,
            "tags-empty",
            "A list without tags",
            {"bundle": bundle_token(allowed_workload_identity_tags=[])},
            "tags_empty",
        ),
        (
            802,
            "manifest-of-another-workload",
            "Another service, its tag allowed",
            _with_tag(elsewhere),
            "manifest_workload_mismatch",
        ),
        (
            803,
            "manifest-of-a-look-alike",
            "A name that begins alike",
            _with_tag(look_alike),
            "manifest_workload_mismatch",
        ),
        (
            804,
            "tag-of-payload",
            "The tag is the digest of the payload",
            _tag(digest(json_bytes(manifest_claims()))),
            "tag_not_allowed",
        ),
        (
            805,
            "tag-of-hex",
            "The tag is the digest of the digest's text",
            _tag(digest(TAG.encode())),
            "tag_not_allowed",
        ),
        (
            806,
            "tag-with-line-end",
            "The tag was made with the line end",
            _tag(digest(manifest_token() + b"\n")),
            "tag_not_allowed",
        ),
    )
    for number, name, title, arguments, code in cases:
        yield Case(name=f"{number}-{name}", title=title, spec="4", kind="manifest", code=code, **arguments)


def _with_tag(manifest: bytes) -> dict[str, Any]:
    return {"manifest": manifest, **_tag(digest(manifest))}


def _tag(tag: str) -> dict[str, Any]:
    return {"bundle": bundle_token(allowed_workload_identity_tags=[tag])}


def measurements() -> Iterator[Case]:
    """Yield measurements that a bundle in force does not allow."""
    other = {"MEASUREMENT": "77" * 48}
    cases: tuple[_Refused, ...] = (
        (
            900,
            "measurements-empty",
            "A list without measurements",
            _of(_empty_lists(), measured=other),
            "measurements_empty",
        ),
        (901, "measurement-other", "Another launch", {"measured": other}, "measurement_not_allowed"),
        (
            902,
            "measurement-prefix",
            "A value that begins alike",
            {"measured": {"MEASUREMENT": MEASUREMENT + "00"}},
            "measurement_not_allowed",
        ),
        (
            903,
            "register-other",
            "One register of three differs",
            _of(_allowing(_REGISTERS), measured=_REGISTERS | {"RTMR3": "00" * 48}),
            "measurement_not_allowed",
        ),
        (
            904,
            "register-absent",
            "A register is not there: absent is not equal",
            _of(_allowing(_REGISTERS), measured={"MRTD": "11" * 48}),
            "measurement_not_allowed",
        ),
        (
            905,
            "register-exchanged",
            "The right values in the wrong registers",
            _of(_allowing(_REGISTERS), measured={"MRTD": "11" * 48, "RTMR0": "33" * 48, "RTMR3": "22" * 48}),
            "measurement_not_allowed",
        ),
        (
            906,
            "registers-of-two-entries",
            "Half of one entry and half of another",
            _of(
                _allowing({"MRTD": "11" * 48, "RTMR0": "22" * 48}, {"MRTD": "33" * 48, "RTMR0": "44" * 48}),
                measured={"MRTD": "11" * 48, "RTMR0": "44" * 48},
            ),
            "measurement_not_allowed",
        ),
        (907, "nothing-measured", "No register at all", {"measured": {}}, "measurement_not_allowed"),
    )
    for number, name, title, arguments, code in cases:
        yield Case(name=f"{number}-{name}", title=title, spec="5.4", code=code, **arguments)
