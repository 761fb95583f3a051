"""Which way to evidence this machine has.

    Azure's vTPM   ->   configfs-tsm   ->   /dev/sev-guest

Azure comes first because its guests may show the other two as well, for reports that are not theirs to ask for.  What
is there decides, never an environment variable; and nothing falls back to a simulation, which has to be asked for by
name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tresor.attestation.blocks import Tee
from tresor.identity.source import EvidenceSource, EvidenceSourceError, SourceCode
from tresor.identity.sources import azure_vtpm, configfs_tsm, sev_guest
from tresor.identity.sources.azure_vtpm import AzureVtpmSource
from tresor.identity.sources.configfs_tsm import ConfigfsTsmSource
from tresor.identity.sources.sev_guest import SevGuestSource
from tresor.identity.sources.simulated import SimulatedSource, open_root

__all__ = ["SourcePaths", "open_source"]

_TDX_GUEST: Final = Path("/dev/tdx_guest")


@dataclass(frozen=True, slots=True)
class SourcePaths:
    """Where the kernel has its interfaces; others in containers and tests.

    Attributes:
        tpm: device file of the TPM with the kernel's resource manager.
        tsm: directory of configfs-tsm in which entries are made.
        sev_guest: device file of the SEV guest driver.
        simulated_root: private key of the root of simulated evidence, made where it does not exist.
    """

    tpm: Path = azure_vtpm.DEFAULT_DEVICE
    tsm: Path = configfs_tsm.DEFAULT_ROOT
    sev_guest: Path = sev_guest.DEFAULT_DEVICE
    simulated_root: Path = Path("simulated-root.pem")


@dataclass(frozen=True, slots=True)
class _Way:
    name: str
    tees: frozenset[Tee]
    open: Callable[[SourcePaths], EvidenceSource]


_WAYS: Final[Sequence[_Way]] = (
    _Way("Azure vTPM", frozenset({"azure-sev-snp", "azure-tdx"}), lambda paths: AzureVtpmSource(paths.tpm)),
    _Way("configfs-tsm", frozenset({"sev-snp", "tdx"}), lambda paths: ConfigfsTsmSource(paths.tsm)),
    _Way("SEV guest device", frozenset({"sev-snp"}), lambda paths: SevGuestSource(paths.sev_guest)),
)


def open_source(tee: Tee | Literal["auto"], paths: SourcePaths, *, image_digest: bytes = b"") -> EvidenceSource:
    """Open the first way to evidence that this machine has, of the TEE asked for.

    Args:
        tee: what must make the evidence; `auto` for any TEE of hardware, never a simulated one.
        paths: where to look.
        image_digest: of what runs, as simulated evidence is to measure it; hardware measures itself.

    Raises:
        EvidenceSourceError: there is none.  The message names all that was looked for and why each is not there; where
            one is there and fails, that alone, for another would not be better.
    """
    if tee == "simulated":
        return SimulatedSource(open_root(paths.simulated_root), image_digest=image_digest)
    why = []
    for way in _WAYS:
        if tee != "auto" and tee not in way.tees:
            continue
        try:
            source = way.open(paths)
        except EvidenceSourceError as error:
            if error.code != SourceCode.UNAVAILABLE:
                raise
            why.append(f"{way.name}: {error}")
            continue
        if tee in ("auto", source.tee):
            return source
        why.append(f"{way.name}: gives evidence of {source.tee}")
    if tee in ("auto", "tdx") and _TDX_GUEST.exists():
        why.append(f"{_TDX_GUEST}: makes TDREPORTs only; a quote needs configfs-tsm, Linux 6.7")
    wanted = "any TEE" if tee == "auto" else tee
    raise EvidenceSourceError(
        SourceCode.UNAVAILABLE, f"this machine gives no evidence of {wanted}; looked for: " + "; ".join(why)
    )
