"""What must be accepted, however odd it looks."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Final

from snp_case import Case, Inputs
from snp_material import MASKED_VLEK, chip, crls, made, policy, real, signed, turin

from support.evidence import sample
from support.fake_amd import AT, CHIP_ID, fake_amd

__all__ = ["good"]

REPORT_DATA: Final = bytes(range(64))
DAY: Final = timedelta(days=1)
EVERY_RESTRICTION: Final = {
    "allowed_measurements": ["00" * 48, "ab" * 48],
    "skip_measurement": False,
    "min_tcb": {"Milan": {"bl": 4, "tee": 0, "snp": 24, "ucode": 219}},
    "skip_tcb_floor": False,
    "allowed_products": ["Milan"],
    "allowed_signers": ["vcek"],
    "allowed_chip_ids": [CHIP_ID.hex()],
    "denied_chip_ids": ["00" * 64],
    "require_committed_firmware": True,
    "allow_smt": False,
    "required_policy": ["single_socket"],
    "required_platform_info": ["ecc_en", "alias_check_complete"],
    "min_guest_svn": 2,
    "allowed_host_data": ["cd" * 32],
    "allowed_id_key_digests": ["1d" * 48],
    "allowed_author_key_digests": ["a0" * 48],
    "allowed_family_ids": ["fa" * 16],
    "allowed_image_ids": ["1a" * 16],
}


def good() -> Iterator[Case]:
    """Yield the good ones."""
    for name, title, inputs in (
        ("001-milan-v2", "milan-v2-vcek: the product comes from the certificate", lambda: real("milan-v2-vcek")),
        ("002-milan-v3", "milan-v3-vcek", lambda: real("milan-v3-vcek")),
        ("003-genoa-v5", "genoa-v5-vcek: CPUID model A0h is of the line Genoa", lambda: real("genoa-v5-vcek")),
        ("004-turin-v5", "turin-v5-vcek: HWID of 8 bytes, TCB with FMC", lambda: real("turin-v5-vcek")),
        ("005-among-other-vceks", "milan-v3-vcek among VCEKs of other chips and a look-alike", _among_others),
        ("006-turin", "a made-up Turin", turin),
        ("007-vlek", "a key lent to a cloud", lambda: signed(fake_amd().vlek(), fake_amd(), **MASKED_VLEK)),
        (
            "008-hwid-as-octet-string",
            "HWID as a DER OCTET STRING, as AMD's specification writes it",
            lambda: chip(changed={"4": b"\x04\x40" + CHIP_ID}),
        ),
        (
            "009-vlek-at-vmpl-1",
            "milan-v3-vlek-aws where VMPL 1 is allowed",
            lambda: real("milan-v3-vlek-aws", policy={"allowed_vmpls": [0, 1]}),
        ),
        (
            "010-current-crl",
            "a current revocation list, which is required, names someone else",
            lambda: crls(fake_amd().crl([fake_amd().asvk]), require_crl=True),
        ),
        ("011-crl-of-a-replaced-ask", "AMD's list names 020001, and the ASK of genoa-v5-vcek is 020002", _real_crl),
        (
            "012-crl-of-others",
            "a revocation list of another line, which is not asked about this one",
            lambda: crls(fake_amd("Genoa").crl([fake_amd().ask])),
        ),
        (
            "013-expired-crl",
            "a revocation list past its next update, where none is required",
            lambda: crls(fake_amd().crl(last_update=AT - 2 * DAY, next_update=AT - DAY)),
        ),
        ("014-everything-held", "every restriction of a policy, and all of them met", _everything_held),
        (
            "015-masked-chip-by-name",
            "a VCEK's report that tells no chip, where the policy allows that",
            lambda: policy({"allow_masked_chip_id": True}, chip_id=bytes(64), key_information=2),
        ),
        (
            "016-nonce-before-zeros",
            "the nonce stands at the beginning and the rest is zero",
            lambda: made({"nonce": b"n" * 32}, report_data=b"n" * 32 + bytes(32)),
        ),
        (
            "017-nonce-in-the-second-half",
            "the nonce is the second half",
            lambda: made({"nonce": REPORT_DATA[32:], "report_data": REPORT_DATA}, report_data=REPORT_DATA),
        ),
        (
            "018-new-microcode",
            "milan-v2-vcek: microcode was loaded that is not committed, and the firmware is",
            lambda: real("milan-v2-vcek", policy={"require_committed_firmware": True}),
        ),
        (
            "019-unknown-platform-info",
            "a bit of PLATFORM_INFO that AMD has not given a name yet",
            lambda: made(platform_info=1 << 40),
        ),
    ):
        yield Case(name, title, inputs, outcome="accepted")


def _among_others() -> Inputs:
    own = real("milan-v3-vcek")
    others = [der for name in ("milan-v2-vcek", "genoa-v5-vcek") for der in real(name).certificates]
    look_alike = fake_amd().vcek(chip_id=own.report[0x1A0:0x1E0]).der  # of this very chip and TCB, by another AMD
    return replace(own, certificates=(b"no certificate", *others, look_alike, *own.certificates))


def _real_crl() -> Inputs:
    return real("genoa-v5-vcek", crls=((sample("roots/amd") / "genoa_crl.pem").read_bytes(),))


def _everything_held() -> Inputs:
    bound = {"report_data": REPORT_DATA, "nonce": REPORT_DATA[32:], "policy": EVERY_RESTRICTION}
    return made(bound, policy=(1 << 17) | (1 << 20), platform_info=0x24)
