"""configfs-tsm as the kernel has it: the model of its driver, and two ways to reach it.

`EmulatedTsm` follows drivers/virt/coco/guest/report.c and fs/configfs/file.c of Linux 6.18 where a process can tell:

- attributes by provider, their modes, their sizes, ENXIO without a provider, EEXIST;
- `generation` rises with each write of `inblob` or `privlevel` that is taken, EBUSY where it would meet the one read;
- a text attribute is stored by write(2), a binary one by close(2), whose error nobody hears of;
- a report is made at the first read after a write, outside any entry's own time: one write between `outblob` and
  `auxblob` makes them of two reports; a removed entry answers ENOENT through open files;
- the drivers' own rules: `inblob` must be 64 bytes (EINVAL), `privlevel` at least the floor and at most 3.

`on` puts something in the way: an errno, or another process that writes, removes or looks at that very moment.

`EmulatedFiles` serves the model inside this process; `support.emulated_mount` serves it to any process, as a real
directory, where FUSE may be mounted.  What neither has: permissions by user, interrupted system calls in the middle of
a write, and configfs entries made by the kernel itself.
"""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["Blobs", "EmulatedFiles", "EmulatedTsm", "OpenAttribute", "marked_report", "refuse"]

Operation = Literal["mkdir", "rmdir", "open", "read", "write", "close"]
Action: TypeAlias = Callable[[str], object]
"""What happens in front of an operation on the entry of this name; raises OSError to refuse it."""

INBLOB_MAX = 64
OUTBLOB_MAX = 32 << 10
PRIVLEVEL_MAX = 3
ULONG = 1 << 64


@dataclass(frozen=True)
class Blobs:
    """What a provider makes of one request."""

    outblob: bytes
    auxblob: bytes = b""
    manifestblob: bytes = b""


def marked_report(inblob: bytes, privlevel: int) -> Blobs:
    """Make a report that nothing signed: its length and the places of REPORT_DATA and VMPL are those of SEV-SNP."""
    report = bytearray(1184)
    report[0x30] = privlevel
    report[0x50:0x90] = inblob
    return Blobs(bytes(report))


def refuse(number: int) -> Action:
    """Return an action that fails with this errno."""

    def action(entry: str) -> None:
        raise OSError(number, os.strerror(number), entry)

    return action


@dataclass
class _Rule:
    operation: Operation
    attribute: str
    action: Action
    times: int


@dataclass
class _Entry:
    write_generation: int = 0
    read_generation: int = 0
    inblob: bytes = b""
    privlevel: int = 0
    blobs: Blobs | None = None
    dead: bool = False


@dataclass
class EmulatedTsm:
    """The directory `report`, with one provider or none.

    Attributes:
        provider: name of the driver; None while none is loaded.
        privlevel_floor: least privilege level, of a provider that knows levels.
        report: makes blobs of INBLOB and privilege level.
        outblob_max: 32 KiB up to Linux 6.18.
        reports: how many were made.
    """

    provider: str | None = "sev_guest"
    privlevel_floor: int = 0
    report: Callable[[bytes, int], Blobs] = marked_report
    outblob_max: int = OUTBLOB_MAX
    reports: int = 0
    entries: dict[str, _Entry] = field(default_factory=dict)
    seen: list[tuple[Operation, str, str]] = field(default_factory=list)
    _rules: list[_Rule] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def on(self, operation: Operation, attribute: str, action: Action, *, times: int = 1) -> None:
        """Let `action` happen in front of the next operations of this kind; `attribute` is empty for an entry."""
        self._rules.append(_Rule(operation, attribute, action, times))

    def names(self) -> list[str]:
        """Return the names of the entries."""
        return list(self.entries)

    def attributes(self, name: str) -> dict[str, int]:
        """Return the attributes of an entry and their modes.

        Raises:
            OSError: ENOENT.
        """
        self._entry(name)
        shown = {"generation": 0o444, "provider": 0o444, "inblob": 0o200, "outblob": 0o444}
        if self.provider == "sev_guest":
            shown |= {"privlevel": 0o200, "privlevel_floor": 0o444, "auxblob": 0o444}
            if self.privlevel_floor > 0:  # under an SVSM
                shown |= {"manifestblob": 0o444}
        return shown

    def mkdir(self, name: str) -> None:
        """Make an entry."""
        self._happen("mkdir", name, "")
        if self.provider is None:
            raise _error(errno.ENXIO)
        if name in self.entries:
            raise _error(errno.EEXIST)
        self.entries[name] = _Entry()

    def rmdir(self, name: str) -> None:
        """Remove an entry; files of it that are open know it no more."""
        self._happen("rmdir", name, "")
        self._entry(name).dead = True
        del self.entries[name]

    def open(self, name: str, attribute: str, *, writing: bool) -> "OpenAttribute":
        """Open an attribute for reading or for writing."""
        self._happen("open", name, attribute)
        mode = self.attributes(name).get(attribute)
        if mode is None:
            raise _error(errno.ENOENT)
        if not mode & (0o200 if writing else 0o400):
            raise _error(errno.EACCES)
        return OpenAttribute(self, name, attribute, self._entry(name))

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """Write as another process would: nothing stands in its way."""
        with self._lock:
            self.store(self._entry(name), attribute, data)

    def _entry(self, name: str) -> _Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise _error(errno.ENOENT) from None

    def _happen(self, operation: Operation, name: str, attribute: str) -> None:
        self.seen.append((operation, name, attribute))
        for rule in self._rules:
            if (rule.operation, rule.attribute) == (operation, attribute) and rule.times > 0:
                rule.times -= 1
                rule.action(name)

    def store(self, entry: _Entry, attribute: str, data: bytes) -> None:
        """What the driver does with a write."""
        with self._lock:
            if entry.dead:
                raise _error(errno.ENOENT)
            if attribute == "inblob":
                self._advance(entry)
                entry.inblob = data
                return
            try:
                level = int(data.decode("ascii").strip(), 0)
            except ValueError:
                raise _error(errno.EINVAL) from None
            if not self.privlevel_floor <= level <= PRIVLEVEL_MAX:
                raise _error(errno.EINVAL)
            self._advance(entry)
            entry.privlevel = level

    def _advance(self, entry: _Entry) -> None:
        if entry.write_generation == (entry.read_generation - 1) % ULONG:
            raise _error(errno.EBUSY)
        entry.write_generation = (entry.write_generation + 1) % ULONG

    def show(self, entry: _Entry, attribute: str) -> bytes:
        """What the driver answers to a read."""
        with self._lock:
            if entry.dead:
                raise _error(errno.ENOENT)
            if attribute == "generation":
                return b"%d\n" % entry.write_generation
            if self.provider is None:
                raise _error(errno.ENXIO)
            if attribute == "provider":
                return self.provider.encode() + b"\n"
            if attribute == "privlevel_floor":
                return b"%d\n" % self.privlevel_floor
            blob: bytes = getattr(self._blobs(entry), attribute)
            if len(blob) > self.outblob_max:
                raise _error(errno.EFBIG)
            return blob

    def _blobs(self, entry: _Entry) -> Blobs:
        if not entry.inblob:
            raise _error(errno.EINVAL)
        if entry.blobs is None or entry.read_generation != entry.write_generation:
            entry.blobs = None
            if len(entry.inblob) != INBLOB_MAX or entry.privlevel < self.privlevel_floor:
                raise _error(errno.EINVAL)
            entry.blobs = self.report(entry.inblob, entry.privlevel)
            entry.read_generation = entry.write_generation
            self.reports += 1
        return entry.blobs


class OpenAttribute:
    """An open attribute: `struct configfs_buffer`."""

    def __init__(self, tsm: EmulatedTsm, name: str, attribute: str, entry: _Entry) -> None:
        self._tsm = tsm
        self._name = name
        self._attribute = attribute
        self._entry = entry
        self._shown: bytes | None = None
        self._written: bytearray | None = None

    def read(self) -> bytes:
        """Return all of it; asked for once per open file."""
        if self._shown is None:
            self._tsm._happen("read", self._name, self._attribute)
            self._shown = self._tsm.show(self._entry, self._attribute)
        return self._shown

    def write(self, data: bytes, offset: int) -> None:
        """Take a write: what is written to a binary attribute is only kept here."""
        self._tsm._happen("write", self._name, self._attribute)
        if self._attribute != "inblob":
            self._tsm.store(self._entry, self._attribute, data)
            return
        if self._written is None:
            self._written = bytearray()  # also by a write that is refused: close(2) then stores nothing, and counts
        if offset + len(data) > INBLOB_MAX:
            raise _error(errno.EFBIG)
        self._written[offset : offset + len(data)] = data

    def close(self) -> None:
        """Hand a binary attribute on.  Its error is lost, as in configfs_release_bin_file."""
        if self._written is None:
            return
        data, self._written = bytes(self._written), None
        try:
            self._tsm._happen("close", self._name, self._attribute)
            self._tsm.store(self._entry, self._attribute, data)
        except OSError:
            return


class EmulatedFiles:
    """The model behind `tresor.identity.sources.configfs_tsm.Files`, mounted at `root`."""

    def __init__(self, tsm: EmulatedTsm, root: Path) -> None:
        self._tsm = tsm
        self._root = root

    def mkdir(self, path: Path) -> None:
        self._tsm.mkdir(*self._within(path, 1))

    def rmdir(self, path: Path) -> None:
        self._tsm.rmdir(*self._within(path, 1))

    def names(self, path: Path) -> list[str]:
        return self._tsm.names() if path == self._root else list(self._tsm.attributes(*self._within(path, 1)))

    def read(self, path: Path) -> bytes:
        entry, attribute = self._within(path, 2)
        return self._tsm.open(entry, attribute, writing=False).read()

    def write(self, path: Path, data: bytes) -> None:
        entry, attribute = self._within(path, 2)
        opened = self._tsm.open(entry, attribute, writing=True)
        try:
            opened.write(data, 0)
        finally:
            opened.close()

    def _within(self, path: Path, depth: int) -> Sequence[str]:
        parts = path.relative_to(self._root).parts
        assert len(parts) == depth, path
        return parts


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
