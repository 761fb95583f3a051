"""Certificates that are not the one of the key that signed, or not as AMD makes them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding
from snp_case import Case, Inputs
from snp_material import MASKED_VLEK, chip, made, real, signed, turin

from support.evidence import sample
from support.fake_amd import AT, CHIP_ID, TCB, fake_amd

__all__ = ["certificates", "extensions", "signers", "tcb_versions"]

MILAN: Final = "milan-v3-vcek"


def _case(name: str, title: str, inputs: Callable[[], Inputs], code: str, outcome: str = "rejected") -> Case:
    return Case(name, title, inputs, (("endorsement", code),), outcome)


def certificates() -> Iterator[Case]:
    """Yield certificates that are missing, another's, or out of their time."""
    missing = ("endorsement_missing", "undecided")
    yield _case("200-no-certificate", f"{MILAN} without its VCEK", lambda: real(MILAN, certificates=()), *missing)
    yield _case("201-only-the-issuers", "ASK, ASVK and ARK, and no VCEK", _only_issuers, *missing)
    yield _case(
        "202-vcek-of-another-chip",
        f"{MILAN} with the VCEK of milan-v2-vcek, both genuine",
        lambda: real(MILAN, certificates=real("milan-v2-vcek").certificates),
        "chip_id_mismatch",
    )
    yield _case(
        "203-vcek-of-another-line",
        f"{MILAN} with the VCEK of genoa-v5-vcek, both genuine",
        lambda: real(MILAN, certificates=real("genoa-v5-vcek").certificates),
        "collateral_mismatch",
    )
    for number, which in enumerate(("legacy", "new"), start=204):
        name = f"milan-v2-forged-vcek-{which}"
        yield _case(f"{number}-look-alike-{which}", f"{name}: nobody signed it", partial(real, name), "chain_invalid")
    yield _case(
        "206-trailing-byte",
        f"{MILAN} whose VCEK has a byte behind it",
        lambda: real(MILAN, certificates=(real(MILAN).certificates[0] + b"\0",)),
        "certificate_malformed",
    )
    yield _case(
        "207-pem-in-place-of-der",
        "PEM text, of which readers take the first certificate or the last",
        lambda: real(MILAN, certificates=((sample(f"snp/{MILAN}") / "vcek.pem").read_bytes(),)),
        "certificate_malformed",
    )
    yield _case(
        "208-one-second-too-early",
        "before the VCEK is valid",
        lambda: made({"at": AT - timedelta(days=100, seconds=1)}),
        "certificate_not_yet_valid",
    )
    yield _case(
        "209-one-second-too-late",
        "after the VCEK was valid",
        lambda: made({"at": AT + timedelta(days=100, seconds=1)}),
        "certificate_expired",
    )
    yield _case(
        "210-vlek-expired",
        "milan-v3-vlek-aws three weeks after its VLEK ended",
        lambda: real("milan-v3-vlek-aws", at=datetime.fromisoformat("2026-01-01T00:00:00Z")),
        "certificate_expired",
    )
    yield _case(
        "211-vlek-report-without-its-vlek",
        "a VLEK does not come from AMD's service, only from the host",
        lambda: signed(fake_amd().vlek(), fake_amd(), {"certificates": fake_amd().issuers}, **MASKED_VLEK),
        *missing,
    )
    yield _case("212-key-on-p-256", "a VCEK for a key on another curve", _other_curve, "algorithm_not_allowed")
    yield _case(
        "213-salt-of-32-bytes",
        "a VCEK signed with another salt length",
        lambda: chip(pss=padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=32)),
        "algorithm_not_allowed",
    )


def extensions() -> Iterator[Case]:
    """Yield certificates whose extensions are not AMD's."""
    for number, part in enumerate(("1", "2", "3.1", "3.2", "3.3", "3.8", "4"), start=220):
        yield _case(
            f"{number}-extension-{part.replace('.', '-')}-missing",
            f"a VCEK without AMD's extension {part}",
            partial(chip, changed={part: None}),
            "certificate_extension_missing",
        )
    yield _case(
        "227-extension-3-9-missing",
        "a Turin's VCEK without its FMC",
        partial(turin, changed={"3.9": None}),
        "certificate_extension_missing",
    )
    yield _case(
        "228-hwid-and-csp-id",
        "VCEK and VLEK in one",
        partial(chip, csp_id="CN=cloud.example"),
        "certificate_extension_missing",
    )
    for number, (what, part, value) in enumerate(
        (
            ("spl-not-minimal", "3.1", b"\x02\x02\x00\x04"),
            ("spl-with-trailing-byte", "3.1", b"\x02\x01\x04\x00"),
            ("spl-of-260", "3.1", b"\x02\x02\x01\x04"),
            ("spl-negative", "3.1", b"\x02\x01\x84"),
            ("spl-as-octet-string", "3.1", b"\x04\x01\x04"),
            ("hwid-of-63-bytes", "4", CHIP_ID[:63]),
            ("hwid-of-a-turin", "4", CHIP_ID[:8]),
            ("product-unknown", "2", b"\x16\x06Milano"),
            ("product-as-utf8", "2", b"\x0c\x05Milan"),
            ("structure-version-2", "1", b"\x02\x01\x02"),
        ),
        start=230,
    ):
        yield _case(
            f"{number}-{what}",
            f"a VCEK whose extension {part} is {value[:8].hex()}",
            partial(chip, changed={part: value}),
            "certificate_malformed",
        )
    yield _case(
        "240-reserved-spl",
        "a reserved security version that is not zero",
        partial(chip, changed={"3.4": b"\x02\x01\x01"}),
        "reserved_not_zero",
    )
    yield _case(
        "241-fmc-on-milan",
        "a security version that Milan does not have",
        partial(chip, changed={"3.9": b"\x02\x01\x01"}),
        "reserved_not_zero",
    )
    yield _case(
        "242-critical-extension",
        "a VCEK with a critical extension",
        partial(chip, critical="4"),
        "certificate_malformed",
    )
    yield _case(
        "243-hwid-as-a-prefix",
        "Turin's HWID, and a CHIP_ID that goes on behind it",
        lambda: turin({"chip_id": CHIP_ID}),
        "chip_id_mismatch",
    )


def tcb_versions() -> Iterator[Case]:
    """Yield certificates for another TCB than REPORTED_TCB: a chip has a key for each."""
    cases = [(part, step) for part in ("bl", "snp", "ucode") for step in (1, -1)]
    for number, (part, step) in enumerate((*cases, ("tee", 1)), start=250):
        yield _case(
            f"{number}-{part}-{'above' if step > 0 else 'below'}",
            f"a VCEK whose {part} is {abs(step)} {'above' if step > 0 else 'below'} that of REPORTED_TCB",
            partial(chip, tcb={**TCB, part: TCB[part] + step}),
            "certificate_tcb_mismatch",
        )
    yield _case(
        "257-fmc-above",
        "a Turin's VCEK whose fmc is 1 above that of REPORTED_TCB",
        partial(turin, tcb={**TCB, "fmc": 2}),
        "certificate_tcb_mismatch",
    )
    yield _case(
        "258-same-sum-other-parts",
        "the same bytes in other places",
        partial(chip, tcb={**TCB, "snp": TCB["ucode"], "ucode": TCB["snp"]}),
        "certificate_tcb_mismatch",
    )
    for number, field in enumerate(("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb"), start=259):
        yield _case(
            f"{number}-reserved-byte-of-{field.replace('_', '-')}",
            f"{field.upper()} with a byte where Milan has none",
            partial(made, None, **{field: bytes((4, 0, 1, 0, 0, 0, 24, 219))}),
            "reserved_not_zero",
        )
    yield _case(
        "263-turin-read-as-milan",
        "a Turin's REPORTED_TCB under a report that tells no product and a certificate that says Milan",
        lambda: made(version=2, cpuid=bytes(3), reported_tcb=bytes((1, 4, 0, 24, 0, 0, 0, 219))),
        "reserved_not_zero",
    )


def signers() -> Iterator[Case]:
    """Yield reports whose key information, processor or signature is not that of the certificate."""
    for number, key in enumerate((2, 6, 7), start=270):
        yield _case(
            f"{number}-signing-key-{key}",
            f"SIGNING_KEY {key} is no key's",
            partial(made, key_information=key << 2),
            "signer_not_allowed",
        )
    yield _case(
        "273-vlek-under-a-vcek-report",
        "the report says VCEK, the certificate is a VLEK, and the signature holds",
        lambda: signed(fake_amd().vlek(), fake_amd()),
        "collateral_mismatch",
    )
    yield _case(
        "274-vcek-under-a-vlek-report",
        "the report says VLEK, the certificate is a VCEK, and the signature holds",
        lambda: made(key_information=1 << 2),
        "collateral_mismatch",
    )
    yield _case("275-unknown-processor", "CPUID 1Ah/50h", lambda: made(cpuid=bytes((0x1A, 0x50, 0))), "root_not_pinned")
    yield _case("276-no-processor", "CPUID 0/0/0", lambda: made(cpuid=bytes(3)), "root_not_pinned")
    for number, (what, offset) in enumerate(
        (("r", 0x2A0), ("s", 0x2E8), ("report-data", 0x050), ("measurement", 0x090))
    ):
        yield Case(
            f"{280 + number}-{what}-flipped",
            f"{MILAN} with one bit flipped at {offset:#05x}",
            partial(_flipped, offset),
            (("report_signature", "signature_invalid"),),
        )
    yield Case(
        "284-signature-of-zeros",
        "r and s are zero",
        lambda: replace(made(), report=made().report[:0x2A0].ljust(0x4A0, b"\0")),
        (("report_signature", "signature_invalid"),),
    )
    yield Case(
        "285-key-of-another-certificate",
        "a VCEK of this chip and TCB, for another key",
        lambda: replace(made(), certificates=(fake_amd().vcek().der, *fake_amd().issuers)),
        (("report_signature", "signature_invalid"),),
    )


def _flipped(offset: int) -> Inputs:
    good = real(MILAN)
    report = bytearray(good.report)
    report[offset] ^= 0x10
    return replace(good, report=bytes(report))


def _only_issuers() -> Inputs:
    return made({"certificates": (*fake_amd().issuers, fake_amd().ark.public_bytes(Encoding.DER))})


def _other_curve() -> Inputs:
    key = ec.generate_private_key(ec.SECP256R1())
    return made({"certificates": (fake_amd().certify(key, hwid=CHIP_ID), *fake_amd().issuers)})
