"""Bytes that are no report."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from snp_case import Case, Inputs
from snp_material import patched, real

__all__ = ["malformed"]

MILAN = "milan-v3-vcek"


def malformed() -> Iterator[Case]:
    """Yield reports of the wrong length, version or algorithm, or with reserved bits set."""
    lengths = (
        ("100-one-byte-short", f"{MILAN} cut to 1183 bytes", partial(_resized, 1183)),
        ("101-one-byte-long", f"{MILAN} with a byte behind it", partial(_resized, 1185)),
        ("102-empty", "no bytes", partial(_resized, 0)),
        ("103-two-reports", f"{MILAN} twice", partial(_resized, 2368)),
    )
    for name, title, inputs in lengths:
        yield Case(name, title, inputs, (("report", "evidence_malformed"),))
    for number, version in enumerate((0, 1, 6, 1 << 24), start=110):
        yield Case(
            f"{number}-version-{version}",
            f"{MILAN} that says it is of version {version}",
            partial(patched, MILAN, 0x000, version.to_bytes(4, "little")),
            (("report", "evidence_version_unsupported"),),
        )
    for number, algorithm in enumerate((0, 2), start=120):
        yield Case(
            f"{number}-signature-algorithm-{algorithm}",
            f"{MILAN} that says it is signed with algorithm {algorithm}",
            partial(patched, MILAN, 0x034, bytes((algorithm,))),
            (("report", "algorithm_not_allowed"),),
        )
    for number, (what, sample, offset, value) in enumerate(
        (
            ("must-be-one-bit-clear", MILAN, 0x00A, 0x01),
            ("first-reserved-bit-of-policy", MILAN, 0x00B, 0x04),
            ("last-reserved-bit-of-policy", MILAN, 0x00F, 0x80),
            ("reserved-key-information", MILAN, 0x048, 0x20),
            ("behind-key-information", MILAN, 0x04C, 0x01),
            ("behind-cpuid", MILAN, 0x18B, 0x01),
            ("behind-current-version", MILAN, 0x1EB, 0x01),
            ("behind-committed-version", MILAN, 0x1EF, 0x01),
            ("mitigations-before-version-5", MILAN, 0x1F8, 0x01),
            ("last-signed-byte", MILAN, 0x29F, 0x01),
            ("first-byte-behind-s", MILAN, 0x330, 0x01),
            ("last-byte", MILAN, 0x49F, 0x80),
            ("cpuid-in-version-2", "milan-v2-vcek", 0x188, 0x19),
            ("behind-mitigations", "turin-v5-vcek", 0x208, 0x01),
        ),
        start=130,
    ):
        yield Case(
            f"{number}-{what}",
            f"{sample} with {value:#04x} at {offset:#05x}, where that must not be",
            partial(patched, sample, offset, bytes((value,))),
            (("report", "reserved_not_zero"),),
        )


def _resized(size: int) -> Inputs:
    good = real(MILAN)
    return replace(good, report=(good.report * 2)[:size])
