"""The emulated tree itself, held against Documentation/ABI/testing/configfs-tsm-report and the kernel's sources."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.emulated_mount import mounted, why_not_mounted
from support.emulated_tsm import EmulatedFiles, EmulatedTsm
from tresor.identity.sources.configfs_tsm import Files, LinuxFiles


@pytest.fixture
def tsm() -> EmulatedTsm:
    return EmulatedTsm(privlevel_floor=1)


@pytest.fixture(params=["inside this process", "as a directory"])
def files(request: pytest.FixtureRequest, tsm: EmulatedTsm, tmp_path: Path) -> Iterator[Files]:
    if request.param == "inside this process":
        yield EmulatedFiles(tsm, tmp_path)
        return
    if (reason := why_not_mounted()) is not None:
        pytest.skip(f"no directory can be served: {reason}")
    with mounted(tsm, tmp_path):
        yield LinuxFiles()


@pytest.fixture
def entry(files: Files, tmp_path: Path) -> Path:
    files.mkdir(tmp_path / "x")
    return tmp_path / "x"


def test_attributes_of_each_provider(files: Files, tsm: EmulatedTsm, entry: Path) -> None:
    common = {"generation", "provider", "inblob", "outblob"}
    assert set(files.names(entry)) == common | {"privlevel", "privlevel_floor", "auxblob", "manifestblob"}
    tsm.provider = "tdx_guest"
    assert set(files.names(entry)) == common


def test_generation_counts_what_is_taken(files: Files, entry: Path) -> None:
    assert files.read(entry / "generation") == b"0\n"
    files.write(entry / "inblob", bytes(64))
    files.write(entry / "privlevel", b"3")
    for level in (b"0", b"4", b"x", b"-1"):
        with pytest.raises(OSError, match="Invalid argument"):
            files.write(entry / "privlevel", level)
    assert files.read(entry / "generation") == b"2\n"


def test_too_long_an_inblob_is_refused_and_counts_all_the_same(files: Files, entry: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        files.write(entry / "inblob", bytes(65))
    assert files.read(entry / "generation") == b"1\n"


def test_an_inblob_that_is_not_taken_is_lost_without_a_word(files: Files, tsm: EmulatedTsm, entry: Path) -> None:
    tsm.entries["x"].read_generation = 1
    files.write(entry / "inblob", bytes(64))
    assert files.read(entry / "generation") == b"0\n"
    with pytest.raises(OSError, match="Device or resource busy"):
        files.write(entry / "privlevel", b"1")


@pytest.mark.parametrize("inblob", [b"", b"x", bytes(63)])
def test_a_report_wants_64_bytes(files: Files, entry: Path, inblob: bytes) -> None:
    files.write(entry / "privlevel", b"1")
    if inblob:
        files.write(entry / "inblob", inblob)
    with pytest.raises(OSError, match="Invalid argument"):
        files.read(entry / "outblob")


def test_one_report_per_configuration(files: Files, tsm: EmulatedTsm, entry: Path) -> None:
    files.write(entry / "privlevel", b"1")
    files.write(entry / "inblob", bytes(64))
    for _ in range(3):
        assert (len(files.read(entry / "outblob")), files.read(entry / "auxblob")) == (1184, b"")
    assert tsm.reports == 1
    files.write(entry / "inblob", bytes(64))
    files.read(entry / "auxblob")
    assert tsm.reports == 2


@pytest.mark.parametrize("attribute", ["inblob", "privlevel"])
def test_write_only(files: Files, entry: Path, attribute: str) -> None:
    with pytest.raises(PermissionError):
        files.read(entry / attribute)


@pytest.mark.parametrize("attribute", ["outblob", "generation", "provider"])
def test_read_only(files: Files, entry: Path, attribute: str) -> None:
    with pytest.raises(PermissionError):
        files.write(entry / attribute, b"x")


def test_entries(files: Files, entry: Path) -> None:
    with pytest.raises(FileExistsError):
        files.mkdir(entry)
    files.rmdir(entry)
    for gone in (lambda: files.rmdir(entry), lambda: files.names(entry), lambda: files.read(entry / "generation")):
        with pytest.raises(FileNotFoundError):
            gone()


def test_an_open_file_of_a_removed_entry(tsm: EmulatedTsm) -> None:
    tsm.mkdir("x")
    opened = tsm.open("x", "generation", writing=False)
    tsm.rmdir("x")
    with pytest.raises(FileNotFoundError):
        opened.read()


def test_no_provider(files: Files, tsm: EmulatedTsm, entry: Path) -> None:
    tsm.provider = None
    with pytest.raises(OSError, match="No such device or address") as caught:
        files.read(entry / "provider")
    assert caught.value.errno == errno.ENXIO
