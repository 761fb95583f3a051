"""TDX vectors about certificates and revocation lists."""

from collections.abc import Iterator
from datetime import timedelta

from tdx_case import COLLATERAL, Case, accepted, rejected, undecided

from support.fake_intel import AT, INTEL, Intel, Issued, sgx_extension, tcb_info

DAY = timedelta(days=1)
STRANGER = Intel(world="stranger")
PCK = "Intel SGX PCK Certificate"


def carrying(pck: Issued, *rest: Issued) -> bytes:
    """Return a quote by a PCK, with these certificates."""
    return INTEL.quote(pck=pck, certification=(5, INTEL.pem(pck, *rest).encode()))


def leaf(issuer: Issued, world: str = "intel", **shape: object) -> Issued:
    """Issue a PCK certificate for the good platform."""
    return INTEL.issue(PCK, issuer, extension=sgx_extension(INTEL.platform), world=world, **shape)


def chains() -> Iterator[Case]:
    """Make quotes whose PCK chain does not hold."""
    yield rejected(
        "301-other-root",
        "a hierarchy with all the right names and another root",
        "5.2.2",
        "root_not_pinned",
        quote=STRANGER.quote(),
        collateral=(STRANGER.collateral(),),
    )
    early = leaf(INTEL.platform_ca, valid=(AT + DAY, AT + 2 * DAY))
    late = leaf(INTEL.platform_ca, valid=(AT - 2 * DAY, AT - DAY))
    yield rejected(
        "302-pck-not-yet-valid",
        "PCK certificate of tomorrow",
        "5.2.2",
        "certificate_not_yet_valid",
        quote=carrying(early, INTEL.platform_ca, INTEL.root),
    )
    yield rejected(
        "303-pck-expired",
        "PCK certificate of yesterday",
        "5.2.2",
        "certificate_expired",
        quote=carrying(late, INTEL.platform_ca, INTEL.root),
    )
    old_ca = INTEL.issue("Intel SGX PCK Platform CA", INTEL.root, ca=True, valid=(AT - 2 * DAY, AT - DAY))
    yield rejected(
        "304-ca-expired",
        "an expired issuer of the PCK certificate",
        "5.2.2",
        "certificate_expired",
        quote=carrying(INTEL.pck, old_ca, INTEL.root),
    )
    yield rejected(
        "305-other-ca",
        "a PCK certificate by a CA of the right name and another key",
        "5.2.2",
        "chain_invalid",
        quote=carrying(leaf(STRANGER.platform_ca), INTEL.platform_ca, INTEL.root),
    )
    yield undecided(
        "306-ca-missing",
        "the issuer of the PCK certificate is missing",
        "5.2.2",
        "endorsement_missing",
        quote=carrying(INTEL.pck, INTEL.root),
        dcap=False,
    )
    below = INTEL.issue("Below", INTEL.pck, extension=sgx_extension(INTEL.platform))
    yield rejected(
        "307-pck-as-ca",
        "a PCK certificate issued by a PCK",
        "5.2.2",
        "chain_invalid",
        quote=carrying(below, INTEL.pck, INTEL.platform_ca, INTEL.root),
    )
    yield accepted(
        "308-root-in-quote",
        "another root in the quote, which counts for nothing",
        "5.2.2",
        quote=carrying(INTEL.pck, INTEL.platform_ca, STRANGER.root),
    )
    yield rejected(
        "309-signer-of-collateral-as-pck",
        "a QE report signed by the key for collateral",
        "5.2.2",
        "certificate_extension_missing",
        quote=carrying(INTEL.tcb_signer, INTEL.root),
    )


def revocations() -> Iterator[Case]:
    """Make collateral with lists that revoke, or that are not what they should be."""
    revoked, spec = "certificate_revoked", "5.2.4"
    year = INTEL.valid[1]
    lists = {
        "pck": INTEL.crl(INTEL.platform_ca, revoked=[INTEL.pck]),
        "ca": INTEL.crl(INTEL.root, revoked=[INTEL.platform_ca], ends=year),
        "signer": INTEL.crl(INTEL.root, revoked=[INTEL.tcb_signer], ends=year),
    }
    gone = INTEL.collateral(pck_crl=lists["pck"])
    yield rejected("351-pck-revoked", "the PCK certificate is revoked", spec, revoked, collateral=(gone,))
    yield rejected(
        "352-ca-revoked",
        "the issuer of the PCK certificate is revoked",
        spec,
        revoked,
        collateral=(INTEL.collateral(root_ca_crl=lists["ca"]),),
    )
    yield rejected(
        "353-signer-revoked",
        "the signer of the collateral is revoked",
        spec,
        revoked,
        collateral=(INTEL.collateral(root_ca_crl=lists["signer"]),),
    )
    ended = INTEL.crl(INTEL.platform_ca, ends=AT - timedelta(seconds=1))
    yield rejected(
        "354-crl-expired", "the PCK's CRL has ended", spec, "crl_expired", collateral=(INTEL.collateral(pck_crl=ended),)
    )
    future = INTEL.crl(INTEL.platform_ca, issued=AT + timedelta(seconds=1))
    yield rejected(
        "355-crl-of-the-future",
        "the PCK's CRL was issued later, which dcap-qvl lets pass",
        spec,
        "crl_not_yet_valid",
        collateral=(INTEL.collateral(pck_crl=future),),
        dcap=True,
    )
    yield rejected(
        "356-crl-of-another-issuer",
        "the CRL of the CA for platforms of one package",
        spec,
        "crl_invalid",
        collateral=(
            INTEL.collateral(
                pck_crl=INTEL.crl(INTEL.processor_ca), pck_crl_issuer_chain=INTEL.pem(INTEL.processor_ca, INTEL.root)
            ),
        ),
    )
    forged = INTEL.crl(INTEL.platform_ca, key=STRANGER.platform_ca.key)
    yield rejected(
        "357-crl-forged",
        "the PCK's CRL by another key",
        spec,
        "crl_invalid",
        collateral=(INTEL.collateral(pck_crl=forged),),
    )
    ended = INTEL.crl(INTEL.root, ends=AT - timedelta(seconds=1))
    yield rejected(
        "358-root-crl-expired",
        "the root's CRL has ended",
        spec,
        "crl_expired",
        collateral=(INTEL.collateral(root_ca_crl=ended),),
    )
    yield rejected(
        "359-root-crl-of-another-root",
        "the root's CRL by another root of its name",
        spec,
        "crl_invalid",
        collateral=(INTEL.collateral(root_ca_crl=STRANGER.crl(STRANGER.root, ends=year)),),
    )
    future = INTEL.crl(INTEL.root, issued=AT + timedelta(seconds=1), ends=year)
    yield rejected(
        "360-root-crl-of-the-future",
        "the root's CRL was issued later, which dcap-qvl lets pass",
        spec,
        "crl_not_yet_valid",
        collateral=(INTEL.collateral(root_ca_crl=future),),
        dcap=True,
    )
    yield rejected(
        "361-crl-empty", "an empty CRL", spec, "collateral_malformed", collateral=(INTEL.collateral(pck_crl=""),)
    )
    older = INTEL.collateral(tcb=tcb_info(tcbEvaluationDataNumber=17), pck_crl=lists["pck"])
    yield rejected(
        "362-revoked-by-either",
        "revoked by one document of two, the one that does not count otherwise",
        spec,
        revoked,
        collateral=(older, COLLATERAL),
    )
    yield rejected(
        "363-lists-exchanged",
        "the two CRLs in each other's place",
        spec,
        "crl_invalid",
        collateral=(
            INTEL.collateral(pck_crl=INTEL.crl(INTEL.root, ends=year), root_ca_crl=INTEL.crl(INTEL.platform_ca)),
        ),
    )
    yield rejected(
        "364-crl-ends-now", "the very second at which the CRLs end", spec, "crl_expired", at=AT + timedelta(days=29)
    )
