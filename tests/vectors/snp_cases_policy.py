"""Genuine reports that are not wanted, and such as bind something else."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from snp_case import Case, Inputs
from snp_material import MASKED_VLEK, made, policy, real, signed

from support.fake_amd import CHIP_ID, TCB, fake_amd

__all__ = ["binding", "guests", "launch_data", "platforms", "tcb_floors"]

MILAN: Final = "milan-v3-vcek"
POLICY: Final = 0x30000
REPORT_DATA: Final = bytes(range(64))


def _case(name: str, title: str, inputs: Callable[[], Inputs], check: str, code: str) -> Case:
    return Case(name, title, inputs, ((check, code),))


def guests() -> Iterator[Case]:
    """Yield what the guest's owner allowed and what the guest is."""
    yield _case("500-debug", "milan-v2-debug-policy", lambda: real("milan-v2-debug-policy"), "debug", "debug_enabled")
    yield _case(
        "501-migration-agent",
        "the guest may have a migration agent",
        lambda: made(policy=POLICY | 1 << 18),
        "migration_agent",
        "migration_agent_allowed",
    )
    yield Case(
        "502-debug-and-more",
        "every mismatch is listed",
        lambda: policy({"allowed_vmpls": []}, policy=POLICY | 1 << 18 | 1 << 19 | 1 << 21, vmpl=3),
        (
            ("debug", "debug_enabled"),
            ("migration_agent", "migration_agent_allowed"),
            ("guest_policy", "policy_bits_not_allowed"),
            ("vmpl", "vmpl_not_allowed"),
        ),
    )
    bits_of_policy: tuple[tuple[str, dict[str, Any], int], ...] = (
        ("smt", {"allow_smt": False}, POLICY),
        ("cxl", {}, POLICY | 1 << 21),
        ("several-sockets", {"required_policy": ["single_socket"]}, POLICY),
        ("rapl", {"required_policy": ["rapl_dis"]}, POLICY),
        ("ciphertext-seen", {"required_policy": ["ciphertext_hiding_dram"]}, POLICY),
        ("pages-swapped", {"required_policy": ["single_socket", "page_swap_disable"]}, POLICY | 1 << 20),
        ("aes-128", {"required_policy": ["mem_aes_256_xts"]}, POLICY),
    )
    for number, (what, rules, bits) in enumerate(bits_of_policy, start=503):
        yield _case(
            f"{number}-{what}",
            f"guest policy {bits:#x} under {rules or 'the default'}",
            partial(policy, rules, policy=bits),
            "guest_policy",
            "policy_bits_not_allowed",
        )
    vmpl = "vmpl_not_allowed"
    yield _case("510-vmpl-1", "milan-v3-vlek-aws: VMPL 1", lambda: real("milan-v3-vlek-aws"), "vmpl", vmpl)
    yield _case("511-vmpl-of-the-host", "the host asked", lambda: made(vmpl=0xFFFFFFFF), "vmpl", vmpl)
    yield _case(
        "512-vmpl-0-where-1-is-wanted",
        "an allow-list means what it says",
        lambda: policy({"allowed_vmpls": [1]}),
        "vmpl",
        vmpl,
    )


def platforms() -> Iterator[Case]:
    """Yield signers, chips, products, platform bits and firmware that are not wanted."""
    for number, (what, title, inputs, check, code) in enumerate(
        (
            (
                "vlek-not-allowed",
                "milan-v3-vlek-aws where the chip's own key must sign",
                lambda: real("milan-v3-vlek-aws", policy={"allowed_signers": ["vcek"], "allowed_vmpls": [1]}),
                "signer",
                "signer_not_allowed",
            ),
            (
                "vlek-of-another-cloud",
                "milan-v3-vlek-aws where another cloud's VLEK is wanted",
                lambda: real(
                    "milan-v3-vlek-aws", policy={"allowed_csp_ids": ["CN=cc-us-east-2"], "allowed_vmpls": [1]}
                ),
                "signer",
                "signer_not_allowed",
            ),
            (
                "vcek-not-allowed",
                "no signer is allowed",
                lambda: policy({"allowed_signers": []}),
                "signer",
                "signer_not_allowed",
            ),
            (
                "product-not-allowed",
                "Milan where it is not trusted any more",
                lambda: policy({"allowed_products": ["Genoa", "Turin"]}),
                "platform",
                "platform_not_allowed",
            ),
            (
                "alias-check-not-complete",
                "memory whose aliases nobody looked for",
                lambda: policy({"required_platform_info": ["alias_check_complete"]}, platform_info=0x5),
                "platform",
                "platform_not_allowed",
            ),
            (
                "chip-denied",
                "a chip whose secrets are known",
                lambda: policy({"denied_chip_ids": [CHIP_ID.hex()]}),
                "chip_id",
                "platform_not_allowed",
            ),
            (
                "chip-not-allowed",
                "a chip that is none of ours",
                lambda: policy({"allowed_chip_ids": ["ff" * 64]}),
                "chip_id",
                "platform_not_allowed",
            ),
            (
                "no-chip-allowed",
                "an empty allow-list allows nothing",
                lambda: policy({"allowed_chip_ids": []}),
                "chip_id",
                "platform_not_allowed",
            ),
            (
                "chip-masked",
                "a VCEK's report that tells no chip",
                lambda: made(chip_id=bytes(64), key_information=2),
                "chip_id",
                "chip_id_masked",
            ),
            (
                "chip-key-masked",
                "MASK_CHIP_KEY, and yet a VCEK's signature",
                lambda: made(key_information=2),
                "chip_id",
                "chip_id_masked",
            ),
            (
                "chip-masked-where-chips-are-denied",
                "a VLEK's report that tells no chip, where some are denied",
                lambda: signed(
                    fake_amd().vlek(), fake_amd(), {"policy": {"denied_chip_ids": ["ff" * 64]}}, **MASKED_VLEK
                ),
                "chip_id",
                "chip_id_masked",
            ),
            (
                "chip-masked-where-chips-are-allowed",
                "the same by name where only some are allowed",
                lambda: policy({"allowed_chip_ids": ["ff" * 64], "allow_masked_chip_id": True}, chip_id=bytes(64)),
                "chip_id",
                "platform_not_allowed",
            ),
            (
                "provisional-firmware",
                "firmware that its host can take back, by version",
                lambda: policy({"require_committed_firmware": True}, current_version=bytes((30, 55, 1))),
                "firmware",
                "provisional_firmware",
            ),
            (
                "provisional-firmware-by-tcb",
                "the same, by security version",
                lambda: policy({"require_committed_firmware": True}, current_tcb={**TCB, "snp": 25}),
                "firmware",
                "provisional_firmware",
            ),
        ),
        start=520,
    ):
        yield _case(f"{number}-{what}", title, inputs, check, code)


def tcb_floors() -> Iterator[Case]:
    """Yield TCB versions below a floor: part by part, for each version that a report states."""
    reported = {"bl": 4, "tee": 0, "snp": 24, "ucode": 219}
    for number, part in enumerate(reported, start=540):
        yield _case(
            f"{number}-{part}-below",
            f"{MILAN} where {part} must be one more",
            partial(_floor, MILAN, {**reported, part: reported[part] + 1}),
            "tcb",
            "tcb_below_floor",
        )
    yield _case(
        "544-larger-as-an-integer",
        f"{MILAN} under a floor that is smaller as a 64-bit number",
        lambda: _floor(MILAN, {"bl": 5, "tee": 0, "snp": 0, "ucode": 0}),
        "tcb",
        "tcb_below_floor",
    )
    yield _case(
        "545-between-reported-and-current",
        "milan-v2-vcek: microcode 206 runs, 115 is reported, 116 is wanted",
        lambda: _floor("milan-v2-vcek", {"bl": 3, "tee": 0, "snp": 8, "ucode": 116}),
        "tcb",
        "tcb_below_floor",
    )
    yield _case(
        "546-fmc-below",
        "turin-v5-vcek where fmc must be one more",
        lambda: _floor("turin-v5-vcek", {"fmc": 2, "bl": 1, "tee": 1, "snp": 4, "ucode": 81}, "Turin"),
        "tcb",
        "tcb_below_floor",
    )
    for number, field in enumerate(("launch_tcb", "committed_tcb", "current_tcb"), start=547):
        yield _case(
            f"{number}-{field.replace('_', '-')}-below",
            f"{field.upper()} is below the floor, REPORTED_TCB is not",
            partial(
                policy,
                {"min_tcb": {"Milan": reported}, "skip_tcb_floor": False},
                **{field: {**TCB, "snp": 23}},
            ),
            "tcb",
            "tcb_below_floor",
        )
    yield _case(
        "550-line-without-a-floor",
        f"{MILAN} where only Genoa has a floor",
        lambda: _floor(MILAN, {"bl": 0, "tee": 0, "snp": 0, "ucode": 0}, "Genoa"),
        "tcb",
        "tcb_below_floor",
    )
    yield _case(
        "551-no-floor-at-all",
        "a floor is wanted and none is given",
        lambda: policy({"skip_tcb_floor": False}),
        "tcb",
        "tcb_below_floor",
    )


def _floor(name: str, floor: dict[str, int], product: str = "Milan") -> Inputs:
    return real(name, policy={"min_tcb": {product: floor}, "skip_tcb_floor": False})


def launch_data() -> Iterator[Case]:
    """Yield measurements, host data and ID blocks that are not wanted."""
    measurement = "measurement_not_allowed"
    other = real("milan-v2-vcek").report[0x090:0x0C0].hex()
    yield _case(
        "560-measurement-of-another",
        f"{MILAN} where the measurement of milan-v2-vcek is allowed",
        lambda: real(MILAN, policy={"allowed_measurements": [other], "skip_measurement": False}),
        "measurement",
        measurement,
    )
    yield _case(
        "561-no-measurement-allowed",
        "an empty allow-list allows nothing",
        lambda: policy({"skip_measurement": False}),
        "measurement",
        measurement,
    )
    yield _case(
        "562-measurement-in-upper-case",
        "one spelling only: what is not spelled so is not on the list",
        lambda: policy({"allowed_measurements": ["ab" * 47 + "ac"], "skip_measurement": False}),
        "measurement",
        measurement,
    )
    for number, (member, check, code, size) in enumerate(
        (
            ("allowed_host_data", "host_data", "host_data_not_allowed", 32),
            ("allowed_id_key_digests", "id_key_digest", "id_block_not_allowed", 48),
            ("allowed_author_key_digests", "author_key_digest", "id_block_not_allowed", 48),
            ("allowed_family_ids", "family_id", "id_block_not_allowed", 16),
            ("allowed_image_ids", "image_id", "id_block_not_allowed", 16),
        )
    ):
        yield _case(
            f"{563 + 2 * number}-other-{check.replace('_', '-')}",
            f"{check.upper()} is another",
            partial(policy, {member: ["00" * size]}),
            check,
            code,
        )
        yield _case(
            f"{564 + 2 * number}-no-{check.replace('_', '-')}-allowed",
            f"an empty list of {check.upper()} allows nothing",
            partial(policy, {member: []}),
            check,
            code,
        )
    yield _case(
        "573-guest-svn-below",
        "GUEST_SVN 2 where 3 is wanted",
        lambda: policy({"min_guest_svn": 3}),
        "guest_svn",
        "id_block_not_allowed",
    )


def binding() -> Iterator[Case]:
    """Yield REPORT_DATA that binds something else."""
    for number, (what, title, expected) in enumerate(
        (
            ("other-byte", "the last byte is another", REPORT_DATA[:-1] + b"\x40"),
            ("short-pin", "the first half alone", REPORT_DATA[:32]),
            ("padded-pin", "the first half, and zeros behind it", REPORT_DATA[:32] + bytes(32)),
            ("halves-exchanged", "the halves change places", REPORT_DATA[32:] + REPORT_DATA[:32]),
            ("nothing", "nothing is something else than not to expect anything", b""),
        ),
        start=600,
    ):
        yield _case(
            f"{number}-{what}",
            f"REPORT_DATA: {title}",
            partial(made, {"report_data": expected}),
            "report_data",
            "report_data_mismatch",
        )
    for number, (what, title, nonce, held) in enumerate(
        (
            ("nonce-of-another", "the nonce of another request", b"n" * 32, REPORT_DATA),
            ("nonce-in-the-first-half", "something else stands behind the nonce", REPORT_DATA[:32], REPORT_DATA),
            ("nonce-in-the-middle", "the nonce crosses the middle", REPORT_DATA[16:48], REPORT_DATA),
            ("nonce-as-a-suffix", "only the end of the second half is the nonce", REPORT_DATA[48:], REPORT_DATA),
            ("nonce-of-zeros", "REPORT_DATA that nobody filled holds every nonce of zeros", bytes(32), bytes(64)),
            ("nonce-empty", "an empty nonce stands everywhere", b"", bytes(64)),
            ("nonce-too-long", "a nonce of 65 bytes", REPORT_DATA + b"\x40", REPORT_DATA),
            ("nonce-cut", "a nonce with one byte more", b"n" * 33, b"n" * 32 + bytes(32)),
        ),
        start=610,
    ):
        yield _case(
            f"{number}-{what}",
            f"nonce: {title}",
            partial(made, {"nonce": nonce}, report_data=held),
            "nonce",
            "nonce_mismatch",
        )
