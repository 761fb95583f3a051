"""Vectors of reports and lists of them: layout, identity, sets, policy."""

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from nvidia_case import Case, Outcome

from support.fake_nvidia import (
    AT,
    GPU,
    NONCE,
    OTHER_GPU,
    Device,
    device,
    evidence_list,
    issue,
    measurements,
    opaque,
    pem,
    report,
)

__all__ = ["cases"]

PUBLIC = bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")
BOTH = evidence_list((GPU, report()), (OTHER_GPU, report(OTHER_GPU)))


def cases() -> Iterator[Case]:
    """All cases of reports."""
    yield from _good()
    yield from _layout()
    yield from _lists()
    yield from _identity()
    yield from _sets()
    yield from _wanted()


def _single(name: str, title: str, evidence: bytes, spec: str, **options: Any) -> Case:
    options = {"certificates": GPU.pem, **options}
    return Case(name=name, title=title, spec=spec, kind="report", evidence=evidence, **options)


def _several(name: str, title: str, evidence: bytes, spec: str, **options: Any) -> Case:
    return Case(name=name, title=title, spec=spec, kind="list", evidence=evidence, **options)


def _good() -> Iterator[Case]:
    yes: dict[str, Any] = {"outcome": "accepted", "claim": "proven"}
    document = msgspec.json.decode(BOTH)
    yield _single("001-good-report", "one GPU, its certificates beside it", report(), "5.3", **yes)
    yield _several("002-good-list", "two GPUs of one machine", BOTH, "5.3", **yes)
    blackwell = device(2, chip="GB100")
    yield _several(
        "003-blackwell",
        "the FWID stands in a DICE TcbInfo",
        evidence_list((blackwell, report(blackwell))),
        "5.3.3",
        **yes,
    )
    switch = device(3, chip="LS_10")
    fields = {6: b"96.10.55.00.01", 12: bytes(4)}
    yield _several(
        "004-nvswitch",
        "a GPU and the NVSwitch beside it, which reports neither driver nor FWID",
        evidence_list((GPU, report())).rstrip(b"\n]")
        + b",\n"
        + evidence_list((switch, report(switch, fields=fields)))[1:],
        "5.3.2",
        **yes,
    )
    yield _several(
        "005-nvswitch-alone",
        "an NVSwitch and no GPU: genuine, and nothing is said of GPUs",
        evidence_list((switch, report(switch, fields=fields))),
        "5.3.2",
        outcome="accepted",
        claim="unknown",
    )
    wrapped = {"arch": "HOPPER", "nonce": NONCE.hex(), "evidence_list": document}
    yield _several(
        "006-form-of-dstack", "member evidence_list of an object", json.dumps(wrapped).encode(), "5.3.2", **yes
    )
    yield _several(
        "007-form-of-tinfoil",
        "member evidences of an object",
        json.dumps({"evidences": document}).encode(),
        "5.3.2",
        **yes,
    )
    yield _several(
        "008-no-nonce-stated",
        "a list that states neither nonce nor architecture",
        evidence_list((GPU, report()), nonce=None, arch=None),
        "5.3.2",
        **yes,
    )
    yield _single(
        "009-strangers-certificates",
        "the bag holds the chains of other devices too, in no order",
        report(),
        "5.3.3",
        certificates=OTHER_GPU.pem + pem(reversed(GPU.chain)) + blackwell.pem,
        **yes,
    )
    yield _single(
        "010-no-fwid-reported",
        "drivers up to 535 report no FWID",
        report(fields=opaque(f20=None, f21=None, f34=None, f36=None)),
        "5.3.3",
        **yes,
    )
    yield _single(
        "011-no-nonce-expected", "the public nonce, and no challenge", report(nonce=PUBLIC), "5.3.7", nonce=None, **yes
    )
    yield _several(
        "012-policy-met",
        "count, floors and mode are what the policy wants",
        BOTH,
        "5.3.7",
        policy={
            "gpu_count": 2,
            "min_driver_version": "550.90.7",
            "min_vbios_version": "96.00.9E.FF.FF",
            "allow_protected_pcie": False,
            "architectures": ["HOPPER"],
        },
        **yes,
    )


def _layout() -> Iterator[Case]:
    """Every report here is signed: the layout alone decides."""
    good = report()
    values = b"".join(bytes((i + 1, 1, 51, 0, 1, 48, 0)) + v for i, v in measurements().items())
    first = values[:55]
    version, malformed = "evidence_version_unsupported", "evidence_malformed"
    for name, title, data, code in (
        ("101-empty", "no bytes", b"", version),
        ("102-cut-off", "the last byte is missing", good[:-1], malformed),
        ("103-byte-behind", "a byte stands behind the signature", good + b"\0", malformed),
        ("104-spdm-1-2", "SPDM 1.2", report(request=b"\x12\xe0\x01\xff"), version),
        ("105-other-request", "GET_DIGESTS in place of GET_MEASUREMENTS", report(request=b"\x11\x81\x01\xff"), version),
        ("106-not-signed-on-request", "a signature was not asked for", report(request=b"\x11\xe0\x00\xff"), version),
        ("107-one-measurement", "one measurement was asked for, not all", report(request=b"\x11\xe0\x01\x08"), version),
        ("108-other-response", "ERROR in place of MEASUREMENTS", report(response=b"\x11\x7f\0\0"), version),
        ("109-other-slot", "another certificate slot answered", report(slot=b"\x01"), malformed),
        (
            "110-slot-8",
            "a certificate slot that SPDM does not have",
            report(slot=b"\x08", response=b"\x11\x60\0\x08"),
            malformed,
        ),
        ("111-block-twice", "measurement block 1 stands twice", report(record=first * 2, blocks=2), malformed),
        ("112-block-0", "measurement blocks count from 0", report(record=b"\0" + first[1:], blocks=1), malformed),
        (
            "113-block-not-dmtf",
            "a vendor's measurement block",
            report(record=first[:1] + b"\x02" + first[2:], blocks=1),
            malformed,
        ),
        (
            "114-block-sizes-differ",
            "a block states two sizes",
            report(record=first[:5] + b"\x2f" + first[6:], blocks=1),
            malformed,
        ),
        ("115-record-with-rest", "bytes stand behind the last block", report(record=values + b"\0"), malformed),
        ("116-fewer-blocks", "fewer blocks than stated", report(record=first, blocks=2), malformed),
        ("117-no-measurement", "no measurement at all", report(measured={}), malformed),
        ("118-field-twice", "the driver version stands twice", report(opaque_data=b"\x03\0\x02\05\0" * 2), malformed),
        (
            "119-field-past-end",
            "a field is longer than the opaque data",
            report(opaque_data=b"\x03\0\x09\05\0"),
            malformed,
        ),
        (
            "120-driver-with-path",
            "a driver version that is a path",
            report(fields=opaque(f3=b"../../etc\0")),
            malformed,
        ),
        ("121-no-vbios-version", "no VBIOS version", report(fields=opaque(f6=None)), malformed),
        ("122-fwid-47-bytes", "a FWID of 47 bytes", report(fields=opaque(f20=bytes(47))), malformed),
        ("123-status-unknown", "NVDEC0 is neither on nor off", report(fields=opaque(f11=b"\0")), malformed),
        ("124-too-large", "more than 16 KiB", report(fields=opaque(f12=bytes(16384))), "evidence_too_large"),
    ):
        yield _single(name, title, data, "5.3.1", outcome="rejected", claim="refuted", code=code)


def _lists() -> Iterator[Case]:
    (entry,) = msgspec.json.decode(evidence_list((GPU, report())))

    def text(**changed: Any) -> bytes:
        return json.dumps([{**entry, **changed}]).encode()

    certificate = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n").decode()
    malformed = "evidence_malformed"
    for name, title, data, code in (
        ("151-not-json", "an SPDM report in place of a list", report(), malformed),
        ("152-duplicate-member", "evidence stands twice", b'[{"evidence":"AA==","evidence":"AA=="}]', malformed),
        ("153-no-device", "an empty list", b"[]", malformed),
        ("154-too-many-devices", "65 devices", b"[" + b",".join([b"{}"] * 65) + b"]", malformed),
        ("155-no-evidence", "a device without its report", b'[{"arch":"HOPPER"}]', malformed),
        ("156-two-arrays", "both names of the array", b'{"evidences":[],"evidence_list":[]}', malformed),
        ("157-base64url", "base64 with another alphabet", text(evidence="EeAB_w=="), malformed),
        ("158-base64-stray-bits", "base64 with stray bits", text(evidence="EeAB/x=="), malformed),
        ("159-nonce-base64", "the nonce in base64", text(nonce=base64.b64encode(NONCE).decode()), malformed),
        ("160-nonce-number", "the nonce is a number", text(nonce=1), malformed),
        ("161-nested", "ten thousand arrays in one another", b"[" * 10_000, malformed),
        (
            "162-certificate-not-der",
            "PEM text around no certificate",
            text(certificate=certificate),
            "certificate_malformed",
        ),
    ):
        yield _several(name, title, data, "5.3.2", outcome="rejected", claim="refuted", code=code)


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]


def _identity() -> Iterator[Case]:
    good = report()
    made = device(world="self-made")
    early, late = AT + timedelta(seconds=1), AT - timedelta(seconds=1)
    expired = device(leaf={"valid_until": late})
    pending = device(leaf={"valid_from": early})
    other_fwid = device(4, fwid=bytes(48))
    wrong_fwid = report(other_fwid, fields=opaque(GPU))
    small = device(5, leaf={"curve": ec.SECP256R1()})
    no_fwid = device(6, leaf={"extensions": [(_composite(b"\x30\x00"), False)]})
    renamed = device(7, provisioner="NVIDIA GH100 Provisioner")
    short = Device(issue("GH100 A01 GSP FMC LF", GPU.chain[2], ca=False, extensions=[_fwid_of(GPU)]), GPU.fwid)
    below_leaf = Device(issue("GH100 A01 GSP FMC LF", GPU.leaf, ca=False, extensions=[_fwid_of(GPU)]), GPU.fwid)
    blackwell = device(8, chip="GB100", fwid=bytes(range(2, 50)))
    refuted: dict[str, Any] = {"outcome": "rejected", "claim": "refuted"}
    for name, title, data, certificates, code in (
        ("201-nonce-flipped", "one bit of the nonce", _flipped(good, 4), GPU.pem, "signature_invalid"),
        ("202-measurement-flipped", "one bit of a measurement", _flipped(good, 60), GPU.pem, "signature_invalid"),
        (
            "203-fwid-flipped",
            "one bit of the reported FWID",
            _flipped(good, good.index(GPU.fwid)),
            GPU.pem,
            "signature_invalid",
        ),
        ("204-signature-zero", "r and s are zero", good[:-96] + bytes(96), GPU.pem, "signature_invalid"),
        (
            "205-certificates-of-another-gpu",
            "genuine chain of another device",
            good,
            OTHER_GPU.pem,
            "signature_invalid",
        ),
        ("206-self-made-root", "the same names under a root made here", report(made), made.pem, "root_not_pinned"),
        (
            "207-self-made-leaf",
            "genuine chain, the leaf made here",
            report(made),
            pem((made.leaf, *GPU.chain[1:])),
            "chain_invalid",
        ),
        (
            "208-leaf-not-yet-valid",
            "the leaf begins a second later",
            report(pending),
            pending.pem,
            "certificate_not_yet_valid",
        ),
        ("209-leaf-expired", "the leaf ended a second before", report(expired), expired.pem, "certificate_expired"),
        (
            "210-fwid-of-another-gpu",
            "the report states the FWID of another GPU",
            wrong_fwid,
            other_fwid.pem,
            "fwid_mismatch",
        ),
        (
            "211-fwid-unreadable",
            "the leaf states no FWID of SHA-384",
            report(no_fwid),
            no_fwid.pem,
            "certificate_extension_missing",
        ),
        (
            "212-fwid-second-in-tcb-info",
            "the reported FWID is the second of the TcbInfo",
            report(blackwell, fields=opaque(f20=bytes(48))),
            blackwell.pem,
            "fwid_mismatch",
        ),
        (
            "213-leaf-on-p256",
            "the leaf holds a key on P-256",
            report(small)[:-96] + bytes(96),
            small.pem,
            "signature_invalid",
        ),
        (
            "214-provisioner-renamed",
            "no provisioner of NVIDIA's in the chain",
            report(renamed),
            renamed.pem,
            "chain_invalid",
        ),
        ("215-chain-of-four", "the leaf was issued by the provisioner", report(short), short.pem, "chain_invalid"),
        (
            "216-issued-by-a-leaf",
            "the leaf was issued by another leaf",
            report(below_leaf),
            below_leaf.pem,
            "chain_invalid",
        ),
    ):
        yield _single(name, title, data, "5.3.3", certificates=certificates, code=code, **refuted)
    missing: dict[str, Any] = {"outcome": "undecided", "claim": "unknown", "code": "endorsement_missing"}
    yield _single("251-no-certificates", "no certificate at all", good, "5.3.3", **missing, certificates=b"")
    yield _single(
        "252-no-leaf", "the chain without its leaf", good, "5.3.3", **missing, certificates=pem(GPU.chain[1:])
    )
    yield _single(
        "253-provisioner-missing",
        "the chain without its third",
        good,
        "5.3.3",
        **missing,
        certificates=pem(one for one in GPU.chain if one is not GPU.chain[2]),
    )


def _composite(value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), value)


def _fwid_of(maker: Device) -> tuple[x509.ExtensionType, bool]:
    oid = x509.ObjectIdentifier("2.23.133.5.4.1")
    return maker.leaf.certificate.extensions.get_extension_for_oid(oid).value, False


def _sets() -> Iterator[Case]:
    rebooted = device(0, boot=1, fwid=bytes(range(3, 51)))
    made = device(9, world="self-made")
    unknown = device(10, chip="GX100")
    blackwell = device(11, chip="GB100")
    two = b"1" * 32
    proven: dict[str, Any] = {"outcome": "rejected", "claim": "proven"}
    refuted: dict[str, Any] = {"outcome": "rejected", "claim": "refuted"}
    architecture = "gpu_architecture_mismatch"
    for name, title, data, code, verdict, policy in (
        (
            "301-same-gpu-twice",
            "one GPU stands twice",
            evidence_list((GPU, report()), (GPU, report())),
            "gpu_duplicate",
            refuted,
            {},
        ),
        (
            "302-same-gpu-rebooted",
            "one GPU stands twice, with the leaves of two starts",
            evidence_list((GPU, report()), (rebooted, report(rebooted))),
            "gpu_duplicate",
            refuted,
            {},
        ),
        ("303-gpu-missing", "two of eight GPUs", BOTH, "gpu_count_mismatch", proven, {"gpu_count": 8}),
        ("304-gpu-too-many", "two GPUs where one is wanted", BOTH, "gpu_count_mismatch", proven, {"gpu_count": 1}),
        (
            "305-one-of-two-forged",
            "the second report is not signed by its GPU",
            evidence_list((GPU, report()), (OTHER_GPU, report(GPU, fields=opaque(OTHER_GPU)))),
            "signature_invalid",
            refuted,
            {},
        ),
        (
            "306-one-of-two-self-made",
            "the second GPU is self-made",
            evidence_list((GPU, report()), (made, report(made))),
            "root_not_pinned",
            refuted,
            {},
        ),
        (
            "307-two-nonces",
            "one GPU answers another challenge",
            evidence_list((GPU, report()), (OTHER_GPU, report(OTHER_GPU, nonce=two))),
            "nonce_mismatch",
            proven,
            {},
        ),
        (
            "308-other-nonce-stated",
            "the document states another nonce",
            evidence_list((GPU, report()), nonce="00" * 32),
            "nonce_mismatch",
            proven,
            {},
        ),
        (
            "309-other-architecture-stated",
            "a Blackwell GPU is presented as Hopper",
            evidence_list((blackwell, report(blackwell)), arch="HOPPER"),
            architecture,
            proven,
            {},
        ),
        (
            "310-architecture-not-allowed",
            "the policy allows Blackwell alone",
            BOTH,
            architecture,
            proven,
            {"architectures": ["BLACKWELL"]},
        ),
        (
            "311-no-architecture-allowed",
            "an empty list allows nothing",
            BOTH,
            architecture,
            proven,
            {"architectures": []},
        ),
        (
            "312-architecture-unknown",
            "a chip of no known family",
            evidence_list((unknown, report(unknown)), arch="GX100"),
            architecture,
            proven,
            {},
        ),
        (
            "313-switch-as-gpu",
            "an NVSwitch counts as no GPU",
            evidence_list((device(3, chip="LS_10"), report(device(3, chip="LS_10"))), arch=None),
            "gpu_count_mismatch",
            {"outcome": "rejected", "claim": "unknown"},
            {"gpu_count": 1},
        ),
    ):
        yield _several(name, title, data, "5.3.7", code=code, policy=policy, **verdict)
    missing = evidence_list((GPU, report()), certificate=None)
    undecided: Outcome = "undecided"
    yield _several(
        "351-one-without-certificates",
        "a device without its certificates",
        missing,
        "5.3.3",
        outcome=undecided,
        claim="unknown",
        code="endorsement_missing",
    )


def _wanted() -> Iterator[Case]:
    no: dict[str, Any] = {"outcome": "rejected", "claim": "proven"}
    good, pcie, flag = report(), report(fields=opaque(f21=b"\xaa")), report(fields=opaque(f36=b"\x02\0"))
    for name, title, data, code, policy, nonce in (
        ("361-nonce-other", "another nonce was expected", good, "nonce_mismatch", {}, bytes(32)),
        ("362-nonce-prefix", "the beginning of the nonce was expected", good, "nonce_mismatch", {}, NONCE[:16]),
        ("363-nonce-hexadecimal", "the nonce was expected in digits", good, "nonce_mismatch", {}, NONCE.hex().encode()),
        ("364-nonce-empty", "an empty nonce was expected", good, "nonce_mismatch", {}, b""),
        (
            "365-nonce-public-expected",
            "the public nonce is never fresh",
            report(nonce=PUBLIC),
            "nonce_public",
            {},
            PUBLIC,
        ),
        (
            "366-nonce-public-refused",
            "the policy refuses the public nonce",
            report(nonce=PUBLIC),
            "nonce_public",
            {"refuse_public_nonce": True},
            None,
        ),
        ("371-mode-unknown", "no mode that is known", report(fields=opaque(f36=b"\x09\0")), "cc_mode_off", {}, NONCE),
        (
            "372-protected-pcie-status",
            "protected PCIe is on, by its status",
            pcie,
            "attributes_not_allowed",
            {"allow_protected_pcie": False},
            NONCE,
        ),
        (
            "373-protected-pcie-flag",
            "protected PCIe is on, by the feature flag",
            flag,
            "attributes_not_allowed",
            {"allow_protected_pcie": False},
            NONCE,
        ),
        (
            "381-driver-below-floor",
            "as text 550.90 comes behind 550.100",
            good,
            "tcb_below_floor",
            {"min_driver_version": "550.100"},
            NONCE,
        ),
        (
            "382-driver-floor-longer",
            "550.90.07 is below 550.90.07.1",
            good,
            "tcb_below_floor",
            {"min_driver_version": "550.90.7.1"},
            NONCE,
        ),
        (
            "383-driver-not-numbered",
            "a driver whose version has letters",
            report(fields=opaque(f3=b"r999\0")),
            "tcb_below_floor",
            {"min_driver_version": "550.0"},
            NONCE,
        ),
        (
            "384-driver-not-reported",
            "a GPU without driver version",
            report(fields=opaque(f3=None)),
            "tcb_below_floor",
            {"min_driver_version": "550.0"},
            NONCE,
        ),
        (
            "385-vbios-below-floor",
            "the third pair is lower",
            good,
            "tcb_below_floor",
            {"min_vbios_version": "96.00.A0.00.00"},
            NONCE,
        ),
    ):
        yield _single(name, title, data, "5.3.7", code=code, policy=policy, nonce=nonce, **no)
    yield _single(
        "391-protected-pcie-not-reported",
        "the policy refuses protected PCIe, and the driver does not say",
        report(fields=opaque(f21=None, f34=None, f36=None)),
        "5.3.7",
        code="attributes_not_allowed",
        policy={"allow_protected_pcie": False},
        outcome="undecided",
        claim="proven",
    )
