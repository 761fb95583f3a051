"""Good reports to break: of real hardware, and of an AMD of the tests' own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from snp_case import Inputs

from support.evidence import sample, verify_at
from support.fake_amd import Chip, FakeAmd, fake_amd, make_report
from tresor.attestation.x509 import split_certificates

__all__ = ["MASKED_VLEK", "chip", "crls", "made", "other_ask", "patched", "policy", "real", "signed", "turin"]

MASKED_VLEK: Final[dict[str, Any]] = {"key_information": 1 << 2, "chip_id": bytes(64)}
"""Fields of a report that a VLEK signs: no chip is told."""


def real(name: str, **changes: Any) -> Inputs:
    """Return a sample of real hardware, as it is collected, under AMD's own roots."""
    folder = sample(f"snp/{name}")
    files = [folder / file for file in ("vcek.der", "vcek.pem", "vlek.der") if (folder / file).exists()]
    good = Inputs(
        report=(folder / "report.bin").read_bytes(),
        certificates=tuple(der for file in files for der in split_certificates(file.read_bytes())),
        at=verify_at(f"snp/{name}"),
    )
    return replace(good, **changes)


def patched(name: str, offset: int, value: bytes) -> Inputs:
    """Return a sample with other bytes in its report."""
    good = real(name)
    return replace(good, report=good.report[:offset] + value + good.report[offset + len(value) :])


def signed(by: Chip, amd: FakeAmd, changes: Mapping[str, Any] | None = None, **fields: Any) -> Inputs:
    """Return a good report with other `fields`, signed by a chip of `amd`, and inputs with other `changes`."""
    good = Inputs(
        report=by.sign(make_report(amd.product, **fields)),
        certificates=(by.der, *amd.issuers),
        roots={amd.product: amd.ark.public_bytes(Encoding.DER)},
    )
    return replace(good, **(changes or {}))


def made(changes: Mapping[str, Any] | None = None, **fields: Any) -> Inputs:
    """Return the same of a made-up Milan."""
    return signed(fake_amd().vcek(), fake_amd(), changes, **fields)


def turin(fields: Mapping[str, Any] | None = None, **certificate: Any) -> Inputs:
    """Return the same of a made-up Turin whose certificate differs."""
    return signed(fake_amd("Turin").vcek(**certificate), fake_amd("Turin"), **(fields or {}))


def chip(**certificate: Any) -> Inputs:
    """Return a good report of a made-up Milan whose certificate differs."""
    return signed(fake_amd().vcek(**certificate), fake_amd())


def other_ask(**certificate: Any) -> Inputs:
    """Return a good report under an ASK whose certificate differs."""
    good = made()
    ask = fake_amd().authority("SEV-Milan", "ask", **certificate)
    return replace(good, certificates=(good.certificates[0], ask.public_bytes(Encoding.DER)))


def policy(changes: Mapping[str, Any], **fields: Any) -> Inputs:
    """Return a good report under another policy."""
    return made({"policy": changes}, **fields)


def crls(*documents: bytes, **rules: Any) -> Inputs:
    """Return a good report with revocation lists."""
    return made({"crls": documents, "policy": rules})
