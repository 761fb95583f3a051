"""What is acceptable of AMD SEV-SNP reports (docs/spec/attestation.md, 5.1.4 and 7)."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tresor.attestation.snp.tcb import LAYOUTS, Component, Product

__all__ = ["SnpPolicy"]

_MAX = Meta(max_length=4096)
_Hex16 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Hex48 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{96}\Z")]
_Hex64 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]
_Version = Annotated[int, Meta(ge=0, le=255)]
_Vmpl = Annotated[int, Meta(ge=0, le=3)]


class SnpPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for SEV-SNP reports; hexadecimal is lower-case.  A guest under DEBUG or MIGRATE_MA is refused by every one.

    An allow-list that may be left out (None) restricts nothing, and one that is empty allows nothing.

    Attributes:
        allowed_measurements: values of MEASUREMENT.
        skip_measurement: hold MEASUREMENT against nothing: then the workload is not shown.
        min_tcb: product line to the least security version of each of its parts.  It binds REPORTED_TCB, to which the
            key that signed belongs, and also LAUNCH_TCB, under which the guest's memory was made, COMMITTED_TCB, to
            which the firmware can be rolled back, and CURRENT_TCB.  A product line without a floor is refused.
        skip_tcb_floor: hold no TCB against anything: then the TCB is not shown.
        allowed_products: product lines.
        allowed_signers: whose key may sign: the chip's own (`vcek`), or one that AMD lends to a cloud (`vlek`).
        allowed_csp_ids: CSP_ID of VLEKs: the clouds, letter for letter as AMD writes them.
        allowed_vmpls: privilege levels; 0 is the most privileged.
        allowed_chip_ids: values of CHIP_ID, where only these chips are trusted.
        denied_chip_ids: values of CHIP_ID whose secrets are known to have leaked.
        allow_masked_chip_id: accept a report that does not tell its chip where its key is the chip's own.
        require_crl: want a current revocation list of the ARK.
        require_committed_firmware: refuse firmware that its host has loaded and can still take back.
        allow_smt: accept guests that may run with a sibling thread.
        allow_cxl: accept guests whose memory may lie behind CXL.
        required_policy: bits of POLICY that must be set.
        required_platform_info: bits of PLATFORM_INFO that must be set.
        min_guest_svn: least GUEST_SVN.
        allowed_host_data: values of HOST_DATA, which the host chose at launch.
        allowed_id_key_digests: SHA-384 of the keys that may have signed the ID block.
        allowed_author_key_digests: SHA-384 of the keys that may have signed those.
        allowed_family_ids: values of FAMILY_ID.
        allowed_image_ids: values of IMAGE_ID.
    """

    allowed_measurements: Annotated[tuple[_Hex48, ...], _MAX] = ()
    skip_measurement: bool = True
    min_tcb: dict[Product, dict[Component, _Version]] = {}
    skip_tcb_floor: bool = True
    allowed_products: tuple[Product, ...] = ("Milan", "Genoa", "Turin")
    allowed_signers: tuple[Literal["vcek", "vlek"], ...] = ("vcek", "vlek")
    allowed_csp_ids: Annotated[tuple[str, ...], _MAX] | None = None
    allowed_vmpls: tuple[_Vmpl, ...] = (0,)
    allowed_chip_ids: Annotated[tuple[_Hex64, ...], _MAX] | None = None
    denied_chip_ids: Annotated[tuple[_Hex64, ...], _MAX] = ()
    allow_masked_chip_id: bool = False
    require_crl: bool = False
    require_committed_firmware: bool = False
    allow_smt: bool = True
    allow_cxl: bool = False
    required_policy: tuple[
        Literal["single_socket", "mem_aes_256_xts", "rapl_dis", "ciphertext_hiding_dram", "page_swap_disable"], ...
    ] = ()
    required_platform_info: tuple[
        Literal[
            "tsme_en",
            "ecc_en",
            "rapl_dis",
            "ciphertext_hiding_dram_en",
            "alias_check_complete",
            "iommu_write_safe",
            "tio_en",
        ],
        ...,
    ] = ()
    min_guest_svn: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    allowed_host_data: Annotated[tuple[_Hex32, ...], _MAX] | None = None
    allowed_id_key_digests: Annotated[tuple[_Hex48, ...], _MAX] | None = None
    allowed_author_key_digests: Annotated[tuple[_Hex48, ...], _MAX] | None = None
    allowed_family_ids: Annotated[tuple[_Hex16, ...], _MAX] | None = None
    allowed_image_ids: Annotated[tuple[_Hex16, ...], _MAX] | None = None

    def __post_init__(self) -> None:
        if self.allowed_measurements and self.skip_measurement:
            raise ValueError("allowed_measurements is given and skip_measurement is true: say skip_measurement = false")
        if self.min_tcb and self.skip_tcb_floor:
            raise ValueError("min_tcb is given and skip_tcb_floor is true: say skip_tcb_floor = false")
        for product, floor in self.min_tcb.items():
            if floor.keys() != LAYOUTS[product].keys():
                raise ValueError(f"min_tcb.{product} must name exactly {', '.join(LAYOUTS[product])}")
