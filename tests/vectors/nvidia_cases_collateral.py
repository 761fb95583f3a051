"""Vectors of manifests and OCSP answers."""

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from nvidia_case import Case

from support.fake_nvidia import (
    AT,
    GPU,
    RIM_CHAIN,
    Issued,
    device,
    golden,
    measurements,
    ocsp,
    opaque,
    report,
    responder,
    rim,
    rim_chain,
    rim_xml,
    sign_rim,
)

__all__ = ["cases"]

VBIOS: Final = "96.00.9F.00.01"
VBIOS_VALUES: Final = {i: [golden(i)] for i in (0, 1, 2)}
DRIVER_RIM: Final = rim()
VBIOS_SIGNER: Final = rim_chain(signer="HCC RIM L4 Signer 2")
VBIOS_RIM: Final = rim(VBIOS, VBIOS_SIGNER, values=VBIOS_VALUES)
RIMS: Final = (DRIVER_RIM, VBIOS_RIM)
HOLD_DRIVER: Final = "570.86.10"
HELD: Final = report(fields=opaque(f3=HOLD_DRIVER.encode() + b"\0"))


def _about(*chains: tuple[Issued, ...], **options: Any) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(ocsp(issued, **options) for chain in chains for issued in chain[:-1]))


ANSWERS: Final = _about(GPU.chain[1:], RIM_CHAIN, VBIOS_SIGNER)


def cases() -> Iterator[Case]:
    """All cases of collateral."""
    yield from _good()
    yield from _manifests()
    yield from _documents()
    yield from _missing()
    yield from _answers()


def _case(name: str, title: str, spec: str, evidence: bytes | None = None, **options: Any) -> Case:
    options = {"certificates": GPU.pem, **options}
    return Case(name=name, title=title, spec=spec, kind="report", evidence=evidence or report(), **options)


def _good() -> Iterator[Case]:
    yes: dict[str, Any] = {"outcome": "accepted", "claim": "proven"}
    strict = {"require_rims": True}
    spec = "5.3.4"
    yield _case(
        "401-everything",
        "manifests and fresh answers about every certificate, all required",
        spec,
        rims=RIMS,
        ocsp=ANSWERS,
        policy={**strict, "require_revocation": True},
        **yes,
    )
    answer = json.dumps({"id": "NV_GPU_DRIVER_GH100_550.90.07", "rim": base64.b64encode(DRIVER_RIM).decode()}).encode()
    yield _case(
        "402-answer-of-the-service",
        "a manifest in the JSON that NVIDIA serves it in",
        spec,
        rims=(answer, VBIOS_RIM),
        policy=strict,
        **yes,
    )
    yield _case(
        "403-nvdec0-disabled",
        "index 35 differs, and the report says that NVDEC0 is disabled",
        spec,
        report(measured=measurements(i35=bytes(48))),
        rims=RIMS,
        policy=strict,
        **yes,
    )
    two = rim(values={7: [golden(7, "old"), golden(7)]})
    yield _case(
        "404-second-alternative",
        "a measurement has the second of two values",
        spec,
        rims=(two, VBIOS_RIM),
        policy=strict,
        **yes,
    )
    board = rim(VBIOS, values={0: [bytes(48)]})
    yield _case(
        "405-boards-of-one-version",
        "VBIOSes of two boards have one version: that of this board matches",
        spec,
        rims=(DRIVER_RIM, board, VBIOS_RIM),
        policy=strict,
        **yes,
    )
    yield _case("406-driver-manifest-alone", "no VBIOS manifest, none required", spec, rims=(DRIVER_RIM,), **yes)
    chip = rim("97.00.88.00.0F", product="GB100")
    yield _case("407-manifest-of-another-chip", "a manifest for another chip says nothing", spec, rims=(chip,), **yes)
    held = rim(HOLD_DRIVER)
    yield _case(
        "408-hold-lifted",
        "a driver that was on hold, its manifest good by fresh answers",
        "5.3.5",
        HELD,
        rims=(held,),
        ocsp=_about(RIM_CHAIN),
        **yes,
    )


def _manifests() -> Iterator[Case]:
    """Good manifests that do not fit, or are not NVIDIA's."""
    no: dict[str, Any] = {"outcome": "rejected", "claim": "proven"}
    old = rim_chain(valid_until=AT - timedelta(seconds=1))
    made = rim_chain("self-made")
    differs = report(measured=measurements(i7=bytes(48)))
    enabled = opaque(f11=b"\xaa")
    mismatch = "firmware_measurement_mismatch"
    for name, title, data, rims, code in (
        (
            "411-version-mismatch",
            "the driver's manifest is of another version",
            report(),
            (rim("550.144.03"), VBIOS_RIM),
            "firmware_version_mismatch",
        ),
        (
            "412-vbios-version-mismatch",
            "the VBIOS's manifest is of another version",
            report(),
            (DRIVER_RIM, rim("96.00.A5.00.01")),
            "firmware_version_mismatch",
        ),
        ("413-measurement-differs", "index 7 is not the golden one", differs, RIMS, mismatch),
        ("414-measurement-absent", "index 7 was not measured", report(measured=measurements(i7=None)), RIMS, mismatch),
        ("415-driver-alone-differs", "without the VBIOS's manifest too", differs, (DRIVER_RIM,), mismatch),
        (
            "416-nvdec0-enabled",
            "index 35 differs, and NVDEC0 is enabled",
            report(measured=measurements(i35=bytes(48)), fields=enabled),
            RIMS,
            mismatch,
        ),
        (
            "417-nvdec0-not-reported",
            "index 35 differs, and nothing says NVDEC0 is off",
            report(measured=measurements(i35=bytes(48)), fields=opaque(f11=None)),
            RIMS,
            mismatch,
        ),
        (
            "418-index-in-both",
            "index 7 stands in both manifests",
            report(),
            (DRIVER_RIM, rim(VBIOS, values={7: [golden(7)]})),
            mismatch,
        ),
        (
            "419-other-hash-length-value",
            "the value of another index",
            report(measured=measurements(i7=golden(21))),
            RIMS,
            mismatch,
        ),
        (
            "421-signer-expired",
            "the signer ended a second before",
            report(),
            (rim(chain=old), VBIOS_RIM),
            "certificate_expired",
        ),
        (
            "422-self-made-root",
            "the same names under a root made here",
            report(),
            (rim(chain=made), VBIOS_RIM),
            "root_not_pinned",
        ),
        (
            "423-self-made-signer",
            "genuine chain, the signer made here",
            report(),
            (rim(chain=(made[0], *RIM_CHAIN[1:])), VBIOS_RIM),
            "chain_invalid",
        ),
        (
            "424-signed-by-device-chain",
            "signed under the device root",
            report(),
            (rim(chain=GPU.chain), VBIOS_RIM),
            "root_not_pinned",
        ),
        (
            "425-intermediate-missing",
            "KeyInfo lacks a certificate",
            report(),
            (rim(chain=(RIM_CHAIN[0], *RIM_CHAIN[2:])), VBIOS_RIM),
            "chain_invalid",
        ),
        (
            "426-chain-out-of-order",
            "KeyInfo holds its certificates in another order",
            report(),
            (rim(chain=tuple(RIM_CHAIN[i] for i in (0, 2, 1, 3))), VBIOS_RIM),
            "chain_invalid",
        ),
        (
            "427-certificate-too-many",
            "KeyInfo holds a stranger",
            report(),
            (rim(chain=(RIM_CHAIN[0], made[1], *RIM_CHAIN[1:])), VBIOS_RIM),
            "chain_invalid",
        ),
    ):
        yield _case(name, title, "5.3.4", data, rims=rims, code=code, **no)


def _documents() -> Iterator[Case]:
    """Documents that are no manifest in the one profile, or were changed after signing."""
    good = DRIVER_RIM.decode()
    info = {
        "451-digest-sha256": ("SHA-256 of the document", "xmldsig-more#sha384", "xmlenc#sha256"),
        "452-signature-sha256": ("ECDSA with SHA-256", "ecdsa-sha384", "ecdsa-sha256"),
        "453-signature-hmac": ("HMAC in place of a signature", "ecdsa-sha384", "hmac-sha384"),
        "454-reference-to-part": ("a reference to an element", 'URI=""', 'URI="#x"'),
        "455-reference-to-network": ("a reference to another document", 'URI=""', 'URI="https://nvidia.test/"'),
        "456-c14n-with-comments": ("C14N that keeps comments", "xml-c14n11", "xml-c14n11#WithComments"),
        "457-no-enveloped-transform": ("the signature is not left out", "enveloped-signature", "base64"),
        "458-two-references": ("a second reference", "</ds:SignedInfo>", '<ds:Reference URI=""/></ds:SignedInfo>'),
        "459-xpath-transform": (
            "a transform with parameters",
            '"/></ds:Transforms>',
            '"><x/></ds:Transform></ds:Transforms>',
        ),
    }
    no: dict[str, Any] = {"outcome": "rejected", "claim": "proven"}
    for name, (title, old, new) in info.items():
        data = sign_rim(rim_xml(), signed_info={old: new})
        yield _case(name, title, "5.3.4", rims=(data,), code="algorithm_not_allowed", **no)
    signature = good[good.index("<ds:Signature ") : good.index("</ds:Signature>") + 15]
    outer = '<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd">'
    wrapped = f"{outer}{good}</SoftwareIdentity>"
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>{good}'
    nested = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    laughs = f'<!DOCTYPE x [<!ENTITY e0 "ha">{nested}]>{good}'
    malformed, changed = "collateral_malformed", "collateral_signature_invalid"
    resource = (
        '<ns0:Resource type="Measurement" index="7" active="True" alternatives="{}" ns2:Hash0="' + "11" * 48 + '"/>'
    )
    for name, title, text, code in (
        ("461-hash-changed", "one digit of a golden value", good.replace(golden(7).hex(), golden(8).hex()), changed),
        (
            "462-version-changed",
            "a manifest of another version, renamed",
            rim("550.54.14").decode().replace("550.54.14", "550.90.07"),
            changed,
        ),
        ("463-signature-cut-off", "the signature is short", good.replace(_value(good), _value(good)[:-4]), changed),
        (
            "464-signature-of-another",
            "the signature of another manifest",
            good.replace(_value(good), _value(VBIOS_RIM.decode())),
            changed,
        ),
        (
            "465-text-behind-signature",
            "text behind the signature is signed too",
            good.replace("</ds:Signature>", "</ds:Signature> "),
            changed,
        ),
        ("466-second-signature", "two signatures", good.replace("\n</Soft", signature + "\n</Soft"), malformed),
        ("467-wrapped", "the signed tree stands inside another", wrapped, malformed),
        (
            "468-payload-twice",
            "a second payload in front",
            good.replace("<ns0:Payload>", "<ns0:Payload/><ns0:Payload>", 1),
            malformed,
        ),
        ("469-doctype", "a DOCTYPE", "<!DOCTYPE SoftwareIdentity>" + good, malformed),
        ("470-external-entity", "an external entity", entity, malformed),
        ("471-entities-in-entities", "entities made of entities", laughs, malformed),
        ("472-comment", "a comment", good.replace("<ns0:Payload>", "<ns0:Payload><!-- -->", 1), malformed),
        ("473-processing-instruction", "a processing instruction in front", "<?x y?>" + good, malformed),
        (
            "474-xml-attribute",
            "an attribute of xml:",
            good.replace("<ns0:Payload>", '<ns0:Payload xml:space="preserve">', 1),
            malformed,
        ),
        (
            "475-no-active-measurement",
            "no active measurement: nothing to hold",
            sign_rim(rim_xml(values={})).decode(),
            malformed,
        ),
        (
            "476-index-twice",
            "index 7 stands twice",
            sign_rim(rim_xml(payload=resource.format(1) * 2)).decode(),
            malformed,
        ),
        (
            "477-alternatives-missing",
            "two alternatives are announced",
            sign_rim(rim_xml(payload=resource.format(2))).decode(),
            malformed,
        ),
        ("478-no-signature", "no signature", rim_xml(), malformed),
        ("479-other-document", "another document element", "<x/>", malformed),
        ("480-not-xml", "no XML", "GH100", malformed),
        ("481-cut-off", "the last byte is missing", good[:-1], malformed),
    ):
        yield _case(name, title, "5.3.4", rims=(text.encode(),), code=code, **no)
    yield _case("482-utf-16", "UTF-16 in place of UTF-8", "5.3.4", rims=(good.encode("utf-16"),), code=malformed, **no)


def _value(xml: str) -> str:
    return xml[xml.index("<ds:SignatureValue>") + 19 : xml.index("</ds:SignatureValue>")]


def _missing() -> Iterator[Case]:
    undecided: dict[str, Any] = {"outcome": "undecided", "spec": "5.3.4"}
    strict: dict[str, Any] = {"code": "collateral_missing", "claim": "proven", "policy": {"require_rims": True}}
    yield _case("491-no-manifest", "manifests are required", **undecided, **strict)
    yield _case("492-vbios-manifest-missing", "both manifests are required", rims=(DRIVER_RIM,), **undecided, **strict)
    hold: dict[str, Any] = {"code": "certificate_on_hold", "claim": "unknown", "evidence": HELD}
    yield _case("493-known-hold", "a driver whose manifest is known to be on hold", **undecided, **hold)
    yield _case(
        "494-known-hold-manifest-alone", "the manifest without answers", rims=(rim(HOLD_DRIVER),), **undecided, **hold
    )


def _answers() -> Iterator[Case]:
    spec = "5.3.5"
    rom, provisioner, family, root = GPU.chain[1:]
    day, long_ago = timedelta(days=1), AT - timedelta(days=300)
    stranger = device(world="self-made").chain
    others = _about(GPU.chain[2:])
    no: dict[str, Any] = {"outcome": "rejected", "claim": "refuted"}
    revoked, invalid = "certificate_revoked", "ocsp_invalid"
    broken = ocsp(rom).replace(b"110000Z", b"115959Z", 1)
    for name, title, answers, code in (
        ("501-device-revoked", "the device is revoked", (ocsp(rom, "revoked"),), revoked),
        ("502-revoked-long-ago", "a revocation does not age", (ocsp(rom, "revoked", at=long_ago),), revoked),
        (
            "503-revoked-and-later-good",
            "a later good answer does not lift it",
            (ocsp(rom, "revoked", at=long_ago), ocsp(rom)),
            revoked,
        ),
        ("504-family-revoked", "the chip family's certificate is revoked", (ocsp(family, "revoked"),), revoked),
        ("505-on-hold", "the device is on hold", (ocsp(rom, "on_hold"),), "certificate_on_hold"),
        (
            "506-not-entitled",
            "a certificate that is no responder's",
            (ocsp(rom, signer=responder(provisioner, entitled=False)),),
            invalid,
        ),
        ("507-responder-of-another", "a responder of another issuer", (ocsp(rom, signer=responder(root)),), invalid),
        ("508-responder-self-made", "a self-made responder", (ocsp(rom, signer=responder(stranger[2])),), invalid),
        (
            "509-responder-expired",
            "the responder had ended when it answered",
            (ocsp(rom, signer=responder(provisioner, valid_until=AT - day)),),
            invalid,
        ),
        ("510-changed-after-signing", "another time than was signed", (broken,), invalid),
    ):
        yield _case(name, title, spec, ocsp=answers, code=code, **no)
    yield _case(
        "511-not-an-answer",
        "bytes that are no OCSP response",
        spec,
        ocsp=(b"<html>",),
        code="collateral_malformed",
        outcome="rejected",
        claim="proven",
    )
    yield _case(
        "512-signer-revoked",
        "the driver manifest's signer is revoked",
        spec,
        rims=(DRIVER_RIM,),
        code=revoked,
        ocsp=(ocsp(RIM_CHAIN[0], "revoked"),),
        outcome="rejected",
        claim="proven",
    )
    yield _case(
        "513-held-driver-on-hold",
        "the known hold, and a fresh answer that says so",
        spec,
        HELD,
        rims=(rim(HOLD_DRIVER),),
        ocsp=(ocsp(RIM_CHAIN[0], "on_hold"), *_about(RIM_CHAIN[1:])),
        code="certificate_on_hold",
        outcome="rejected",
        claim="unknown",
    )
    maybe: dict[str, Any] = {"outcome": "undecided", "claim": "unknown"}
    yield _case(
        "521-on-hold-long-ago",
        "an old hold may have been lifted",
        spec,
        ocsp=(ocsp(rom, "on_hold", at=long_ago),),
        code="certificate_on_hold",
        **maybe,
    )
    yield _case(
        "522-unknown",
        "the responder does not know the device",
        spec,
        ocsp=(ocsp(rom, "unknown"),),
        code="revocation_unknown",
        **maybe,
    )
    yes: dict[str, Any] = {"outcome": "accepted", "claim": "proven"}
    yield _case("531-stale", "old good answers, none required", spec, ocsp=_about(GPU.chain[1:], at=long_ago), **yes)
    yield _case(
        "532-hold-lifted",
        "a good answer after a hold",
        spec,
        ocsp=(ocsp(rom, "on_hold", at=long_ago), ocsp(rom)),
        **yes,
    )
    late = ocsp(rom, at=AT + day)
    strict: dict[str, Any] = {"policy": {"require_revocation": True}}
    yield _case(
        "533-answer-of-tomorrow",
        "an answer of tomorrow does not hide that of today",
        spec,
        ocsp=(*_about(GPU.chain[1:]), late),
        **strict,
        **yes,
    )
    yield _case(
        "534-by-the-issuer",
        "the issuer itself answers",
        spec,
        ocsp=(ocsp(rom, signer=provisioner), *others),
        **strict,
        **yes,
    )
    stale: dict[str, Any] = {"outcome": "rejected", "claim": "proven", "code": "ocsp_expired", **strict}
    for name, title, answer in (
        ("541-required-and-stale", "one answer is a second too old", ocsp(rom, at=AT - day - timedelta(seconds=1))),
        ("542-required-and-early", "one answer is of a second later", ocsp(rom, at=AT + timedelta(seconds=1))),
        (
            "543-required-and-long",
            "an answer that says it is good for a year",
            ocsp(rom, at=AT - 2 * day, life=365 * day),
        ),
        ("544-required-and-endless", "an answer that does not say how long", ocsp(rom, at=AT - 2 * day, life=None)),
        (
            "545-required-and-short",
            "an answer that was good for an hour",
            ocsp(rom, at=AT - timedelta(hours=2), life=timedelta(hours=1)),
        ),
    ):
        yield _case(name, title, spec, ocsp=(answer, *others), **stale)
    absent: dict[str, Any] = {"outcome": "undecided", "claim": "proven", "code": "revocation_unknown", **strict}
    try_later = bytes.fromhex("30030a0103")
    for name, title, some in (
        ("551-required-and-absent", "no answer about the device", others),
        ("552-required-and-other-serial", "an answer about another serial", (ocsp(rom, serial=2), *others)),
        (
            "553-required-and-other-issuer",
            "an answer about this serial of another issuer",
            (ocsp(rom, issuer=family), *others),
        ),
        ("554-required-and-try-later", "the responder says: try later", (try_later, *others)),
    ):
        yield _case(name, title, spec, ocsp=some, **absent)
    driver = _about(GPU.chain[1:], RIM_CHAIN)
    yield _case(
        "555-answer-of-the-other-manifest",
        "the answer about the driver's signer does not serve the VBIOS's",
        spec,
        rims=RIMS,
        ocsp=driver,
        **absent,
    )
