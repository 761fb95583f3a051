"""configfs-tsm, emulated: inside this process, and as a real directory where FUSE may be mounted."""

import errno
import os
import re
import signal
import subprocess
import sys
import time as real_time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.emulated_mount import mounted, why_not_mounted
from support.emulated_time import PassingTime
from support.emulated_tsm import Action, Blobs, EmulatedFiles, EmulatedTsm, Operation, marked_report, refuse
from tresor.identity.source import CollectedEvidence, EvidenceSourceError, SourceCode
from tresor.identity.sources.configfs_tsm import ConfigfsTsmSource, Files, LinuxFiles
from tresor.identity.sources.patience import Patience

REPORT_DATA = bytes(range(64))
OTHER_DATA = b"\xff" * 64
VCEK = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
Open: TypeAlias = Callable[[EmulatedTsm], ConfigfsTsmSource]


@pytest.fixture(params=["inside this process", "as a directory"])
def open_source(request: pytest.FixtureRequest, tmp_path: Path, patience: Patience) -> Iterator[Open]:
    """Open a source on an emulated tree."""
    if request.param == "inside this process":
        yield lambda tsm: ConfigfsTsmSource(tmp_path, patience=patience, files=EmulatedFiles(tsm, tmp_path))
        return
    if (reason := why_not_mounted()) is not None:
        pytest.skip(f"no directory can be served: {reason}")
    with ExitStack() as stack:

        def open_mounted(tsm: EmulatedTsm) -> ConfigfsTsmSource:
            return ConfigfsTsmSource(stack.enter_context(mounted(tsm, tmp_path)), patience=patience)

        yield open_mounted


def entry_of(certificate: bytes) -> bytes:
    """A certificate table with one VCEK."""
    return VCEK + (48).to_bytes(4, "little") + len(certificate).to_bytes(4, "little") + bytes(24) + certificate


def code_of(source: ConfigfsTsmSource) -> tuple[SourceCode, str]:
    with pytest.raises(EvidenceSourceError) as caught:
        source.collect(REPORT_DATA)
    return caught.value.code, str(caught.value)


def test_snp_report_and_certificates(open_source: Open) -> None:
    tsm = EmulatedTsm(report=lambda data, level: Blobs(marked_report(data, level).outblob, entry_of(b"a VCEK")))
    evidence = open_source(tsm).collect(REPORT_DATA)
    report = marked_report(REPORT_DATA, 0).outblob
    assert evidence == CollectedEvidence(tee="sev-snp", parts={"snp_report": report}, certificates=(b"a VCEK",))
    assert tsm.entries == {}
    assert tsm.reports == 1


def test_tdx_quote_has_neither_levels_nor_certificates(open_source: Open) -> None:
    quote = bytes(568) + REPORT_DATA + bytes(8000 - 632)
    tsm = EmulatedTsm(provider="tdx_guest", report=lambda _data, _level: Blobs(quote))
    assert open_source(tsm).collect(REPORT_DATA) == CollectedEvidence(tee="tdx", parts={"tdx_quote": quote})
    assert tsm.entries == {}


def test_a_host_without_certificates_gives_none(open_source: Open) -> None:
    assert open_source(EmulatedTsm()).collect(REPORT_DATA).certificates == ()


@pytest.mark.parametrize("floor", [0, 1, 3])
def test_the_most_privileged_level_is_asked_for(open_source: Open, floor: int) -> None:
    tsm = EmulatedTsm(privlevel_floor=floor)
    assert open_source(tsm).collect(REPORT_DATA).parts["snp_report"][0x30] == floor
    assert ("write", "privlevel") in [(operation, name) for operation, _, name in tsm.seen] or floor == 0


def test_every_collection_has_an_entry_of_its_own(open_source: Open) -> None:
    tsm = EmulatedTsm()
    source = open_source(tsm)
    for number in range(3):
        assert bytes([number] * 64) in source.collect(bytes([number] * 64)).parts["snp_report"]
    made = [name for operation, name, _ in tsm.seen if operation == "mkdir"]
    assert len(set(made)) == 4  # with the one that asked for the provider
    assert all(re.fullmatch(rf"tresor-\d+-{os.getpid()}-[0-9a-f]{{16}}", name) for name in made)


WRITES: dict[str, list[tuple[str, bytes]]] = {
    "inblob": [("inblob", OTHER_DATA)],
    "the same inblob": [("inblob", REPORT_DATA)],
    "privlevel": [("privlevel", b"1")],
    "two inblobs": [("inblob", OTHER_DATA), ("inblob", REPORT_DATA)],
}


def writing(tsm: EmulatedTsm, writes: str) -> Action:
    """What another process does to an entry."""

    def action(entry: str) -> None:
        for attribute, data in WRITES[writes]:
            tsm.write(entry, attribute, data)

    return action


MOMENTS: list[tuple[Operation, str]] = [
    ("open", "inblob"),
    ("close", "inblob"),
    ("read", "outblob"),
    ("read", "auxblob"),
]


@pytest.mark.parametrize("writes", WRITES)
@pytest.mark.parametrize(("operation", "attribute"), MOMENTS)
class TestAnotherProcessWrites:
    """At each moment between our own steps."""

    def test_once(self, open_source: Open, operation: Operation, attribute: str, writes: str) -> None:
        tsm = EmulatedTsm()
        source = open_source(tsm)
        tsm.on(operation, attribute, writing(tsm, writes))
        report = source.collect(REPORT_DATA).parts["snp_report"]
        assert (report, tsm.entries) == (marked_report(REPORT_DATA, 0).outblob, {})

    def test_always(
        self, open_source: Open, time: PassingTime, operation: Operation, attribute: str, writes: str
    ) -> None:
        tsm = EmulatedTsm()
        source = open_source(tsm)
        tsm.on(operation, attribute, writing(tsm, writes), times=1000)
        assert code_of(source)[0] == SourceCode.INTERFERED
        assert (tsm.entries, time.now <= 20.0) == ({}, True)


def test_our_write_lost_and_another_taken_is_seen_by_its_data(open_source: Open) -> None:
    tsm = EmulatedTsm()
    source = open_source(tsm)

    def instead(entry: str) -> None:
        tsm.write(entry, "inblob", OTHER_DATA)
        raise OSError(errno.EBUSY, "lost")

    tsm.on("close", "inblob", instead, times=1000)
    code, message = code_of(source)
    assert code == SourceCode.INTERFERED
    assert "other REPORT_DATA" in message


@pytest.mark.parametrize(("operation", "attribute"), [*MOMENTS, ("write", "inblob"), ("open", "generation")])
def test_another_process_removes_our_entry(open_source: Open, operation: Operation, attribute: str) -> None:
    tsm = EmulatedTsm()
    source = open_source(tsm)
    tsm.on(operation, attribute, tsm.rmdir)
    assert REPORT_DATA in source.collect(REPORT_DATA).parts["snp_report"]
    tsm.on(operation, attribute, tsm.rmdir, times=1000)
    code, message = code_of(source)
    assert code == SourceCode.INTERFERED
    assert "removed" in message or "other REPORT_DATA" in message or "generation" in message


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT])
@pytest.mark.parametrize(
    ("operation", "attribute"),
    [("mkdir", ""), ("open", "inblob"), ("write", "inblob"), ("close", "inblob"), ("read", "outblob")],
)
def test_busy(open_source: Open, time: PassingTime, operation: Operation, attribute: str, number: int) -> None:
    tsm = EmulatedTsm()
    source = open_source(tsm)
    tsm.on(operation, attribute, refuse(number), times=3)
    assert REPORT_DATA in source.collect(REPORT_DATA).parts["snp_report"]
    assert 0 < time.now < 1
    tsm.on(operation, attribute, refuse(number), times=1000)
    assert code_of(source)[0] == SourceCode.BUSY
    assert 15 < time.now <= 21
    assert tsm.entries == {}


def test_interrupted_hardware_is_asked_again(tmp_path: Path, patience: Patience) -> None:
    """EINTR of the driver; through a mount, Python itself would call again."""
    tsm = EmulatedTsm()
    source = ConfigfsTsmSource(tmp_path, patience=patience, files=EmulatedFiles(tsm, tmp_path))
    tsm.on("read", "outblob", refuse(errno.EINTR), times=2)
    assert REPORT_DATA in source.collect(REPORT_DATA).parts["snp_report"]


def test_generations_that_meet_are_busy(open_source: Open) -> None:
    """After 2^64 - 1 writes without a read, the kernel takes no more, and for inblob nobody hears of it."""
    tsm = EmulatedTsm()
    source = open_source(tsm)

    def exhaust(entry: str) -> None:
        tsm.entries[entry].write_generation = 7
        tsm.entries[entry].read_generation = 8

    tsm.on("open", "generation", exhaust, times=1000)
    code, message = code_of(source)
    assert code in (SourceCode.BUSY, SourceCode.INTERFERED)
    assert "generation" in message


REFUSALS: list[tuple[Operation, str, int, SourceCode, str]] = [
    ("mkdir", "", errno.ENXIO, SourceCode.UNAVAILABLE, "sev-guest or tdx-guest"),
    ("mkdir", "", errno.EACCES, SourceCode.UNAVAILABLE, "as root"),
    ("mkdir", "", errno.EPERM, SourceCode.UNAVAILABLE, "by root"),
    ("mkdir", "", errno.EROFS, SourceCode.UNAVAILABLE, "mount it writable"),
    ("mkdir", "", errno.ENOENT, SourceCode.UNAVAILABLE, "mounted configfs"),
    ("mkdir", "", errno.ENOMEM, SourceCode.FAILED, "kernel's log"),
    ("write", "inblob", errno.EFBIG, SourceCode.FAILED, "newer kernel"),
    ("read", "outblob", errno.EFBIG, SourceCode.FAILED, "newer kernel"),
    ("read", "auxblob", errno.EFBIG, SourceCode.FAILED, "newer kernel"),
    ("read", "outblob", errno.EINVAL, SourceCode.FAILED, "privilege level"),
    ("read", "outblob", errno.EIO, SourceCode.FAILED, "quoting service"),
    ("read", "outblob", errno.ENXIO, SourceCode.UNAVAILABLE, "load sev-guest"),
    ("read", "outblob", errno.ENOTTY, SourceCode.FAILED, "restart the VM"),
    ("read", "generation", errno.EIO, SourceCode.FAILED, "kernel's log"),
]


@pytest.mark.parametrize(("operation", "attribute", "number", "code", "advice"), REFUSALS)
def test_refusals(
    open_source: Open, *, operation: Operation, attribute: str, number: int, code: SourceCode, advice: str
) -> None:
    tsm = EmulatedTsm()
    source = open_source(tsm)
    tsm.on(operation, attribute, refuse(number))
    got, message = code_of(source)
    assert got == code
    assert advice in message
    assert os.strerror(number) in message
    assert tsm.entries == {}


def test_a_blob_beyond_the_kernels_maximum(open_source: Open) -> None:
    tsm = EmulatedTsm(report=lambda data, _level: Blobs(data + bytes(40_000)))
    assert code_of(open_source(tsm))[0] == SourceCode.FAILED
    tsm.outblob_max = 16 << 20
    assert open_source(tsm).collect(REPORT_DATA).parts["snp_report"].startswith(REPORT_DATA)


def test_no_driver_is_loaded(open_source: Open) -> None:
    with pytest.raises(EvidenceSourceError, match="load sev-guest or tdx-guest") as caught:
        open_source(EmulatedTsm(provider=None))
    assert caught.value.code == SourceCode.UNAVAILABLE


def test_a_driver_that_is_not_known(open_source: Open) -> None:
    tsm = EmulatedTsm(provider="arm_cca_guest")
    with pytest.raises(EvidenceSourceError, match="'arm_cca_guest', want one of sev_guest, tdx_guest") as caught:
        open_source(tsm)
    assert (caught.value.code, tsm.entries) == (SourceCode.UNAVAILABLE, {})


@pytest.mark.parametrize(("provider", "code"), [("tdx_guest", SourceCode.FAILED), (None, SourceCode.UNAVAILABLE)])
def test_the_driver_goes_while_the_process_runs(open_source: Open, provider: str | None, code: SourceCode) -> None:
    tsm = EmulatedTsm()
    source = open_source(tsm)
    tsm.provider = provider
    assert code_of(source)[0] == code


@pytest.mark.parametrize("make", [lambda path: path / "report", lambda path: path, lambda path: path / "a file"])
def test_no_configfs_tsm_there(
    tmp_path: Path, time: PassingTime, patience: Patience, make: Callable[[Path], Path]
) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(EvidenceSourceError, match=r"needs Linux 6\.7") as caught:
        ConfigfsTsmSource(make(tmp_path), patience=patience)
    assert (caught.value.code, time.now) == (SourceCode.UNAVAILABLE, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_is_64_bytes(open_source: Open, size: int) -> None:
    tsm = EmulatedTsm()
    source = open_source(tsm)
    with pytest.raises(ValueError, match="want 64"):
        source.collect(bytes(size))
    assert tsm.reports == 0


class TestEntriesLeftBehind:
    """By processes that were killed in the middle, and by whoever else."""

    def test_of_dead_processes_are_removed(self, open_source: Open) -> None:
        tsm = EmulatedTsm()
        source = open_source(tsm)
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        ours = next(name for operation, name, _ in tsm.seen if operation == "mkdir").rsplit("-", 2)[0]
        kept = [
            f"{ours}-{os.getppid()}-0123456789abcdef",  # runs
            f"{ours}-1-0123456789abcdef",  # runs, and is not ours to ask
            f"tresor-1-{process.pid}-0123456789abcdef",  # of another PID namespace
            f"{ours}-{process.pid}-0123456789abcdef-x",
            f"{ours}-0-0123456789abcdef",
            f"{ours}-9999999999-0123456789abcdef",  # no process can have it
            "x",
        ]
        for name in (*kept, f"{ours}-{process.pid}-0123456789abcdef", f"{ours}-{os.getpid()}-0123456789abcdef"):
            tsm.mkdir(name)
        source.collect(REPORT_DATA)
        assert tsm.names() == kept

    def test_our_own_is_removed_next_time(self, open_source: Open) -> None:
        tsm = EmulatedTsm()
        source = open_source(tsm)
        tsm.on("rmdir", "", refuse(errno.EBUSY))
        assert REPORT_DATA in source.collect(REPORT_DATA).parts["snp_report"]
        assert len(tsm.entries) == 1
        source.collect(REPORT_DATA)
        assert tsm.entries == {}

    def test_one_that_stays_does_not_hide_what_went_wrong(self, open_source: Open) -> None:
        tsm = EmulatedTsm()
        source = open_source(tsm)
        tsm.on("read", "outblob", refuse(errno.EIO))
        tsm.on("rmdir", "", refuse(errno.EBUSY))
        assert code_of(source)[0] == SourceCode.FAILED

    def test_of_a_killed_process(self, tmp_path: Path, patience: Patience) -> None:
        if (reason := why_not_mounted()) is not None:
            pytest.skip(f"no directory can be served: {reason}")
        tsm = EmulatedTsm()
        program = (
            "import sys; from pathlib import Path; from tresor.identity.sources.configfs_tsm import ConfigfsTsmSource\n"
            "ConfigfsTsmSource(Path(sys.argv[1])).collect(bytes(64))"
        )
        with mounted(tsm, tmp_path):
            process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
            tsm.on("open", "outblob", lambda _entry: process.send_signal(signal.SIGKILL))
            process.wait(20)
            assert len(tsm.entries) == 1
            ConfigfsTsmSource(tmp_path, patience=patience).collect(REPORT_DATA)
            assert tsm.entries == {}


def test_several_processes_at_a_time(tmp_path: Path) -> None:
    if (reason := why_not_mounted()) is not None:
        pytest.skip(f"no directory can be served: {reason}")
    program = (
        "import os, sys; from pathlib import Path; from tresor.identity.sources.configfs_tsm import ConfigfsTsmSource\n"
        "source = ConfigfsTsmSource(Path(sys.argv[1]))\n"
        "for _ in range(20):\n"
        "    data = os.urandom(64)\n"
        "    assert data in source.collect(data).parts['snp_report']"
    )
    tsm = EmulatedTsm()
    with mounted(tsm, tmp_path):
        processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
        assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tsm.reports, tsm.entries) == (60, {})


@given(
    blob=st.binary(max_size=2000),
    table=st.binary(max_size=2000),
    generation=st.binary(max_size=30),
    provider=st.binary(max_size=30),
    floor=st.binary(max_size=30),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_of_the_kernel_give_evidence_or_our_error(
    *, patience: Patience, blob: bytes, table: bytes, generation: bytes, provider: bytes, floor: bytes
) -> None:
    answers = {
        "outblob": blob,
        "auxblob": table,
        "generation": generation,
        "provider": provider,
        "privlevel_floor": floor,
    }

    class Answering(EmulatedFiles):
        def read(self, path: Path) -> bytes:
            return answers[path.name]

    root = Path("/tsm")
    with suppress(EvidenceSourceError):
        ConfigfsTsmSource(root, patience=patience, files=Answering(EmulatedTsm(), root)).collect(REPORT_DATA)


@given(table=st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_certificate_table_gives_evidence_or_our_error(patience: Patience, table: bytes) -> None:
    root = Path("/tsm")
    tsm = EmulatedTsm(report=lambda data, level: Blobs(marked_report(data, level).outblob, table))
    source = ConfigfsTsmSource(root, patience=patience, files=EmulatedFiles(tsm, root))
    with suppress(EvidenceSourceError):
        assert source.collect(REPORT_DATA).parts["snp_report"]


class TestLinuxFiles:
    """What the mounted tests show of it, on ordinary files."""

    def test_round_trip(self, tmp_path: Path) -> None:
        files: Files = LinuxFiles()
        files.mkdir(tmp_path / "entry")
        (tmp_path / "entry" / "inblob").write_bytes(bytes(100))
        files.write(tmp_path / "entry" / "inblob", REPORT_DATA)
        assert files.read(tmp_path / "entry" / "inblob") == REPORT_DATA + bytes(36)
        assert files.names(tmp_path / "entry") == ["inblob"]
        (tmp_path / "entry" / "inblob").unlink()
        files.rmdir(tmp_path / "entry")

    def test_nothing_is_created(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            LinuxFiles().write(tmp_path / "inblob", REPORT_DATA)

    def test_endless_files_are_refused(self) -> None:
        begun = real_time.monotonic()
        with pytest.raises(OSError, match="File too large"):
            LinuxFiles().read(Path("/dev/zero"))
        assert real_time.monotonic() - begun < 10
