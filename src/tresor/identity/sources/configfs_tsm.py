"""Evidence through configfs-tsm: SEV-SNP reports and TDX quotes on Linux 6.7 and later.

Implements the use of Documentation/ABI/testing/configfs-tsm-report.  What that page does not say and the kernel does
(fs/configfs/file.c, drivers/virt/coco/guest/report.c), and this module relies on or guards against:

- `inblob` reaches the driver when its file is closed, and what the driver says then is lost.  Only `generation` tells
  whether it was taken.
- A report is made when `outblob` or `auxblob` is read first after a write, so a write in between gives two reports.
- `privlevel_floor` above 0 has to be written to `privlevel`, for the default is 0.  The floor is the most privileged
  level this guest may speak for, and the one that is asked for.

One collection:

    (1) mkdir of an entry with a name of its own
    (2) `provider`, `generation`
    (3) writes: `privlevel` where needed, `inblob` in one write
    (4) `generation` has risen by as many writes
    (5) `outblob`, `auxblob`
    (6) `generation` has not risen since, and REPORT_DATA stands in the report: nobody wrote in between
    (7) rmdir, whatever happened

`manifestblob` and the `service_` options, by which an SVSM speaks for services of its own, are not used.
"""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from tresor.attestation.blocks import Tee
from tresor.identity.source import (
    REPORT_DATA_BYTES,
    CollectedEvidence,
    EvidencePart,
    EvidenceSourceError,
    SourceCode,
)
from tresor.identity.sources.patience import Patience
from tresor.identity.sources.snp_certificates import certificates_of

__all__ = ["DEFAULT_ROOT", "ConfigfsTsmSource", "Files", "LinuxFiles"]

DEFAULT_ROOT: Final = Path("/sys/kernel/config/tsm/report")
MAX_BLOB_BYTES: Final = 16 << 20  # TSM_REPORT_OUTBLOB_MAX of the newest kernels; 32 KiB in the older

_PROVIDERS: Final[dict[str, tuple[Tee, EvidencePart]]] = {
    "sev_guest": ("sev-snp", "snp_report"),
    "tdx_guest": ("tdx", "tdx_quote"),
}
_BUSY: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})
_NOT_THERE = (
    "needs Linux 6.7, the module tsm_report (tsm before 6.16) and a mounted configfs; a container needs the directory "
    "mounted into it"
)
_REFUSALS: Final[dict[int, tuple[SourceCode, str]]] = {
    errno.ENOENT: (SourceCode.UNAVAILABLE, _NOT_THERE),
    errno.ENOTDIR: (SourceCode.UNAVAILABLE, _NOT_THERE),
    errno.ENXIO: (
        SourceCode.UNAVAILABLE,
        "no driver offers reports: load sev-guest or tdx-guest, in a guest that SEV-SNP or TDX protects",
    ),
    errno.EACCES: (SourceCode.UNAVAILABLE, "this process may not: run it as root, or hand the directory to its user"),
    errno.EPERM: (SourceCode.UNAVAILABLE, "this process may not: entries are made by root, or by who owns the folder"),
    errno.EROFS: (SourceCode.UNAVAILABLE, "mounted read-only: mount it writable into this container"),
    errno.EINVAL: (SourceCode.FAILED, "the driver refuses the request, as for a privilege level that is not ours"),
    errno.EFBIG: (SourceCode.FAILED, "the report is larger than this kernel hands on: a newer kernel is needed"),
    errno.ENOTTY: (SourceCode.FAILED, "the guest's key to the firmware was given up after an error: restart the VM"),
    errno.EIO: (SourceCode.FAILED, "firmware or quoting service answered with an error: see the kernel's log"),
}


class Files(Protocol):
    """The five things done to files, each of which raises OSError as Linux does."""

    def mkdir(self, path: Path) -> None: ...  # noqa: D102 - named after the calls of the kernel
    def rmdir(self, path: Path) -> None: ...  # noqa: D102 - likewise
    def names(self, path: Path) -> list[str]: ...  # noqa: D102 - likewise
    def read(self, path: Path) -> bytes: ...  # noqa: D102 - likewise
    def write(self, path: Path, data: bytes) -> None: ...  # noqa: D102 - likewise


class LinuxFiles:
    """Files as the kernel has them."""

    def mkdir(self, path: Path) -> None:
        """Make a directory, which configfs fills."""
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        """Remove a directory; configfs empties it."""
        path.rmdir()

    def names(self, path: Path) -> list[str]:
        """Return the names in a directory."""
        return [entry.name for entry in path.iterdir()]

    def read(self, path: Path) -> bytes:
        """Read one file to its end, which is where an attribute ends whatever size it claims.

        Raises:
            OSError: EFBIG for more than `MAX_BLOB_BYTES`.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = bytearray()
            while chunk := os.read(descriptor, 1 << 16):  # not a file object, for which EAGAIN is no error
                data += chunk
                if len(data) > MAX_BLOB_BYTES:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        finally:
            os.close(descriptor)
        return bytes(data)

    def write(self, path: Path, data: bytes) -> None:
        """Write `data` in one piece, without creating or truncating.

        Raises:
            OSError: EIO where the kernel took only a part.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)  # this is where configfs hands a binary attribute to the driver
        if written != len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


class ConfigfsTsmSource:
    """Evidence through configfs-tsm.

    Args:
        root: where configfs-tsm makes entries.
        patience: how long to try while the hardware is busy.
        files: the file system, for tests.

    Raises:
        EvidenceSourceError: it cannot be used, or its provider is neither `sev_guest` nor `tdx_guest`.
    """

    def __init__(
        self, root: Path = DEFAULT_ROOT, *, patience: Patience | None = None, files: Files | None = None
    ) -> None:
        self._root = root
        self._patience = patience or Patience()
        self._files = files or LinuxFiles()
        with self._mapped():
            self._prefix = _entry_prefix()
        self._provider = self._patience.until_done(self._probe)
        if self._provider not in _PROVIDERS:
            raise EvidenceSourceError(
                SourceCode.UNAVAILABLE,
                f"{root} has the provider {self._provider[:64]!a}, want one of {', '.join(sorted(_PROVIDERS))}",
            )
        self.tee, self._part = _PROVIDERS[self._provider]

    def __repr__(self) -> str:
        return f"<ConfigfsTsmSource {self.tee} at {self._root}>"

    def collect(self, report_data: bytes) -> CollectedEvidence:
        """Have the hardware sign `report_data`; see `EvidenceSource`."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"REPORT_DATA is {len(report_data)} bytes, want {REPORT_DATA_BYTES}")
        self._remove_stale()
        return self._patience.until_done(lambda: self._collect(report_data))

    def _probe(self) -> str:
        with self._entry() as entry:
            return self._read_text(entry / "provider")

    def _collect(self, report_data: bytes) -> CollectedEvidence:
        with self._entry() as entry:
            provider = self._read_text(entry / "provider")  # (2)
            if provider != self._provider:
                raise EvidenceSourceError(
                    SourceCode.FAILED,
                    f"{entry} has the provider {provider[:64]!a}, had {self._provider!a} when this process started: "
                    "restart it",
                )
            generation = self._generation(entry)
            writes = self._write_privlevel(entry) + 1  # (3)
            self._files.write(entry / "inblob", report_data)
            self._check_generation(entry, generation + writes)  # (4)
            report = self._files.read(entry / "outblob")  # (5)
            table = self._read_optional(entry / "auxblob")
            self._check_generation(entry, generation + writes)  # (6)
            if report_data not in report:
                raise EvidenceSourceError(SourceCode.INTERFERED, f"the report of {entry} holds other REPORT_DATA")
            return CollectedEvidence(
                tee=self.tee,
                parts={self._part: report},
                certificates=certificates_of(table) if self.tee == "sev-snp" else (),
            )

    def _write_privlevel(self, entry: Path) -> int:
        """Ask for the most privileged level of this guest; return the number of writes."""
        floor = self._read_optional(entry / "privlevel_floor").strip()
        if floor in (b"", b"0"):  # the provider knows no levels, or the default is the floor
            return 0
        self._files.write(entry / "privlevel", floor)
        return 1

    def _check_generation(self, entry: Path, want: int) -> None:
        got = self._generation(entry)
        if got < want:
            raise EvidenceSourceError(
                SourceCode.BUSY, f"generation of {entry} is {got}, want {want}: the kernel did not take all writes"
            )
        if got > want:
            raise EvidenceSourceError(
                SourceCode.INTERFERED, f"generation of {entry} is {got}, want {want}: another process writes to it"
            )

    def _generation(self, entry: Path) -> int:
        text = self._read_text(entry / "generation")
        if not re.fullmatch(r"[0-9]{1,20}", text):
            raise EvidenceSourceError(SourceCode.FAILED, f"generation of {entry} is {text[:64]!a}, want a number")
        return int(text)

    def _read_text(self, path: Path) -> str:
        return self._files.read(path).decode("ascii", "replace").strip()

    def _read_optional(self, path: Path) -> bytes:
        """Read an attribute that is not there for every provider."""
        try:
            return self._files.read(path)
        except FileNotFoundError:
            return b""

    @contextlib.contextmanager
    def _entry(self) -> Iterator[Path]:
        """Make an entry and remove it behind."""
        entry = self._root / f"{self._prefix}{os.getpid()}-{secrets.token_hex(8)}"
        with self._mapped():
            self._files.mkdir(entry)  # (1)
        try:
            with self._mapped(entry):
                yield entry
        finally:
            # (7) One that stays is found by `_remove_stale`, and must not hide what went wrong.
            with contextlib.suppress(OSError):
                self._files.rmdir(entry)

    @contextlib.contextmanager
    def _mapped(self, entry: Path | None = None) -> Iterator[None]:
        """Map what the kernel refuses; `entry` is ours, if we have one."""
        try:
            yield
        except OSError as error:
            raise self._explain(error, entry) from error

    def _explain(self, error: OSError, entry: Path | None) -> EvidenceSourceError:
        what = f"{error.filename or entry or self._root}: {os.strerror(error.errno or 0)}"
        if error.errno in _BUSY:
            return EvidenceSourceError(SourceCode.BUSY, f"{what}: the hardware is busy, or the host's quoting service")
        if error.errno == errno.ENOENT and entry is not None and not self._is_there(entry):
            return EvidenceSourceError(SourceCode.INTERFERED, f"{what}: another process removed our entry")
        code, advice = _REFUSALS.get(error.errno or 0, (SourceCode.FAILED, "see the kernel's log"))
        return EvidenceSourceError(code, f"{what}: {advice}")

    def _is_there(self, entry: Path) -> bool:
        try:
            self._files.names(entry)
        except OSError:
            return False
        return True

    def _remove_stale(self) -> None:
        """Remove what processes of ours left behind that were killed in the middle, as far as that works."""
        with contextlib.suppress(OSError):
            for name in self._files.names(self._root):
                found = re.fullmatch(re.escape(self._prefix) + r"([1-9][0-9]{0,6})-[0-9a-f]{16}", name)
                if found and not _runs(int(found[1])):
                    with contextlib.suppress(OSError):
                        self._files.rmdir(self._root / name)


def _entry_prefix() -> str:
    """Return how names of entries begin: with the PID namespace, for two containers may share one configfs."""
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return f"tresor-{namespace}-"


def _runs(pid: int) -> bool:
    """Tell whether a process has this id; this process itself makes one entry at a time, and none is open now."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
