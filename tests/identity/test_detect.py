"""Which source is opened, and what is said where none is."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from support.emulated_mount import mounted, why_not_mounted
from support.emulated_tsm import EmulatedTsm
from support.emulated_vtpm import EmulatedVtpm, hcl_report, served
from tresor.identity.source import EvidenceSourceError, SourceCode
from tresor.identity.sources.azure_vtpm import AzureVtpmSource
from tresor.identity.sources.configfs_tsm import ConfigfsTsmSource
from tresor.identity.sources.detect import SourcePaths, open_source
from tresor.identity.sources.sev_guest import SevGuestSource
from tresor.identity.sources.simulated import SimulatedSource

HCL = hcl_report(2, b"", b'{"keys":[]}')


@pytest.fixture
def paths(tmp_path: Path) -> SourcePaths:
    """A machine that has nothing."""
    return SourcePaths(
        tpm=tmp_path / "tpmrm0",
        tsm=tmp_path / "report",
        sev_guest=tmp_path / "sev-guest",
        simulated_root=tmp_path / "simulated-root.pem",
    )


@pytest.fixture
def machine() -> Iterator[ExitStack]:
    """What is served while the test runs."""
    with ExitStack() as stack:
        yield stack


def with_tsm(machine: ExitStack, paths: SourcePaths, tsm: EmulatedTsm) -> None:
    if (reason := why_not_mounted()) is not None:
        pytest.skip(f"no directory can be served: {reason}")
    paths.tsm.mkdir()
    machine.enter_context(mounted(tsm, paths.tsm))


def test_nothing_there_is_explained(paths: SourcePaths) -> None:
    with pytest.raises(EvidenceSourceError, match="this machine gives no evidence of any TEE") as caught:
        open_source("auto", paths)
    assert caught.value.code == SourceCode.UNAVAILABLE
    for path in (paths.tpm, paths.tsm, paths.sev_guest):
        assert str(path) in str(caught.value)
    assert not paths.simulated_root.exists()


def test_the_vtpm_of_azure_comes_first(machine: ExitStack, paths: SourcePaths) -> None:
    machine.enter_context(served(EmulatedVtpm(HCL), paths.tpm))
    with_tsm(machine, paths, EmulatedTsm())
    assert isinstance(open_source("auto", paths), AzureVtpmSource)
    assert isinstance(open_source("azure-sev-snp", paths), AzureVtpmSource)
    assert isinstance(open_source("sev-snp", paths), ConfigfsTsmSource)


def test_configfs_comes_before_the_device(machine: ExitStack, paths: SourcePaths) -> None:
    machine.enter_context(served(EmulatedVtpm(None), paths.tpm))
    with_tsm(machine, paths, EmulatedTsm())
    paths = replace(paths, sev_guest=Path("/dev/null"))
    assert isinstance(open_source("auto", paths), ConfigfsTsmSource)
    assert isinstance(open_source("sev-snp", paths), ConfigfsTsmSource)


def test_the_device_comes_last(paths: SourcePaths) -> None:
    paths = replace(paths, sev_guest=Path("/dev/null"))
    assert isinstance(open_source("auto", paths), SevGuestSource)
    assert isinstance(open_source("sev-snp", paths), SevGuestSource)


def test_another_tee_than_asked_for(machine: ExitStack, paths: SourcePaths) -> None:
    with_tsm(machine, paths, EmulatedTsm(provider="tdx_guest"))
    assert open_source("tdx", paths).tee == "tdx"
    with pytest.raises(EvidenceSourceError, match=r"no evidence of sev-snp; .*configfs-tsm: gives evidence of tdx"):
        open_source("sev-snp", paths)


def test_a_source_that_is_there_and_fails_is_not_passed_over(machine: ExitStack, paths: SourcePaths) -> None:
    class Failing(EmulatedVtpm):
        def __call__(self, _command: bytes) -> bytes:
            return b"\x80\x01\0\0\0\x0a\0\0\x01\x01"

    machine.enter_context(served(Failing(HCL), paths.tpm))
    with pytest.raises(EvidenceSourceError, match="failure mode") as caught:
        open_source("auto", replace(paths, sev_guest=Path("/dev/null")))
    assert caught.value.code == SourceCode.FAILED


def test_simulated_is_asked_for_by_name(paths: SourcePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("simulated", paths, image_digest=b"image")
    assert isinstance(source, SimulatedSource)
    assert source.collect(bytes(64)).tee == "simulated"
    for name in ("TEE", "TRESOR_TEE", "DSTACK_SIMULATOR_ENDPOINT", "TPM2TOOLS_TCTI"):
        monkeypatch.setenv(name, "simulated")
    with pytest.raises(EvidenceSourceError):
        open_source("auto", paths)
