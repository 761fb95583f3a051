"""Chains that no pinned root stands behind, and revocation."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from snp_case import Case, Inputs
from snp_material import MASKED_VLEK, chip, crls, made, other_ask, real, signed

from support.evidence import sample
from support.fake_amd import AT, amd_name, fake_amd
from tresor.attestation.roots import root

__all__ = ["chains", "revocation"]

MILAN: Final = "milan-v3-vcek"
DAY: Final = timedelta(days=1)


def chains() -> Iterator[Case]:
    """Yield chains that end elsewhere, or on whose way somebody does what is not their role."""
    for number, (what, title, inputs, code) in enumerate(
        (
            (
                "root-of-another-line",
                f"{MILAN} where Genoa's root is pinned for Milan",
                lambda: real(MILAN, roots={"Milan": _genoa_ark()}),
                "root_not_pinned",
            ),
            (
                "no-root-for-the-line",
                f"{MILAN} where only Genoa's root is pinned",
                lambda: real(MILAN, roots={"Genoa": _genoa_ark()}),
                "root_not_pinned",
            ),
            ("no-root-at-all", "milan-v2-vcek and no root", lambda: real("milan-v2-vcek", roots={}), "root_not_pinned"),
            (
                "own-hierarchy",
                "an AMD of one's own: names, extensions and signatures are right",
                lambda: made({"roots": None}),
                "root_not_pinned",
            ),
            ("own-root-in-the-bag", "the same, with its ARK among the certificates", _own_root, "root_not_pinned"),
            (
                "ask-of-another-key",
                "the ASK has the right name and did not sign the VCEK",
                lambda: replace(made(), certificates=(fake_amd().vcek().der, *fake_amd("Milan", "other").issuers)),
                "chain_invalid",
            ),
            ("vcek-by-the-ark", "a VCEK that the ARK signed itself", lambda: chip(issuer="ark"), "chain_invalid"),
            ("vcek-by-the-asvk", "a VCEK by whom VLEKs are signed", lambda: chip(issuer="asvk"), "chain_invalid"),
            (
                "vlek-by-the-ask",
                "a VLEK by whom VCEKs are signed",
                lambda: signed(fake_amd().vlek(issuer="ask"), fake_amd(), **MASKED_VLEK),
                "chain_invalid",
            ),
            (
                "vcek-by-a-vcek",
                "a VCEK that names another as its issuer",
                lambda: chip(issuer_name=amd_name("SEV-VCEK")),
                "chain_invalid",
            ),
            ("ask-expired", "the ASK ended a day ago", lambda: other_ask(not_after=AT - DAY), "certificate_expired"),
            ("ask-is-no-ca", "the ASK may not issue", lambda: other_ask(ca=False), "chain_invalid"),
            ("ask-may-not-sign", "the ASK's key has another usage", lambda: other_ask(may_sign=False), "chain_invalid"),
            (
                "ask-with-critical-extension",
                "the ASK has a critical extension that nobody understands",
                lambda: other_ask(critical_oid="1.3.6.1.4.1.99999.1"),
                "chain_invalid",
            ),
            ("ask-signs-itself", "the ARK did not sign the ASK", lambda: other_ask(issuer="ask"), "root_not_pinned"),
            (
                "ask-missing",
                "no ASK at hand signed this VCEK",
                lambda: made({"certificates": (fake_amd().vcek().der,)}),
                "chain_invalid",
            ),
        ),
        start=300,
    ):
        yield Case(f"{number}-{what}", title, inputs, (("endorsement", code),))


def revocation() -> Iterator[Case]:
    """Yield revocation lists: revoked, forged, out of their time, absent."""
    for name, title, inputs, code in (
        (
            "400-ask-revoked",
            "the ARK's list names the ASK",
            lambda: crls(fake_amd().crl([fake_amd().ask])),
            "certificate_revoked",
        ),
        (
            "401-ask-revoked-by-an-old-list",
            "a list past its next update names the ASK: revoked it stays",
            lambda: crls(_old_list([fake_amd().ask])),
            "certificate_revoked",
        ),
        (
            "402-ask-revoked-by-one-of-two",
            "one list names the ASK and a newer one does not",
            lambda: crls(fake_amd().crl(), _old_list([fake_amd().ask])),
            "certificate_revoked",
        ),
        (
            "403-crl-of-another-key",
            "a list in the ARK's name that it did not sign",
            lambda: crls(fake_amd().crl(issuer="ask")),
            "crl_invalid",
        ),
        ("404-crl-is-none", "a list that cannot be read", lambda: crls(b"no list"), "collateral_malformed"),
    ):
        yield Case(name, title, inputs, (("endorsement", code),))
    required = {"require_crl": True}
    yield Case(
        "405-crl-absent",
        "a list is required, and there is none",
        lambda: crls(**required),
        (("revocation", "revocation_unknown"),),
        "undecided",
    )
    yield Case(
        "406-crl-expired",
        "a list is required, and the one at hand is past its next update",
        lambda: crls(_old_list([]), **required),
        (("revocation", "crl_expired"),),
    )
    yield Case(
        "407-crl-not-yet-valid",
        "a list is required, and the one at hand is of tomorrow",
        lambda: crls(fake_amd().crl(last_update=AT + DAY), **required),
        (("revocation", "crl_not_yet_valid"),),
    )
    yield Case(
        "408-real-crl-expired",
        "genoa-v5-vcek with AMD's list of 2024 where a current one is required",
        _real_crl,
        (("revocation", "crl_expired"),),
    )
    yield Case(
        "409-crl-of-another-line-only",
        "a list is required, and the one at hand is Genoa's",
        lambda: crls(fake_amd("Genoa").crl(), **required),
        (("revocation", "revocation_unknown"),),
        "undecided",
    )


def _old_list(revoked: Iterable[x509.Certificate]) -> bytes:
    return fake_amd().crl(revoked, last_update=AT - 20 * DAY, next_update=AT - DAY)


def _real_crl() -> Inputs:
    crl = (sample("roots/amd") / "genoa_crl.pem").read_bytes()
    return real("genoa-v5-vcek", crls=(crl,), policy={"require_crl": True})


def _genoa_ark() -> bytes:
    return root("amd_genoa_ark").public_bytes(Encoding.DER)


def _own_root() -> Inputs:
    good = made({"roots": None})
    return replace(good, certificates=(*good.certificates, fake_amd().ark.public_bytes(Encoding.DER)))
