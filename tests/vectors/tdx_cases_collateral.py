"""TDX vectors about Intel's collateral: its form, its signatures, and what it says of enclave, module and platform."""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec
from tdx_case import COLLATERAL, Case, accepted, rejected, undecided

from support.fake_intel import (
    AT,
    INTEL,
    Intel,
    Platform,
    body,
    isv_level,
    qe_identity,
    qe_report,
    raw_signature,
    tcb_info,
    tcb_level,
)

SPEC: Final = "5.2.4"
MEMBERS: Final[dict[str, Any]] = msgspec.json.decode(COLLATERAL)
SECOND: Final = timedelta(seconds=1)
MODULE: Final = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
OLD: Final = ("INTEL-SA-01036", "INTEL-SA-01079")


def at(when: Any) -> str:
    """Write an instant as Intel does."""
    return str(when.strftime("%Y-%m-%dT%H:%M:%SZ"))


def with_member(name: str, value: object) -> bytes:
    """Return the good document with one member changed after signing."""
    return json.dumps({**MEMBERS, name: value}).encode()


def with_tcb(changes: Mapping[str, Any]) -> bytes:
    """Return collateral with changed members of its TCB information, signed."""
    return INTEL.collateral(tcb={**tcb_info(), **changes})


def with_qe(changes: Mapping[str, Any]) -> bytes:
    """Return collateral with changed members of its QE identity, signed."""
    return INTEL.collateral(qe={**qe_identity(), **changes})


def levels(*found: Mapping[str, Any]) -> tuple[bytes, ...]:
    """Return collateral with these levels of the platform."""
    return (INTEL.collateral(tcb=tcb_info(tcbLevels=list(found))),)


def exception(weakness: str, days: int = 30) -> dict[str, str]:
    """Accept a weakness for some days."""
    return {"weakness": weakness, "until": at(AT + timedelta(days=days)), "reason": "until the provider has moved"}


def collaterals() -> Iterator[Case]:
    """Make collateral that is missing, forged or out of force."""
    missing, malformed = "collateral_missing", "collateral_malformed"
    yield undecided("401-none", "no collateral", SPEC, missing, collateral=())
    other = Intel(platform=Platform(fmspc=bytes.fromhex("0a0b0c0d0e0f"))).collateral()
    yield undecided("402-other-fmspc", "collateral of another platform", SPEC, missing, collateral=(other,), dcap=False)
    for number, name, part in ((403, "tcb-info", with_tcb), (405, "qe-identity", with_qe)):
        for offset, what, code, member in (
            (0, "expired", "collateral_expired", {"nextUpdate": at(AT - SECOND)}),
            (1, "of-the-future", "collateral_not_yet_valid", {"issueDate": at(AT + SECOND)}),
        ):
            yield rejected(
                f"{number + offset}-{name}-{what}",
                f"{name} {what.replace('-', ' ')}",
                SPEC,
                code,
                collateral=(part(member),),
            )
    forged = "collateral_signature_invalid"
    status = MEMBERS["tcb_info"].replace('"OutOfDate"', '"UpToDate"')
    yield rejected(
        "407-status-changed", "a status changed", SPEC, forged, collateral=(with_member("tcb_info", status),)
    )
    again = json.dumps(tcb_info(), indent=1)
    yield rejected(
        "408-written-again",
        "TCB information with other white space",
        SPEC,
        forged,
        collateral=(with_member("tcb_info", again),),
    )
    signer = MEMBERS["qe_identity"].replace(qe_identity()["mrsigner"], "AB" * 32)
    yield rejected(
        "409-qe-identity-changed",
        "MRSIGNER of the QE identity changed",
        SPEC,
        forged,
        collateral=(with_member("qe_identity", signer),),
    )
    text = json.dumps(tcb_info())
    yield rejected(
        "410-signed-by-a-pck",
        "TCB information signed by a PCK, which chains to the same root; dcap-qvl lets it pass",
        SPEC,
        "chain_invalid",
        collateral=(
            INTEL.collateral(
                tcb=text,
                tcb_info_issuer_chain=INTEL.pem(INTEL.pck, INTEL.platform_ca, INTEL.root),
                tcb_info_signature=raw_signature(text.encode(), INTEL.pck.key).hex(),
            ),
        ),
        dcap=True,
    )
    stranger = Intel(world="stranger")
    yield rejected(
        "411-other-root",
        "collateral under another root of its name",
        SPEC,
        "root_not_pinned",
        collateral=(stranger.collateral(),),
    )
    gone = INTEL.issue("Intel SGX TCB Signing", INTEL.root, valid=(AT - timedelta(days=9), AT - SECOND))
    yield rejected(
        "412-signer-expired",
        "an expired signer",
        SPEC,
        "certificate_expired",
        collateral=(INTEL.collateral(signer=gone),),
    )
    for number, name, document in (
        (413, "tcb-info-of-sgx", INTEL.collateral(tcb=tcb_info(id="SGX"))),
        (414, "qe-identity-of-sgx", INTEL.collateral(qe=qe_identity(id="QE"))),
        (415, "unknown-status", levels(tcb_level("Fine"))[0]),
        (416, "member-missing", INTEL.collateral(pck_crl=...)),
        (417, "not-json", b"{"),
    ):
        title = name.replace("-", " ")
        yield rejected(f"{number}-{name}", title, SPEC, malformed, collateral=(document,))
    fifteen = tcb_level("UpToDate")
    fifteen["tcb"]["tdxtcbcomponents"].pop()
    for number, name, document in (
        (418, "member-twice", COLLATERAL[:-1] + b', "pck_crl": "00"}'),
        (419, "member-unknown", with_member("more", "")),
        (420, "fifteen-components", levels(fifteen)[0]),
    ):
        title = name.replace("-", " ")
        yield rejected(f"{number}-{name}", title, SPEC, malformed, collateral=(document,), dcap=None)
    yield rejected(
        "421-other-pceid",
        "collateral of another PCE, which dcap-qvl lets pass",
        SPEC,
        "collateral_mismatch",
        collateral=(INTEL.collateral(tcb=tcb_info(pceId="0001")),),
        dcap=True,
    )
    for number, name, document in (
        (422, "tcb-info", with_tcb({"tcbEvaluationDataNumber": 17})),
        (423, "qe-identity", with_qe({"tcbEvaluationDataNumber": 17})),
    ):
        yield rejected(
            f"{number}-{name}-rolled-back",
            f"an older evaluation of {name.replace('-', ' ')}",
            "5.2.3",
            "collateral_rolled_back",
            collateral=(document,),
            policy={"min_tcb_evaluation_data_number": 18},
            dcap=True,
        )
    yield accepted(
        "424-pck-chain-in-collateral",
        "a PCK chain in the collateral, as dcap-qvl writes it: not looked at",
        SPEC,
        collateral=(INTEL.collateral(pck_certificate_chain=stranger.pem(stranger.pck)),),
        dcap=None,
    )


def enclaves() -> Iterator[Case]:
    """Make quotes by quoting enclaves that are not Intel's, or old."""
    other = "qe_identity_mismatch"
    for number, name, change in (
        (451, "mrsigner", {"mrsigner": bytes(32)}),
        (452, "isvprodid", {"isvprodid": 1}),
        (453, "debug", {"attributes": bytes.fromhex("1700000000000000e700000000000000")}),
        (454, "miscselect", {"miscselect": 1}),
    ):
        yield rejected(
            f"{number}-enclave-{name}",
            f"{name.upper()} of the quoting enclave is not as Intel says",
            "5.2.5",
            other,
            quote=INTEL.quote(qe=qe_report(**change)),
        )
    yield rejected(
        "455-enclave-debug-allowed",
        "a quoting enclave in debug mode, and an identity that would let it pass",
        "5.2.5",
        other,
        quote=INTEL.quote(qe=qe_report(attributes=bytes.fromhex("1700000000000000e700000000000000"))),
        collateral=(INTEL.collateral(qe=qe_identity(attributesMask="00" * 16)),),
    )
    for number, name, isvsvn, code, dcap in (
        (456, "out-of-date", 2, "tcb_status_not_allowed", True),
        (457, "below-every-level", 1, "tcb_below_floor", False),
    ):
        yield rejected(
            f"{number}-enclave-{name}",
            f"a quoting enclave {name.replace('-', ' ')}",
            "5.2.5",
            code,
            quote=INTEL.quote(qe=qe_report(isvsvn=isvsvn)),
            dcap=dcap,
        )
    yield rejected(
        "458-enclave-revoked",
        "a revoked quoting enclave",
        "5.2.5",
        "platform_revoked",
        collateral=(INTEL.collateral(qe=qe_identity(tcbLevels=[isv_level("Revoked", 1)])),),
    )


def modules() -> Iterator[Case]:
    """Make quotes about TDX modules that are not Intel's, or old."""
    yield rejected(
        "471-module-signer",
        "a TDX module by another signer",
        "5.2.5",
        "signer_not_allowed",
        quote=INTEL.quote(td=body(mrsignerseam=b"\1" * 48)),
    )
    yield rejected(
        "472-module-attributes",
        "a TDX module with attributes",
        "5.2.5",
        "attributes_not_allowed",
        quote=INTEL.quote(td=body(seamattributes=b"\1" + bytes(7))),
    )
    for number, name, svn, code, dcap in (
        (473, "out-of-date", bytes([4, 1, 3]), "tcb_status_not_allowed", True),
        (474, "below-every-level", bytes([3, 1, 3]), "tcb_below_floor", False),
        (475, "of-unknown-version", bytes([9, 7, 3]), "tcb_below_floor", False),
    ):
        yield rejected(
            f"{number}-module-{name}",
            f"a TDX module {name.replace('-', ' ')}",
            "5.2.5",
            code,
            quote=INTEL.quote(td=body(tee_tcb_svn=svn.ljust(16, b"\0"))),
            dcap=dcap,
        )
    identity = {"id": "TDX_01", **MODULE, "tcbLevels": [isv_level("Revoked", 1)]}
    yield rejected(
        "476-module-revoked",
        "a revoked TDX module",
        "5.2.5",
        "platform_revoked",
        collateral=(INTEL.collateral(tcb=tcb_info(tdxModuleIdentities=[identity])),),
    )
    yield accepted(
        "477-module-of-version-0",
        "a module of the first major version, judged by the platform's levels",
        "5.2.5",
        quote=INTEL.quote(td=body(tee_tcb_svn=bytes([5, 0, 3]).ljust(16, b"\0"))),
    )


def tcb_levels() -> Iterator[Case]:
    """Make platforms in every state that Intel knows, and policies for them."""
    spec, refused = "5.2.5", "tcb_status_not_allowed"
    for number, status in (
        (501, "OutOfDate"),
        (502, "SWHardeningNeeded"),
        (503, "ConfigurationNeeded"),
        (504, "ConfigurationAndSWHardeningNeeded"),
        (505, "OutOfDateConfigurationNeeded"),
    ):
        found = levels(tcb_level(status, advisories=OLD))
        yield rejected(
            f"{number}-{status.lower()}", f"the platform is {status}", spec, refused, collateral=found, dcap=True
        )
    old = levels(tcb_level("OutOfDate", advisories=OLD))
    revoked, gone = levels(tcb_level("Revoked")), "platform_revoked"
    yield rejected("506-revoked", "the platform is revoked", spec, gone, collateral=revoked)
    yield rejected(
        "507-revoked-with-exception",
        "an exception for a revoked platform, which there cannot be",
        "5.2.3",
        gone,
        collateral=revoked,
        exceptions=(exception("Revoked"),),
    )
    yield accepted(
        "508-status-excepted",
        "OutOfDate, accepted by exception",
        "5.2.3",
        collateral=old,
        exceptions=(exception("OutOfDate"),),
    )
    yield rejected(
        "509-exception-ended",
        "OutOfDate, accepted until now",
        "5.2.3",
        refused,
        collateral=old,
        exceptions=(exception("OutOfDate", days=0),),
        dcap=True,
    )
    yield accepted(
        "510-advisories-excepted",
        "OutOfDate, each advisory accepted, one by policy and one by exception",
        "5.2.3",
        collateral=old,
        policy={"allowed_advisories": [OLD[0]]},
        exceptions=(exception(OLD[1]),),
    )
    yield rejected(
        "511-one-advisory-more",
        "OutOfDate, and one of two advisories accepted",
        "5.2.3",
        refused,
        collateral=old,
        exceptions=(exception(OLD[1]),),
        dcap=True,
    )
    yield rejected(
        "512-no-advisory",
        "OutOfDate without an advisory, and an exception for an advisory",
        "5.2.3",
        refused,
        collateral=levels(tcb_level("OutOfDate")),
        exceptions=(exception(OLD[1]),),
        dcap=True,
    )
    yield accepted(
        "513-status-allowed",
        "OutOfDate, allowed by policy",
        "5.2.3",
        collateral=old,
        policy={"allowed_tcb_statuses": ["UpToDate", "OutOfDate"]},
    )
    yield rejected(
        "514-nothing-allowed",
        "UpToDate, and an empty list of statuses",
        "5.2.3",
        refused,
        policy={"allowed_tcb_statuses": []},
        dcap=True,
    )
    below = "tcb_below_floor"
    for number, name, level in (
        (515, "component", tcb_level("UpToDate", sgx=bytes([3, 3, 2, 2, 4, 2]))),
        (516, "tdx-component", tcb_level("UpToDate", tdx=bytes([0, 0, 4]))),
        (517, "pcesvn", tcb_level("UpToDate", pcesvn=14)),
    ):
        yield rejected(
            f"{number}-{name}-below-every-level",
            f"one {name} below the only level, the others above",
            spec,
            below,
            collateral=levels(level),
        )
    yield accepted(
        "518-levels-in-another-order",
        "the lower level first",
        spec,
        collateral=levels(tcb_level("OutOfDate", pcesvn=11), tcb_level("UpToDate", pcesvn=13)),
    )
    updated = bytes([6, 1, 3]).ljust(16, b"\0")
    for number, name, svns, code, dcap in (
        (519, "updated-module", (4, 6), refused, True),
        (520, "updated-to-below", (6, 3), below, False),
    ):
        launch, current = (bytes([svn]) + updated[1:] for svn in svns)
        yield rejected(
            f"{number}-{name}",
            f"the module had SVN {svns[0]} at launch and has {svns[1]} now",
            spec,
            code,
            quote=INTEL.quote(version=5, td=body(tee_tcb_svn=launch, tee_tcb_svn2=current, mrservicetd=bytes(48))),
            dcap=dcap,
        )
    yield accepted(
        "521-relaunch-excepted",
        "a module updated beneath the domain, accepted by exception",
        "5.2.3",
        quote=INTEL.quote(
            version=5, td=body(tee_tcb_svn=b"\4" + updated[1:], tee_tcb_svn2=updated, mrservicetd=bytes(48))
        ),
        exceptions=(exception("TDRelaunchAdvised"),),
    )
    yield rejected(
        "522-svn-floor",
        "one component of TEE_TCB_SVN below the policy's floor, which as a number is the smaller one",
        "5.2.3",
        below,
        policy={"min_tee_tcb_svn": [7, 1, 1]},
        dcap=True,
    )
    yield accepted("523-svn-floor-met", "TEE_TCB_SVN at the floor", "5.2.3", policy={"min_tee_tcb_svn": [6, 1, 3]})
    for number, flag in ((524, "dynamic_platform"), (525, "smt")):
        yield rejected(
            f"{number}-{flag.replace('_', '-')}",
            f"{flag} is true, and not allowed",
            "5.2.3",
            "policy_bits_not_allowed",
            policy={f"allow_{flag}": False},
            dcap=True,
        )
    yield accepted(
        "526-no-cached-keys",
        "cached keys are not allowed, and there are none",
        "5.2.3",
        policy={"allow_cached_keys": False},
    )
