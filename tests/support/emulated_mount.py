"""An `EmulatedTsm` as a real directory: a FUSE server of the few requests that a directory of attributes needs.

Speaks the kernel's protocol (include/uapi/linux/fuse.h, 7.31) over /dev/fuse itself: no library, no helper program.
The process that serves needs the right to mount.  Nothing is cached, so each system call of whatever process arrives
here and fails as the model says; an attribute is closed by FLUSH, for close(2) does not wait for RELEASE.
"""

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct

from support.emulated_tsm import EmulatedTsm, OpenAttribute

__all__ = ["mounted", "why_not_mounted"]

_IN = Struct("<IIQQIIIHH")  # fuse_in_header
_OUT = Struct("<IiQ")  # fuse_out_header
_ATTR = Struct("<QQQQQQIIIIIIIIII")  # fuse_attr
_ENTRY_OUT = Struct("<QQQQII")  # fuse_entry_out, in front of fuse_attr
_ATTR_OUT = Struct("<QII")  # fuse_attr_out, in front of fuse_attr
_INIT_IN = Struct("<IIII")
_INIT_OUT = Struct("<IIIIHHIIHHI28x")
_OPEN_IN, _OPEN_OUT = Struct("<II"), Struct("<QII")
_READ_IN = _WRITE_IN = Struct("<QQIIQII")
_WRITE_OUT = Struct("<II")
_HANDLE_IN = Struct("<Q")
_DIRENT = Struct("<QQII")

_ROOT = 1
_DIRECT_IO = 1
_MAX_WRITE = 1 << 16
_MNT_DETACH = 2
_MKDIR_IN_BYTES = 8
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _MKDIR, _RMDIR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 9, 11, 14, 15, 16
_RELEASE, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _DESTROY = 18, 25, 26, 27, 28, 29, 36, 38
_BATCH_FORGET = 42
_UNANSWERED = (_FORGET, _INTERRUPT, _BATCH_FORGET)

_libc = ctypes.CDLL(None, use_errno=True)


def why_not_mounted() -> str | None:
    """Return why a directory cannot be served here; None where it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there or not ours"
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return None if int(effective.split()[1], 16) >> 21 & 1 else "mounting takes CAP_SYS_ADMIN"


@contextlib.contextmanager
def mounted(tsm: EmulatedTsm, path: Path) -> Iterator[Path]:
    """Serve `tsm` at `path`, an empty directory, to all processes, from a thread of this one."""
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={descriptor},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
        if _libc.mount(b"tsm", os.fsencode(path), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        thread = threading.Thread(target=_Server(tsm, descriptor).serve, name="emulated-tsm", daemon=True)
        thread.start()
        try:
            yield path
        finally:
            _libc.umount2(os.fsencode(path), _MNT_DETACH)
            thread.join(10)
    finally:
        os.close(descriptor)


class _Server:
    """Node 1 is the directory; every entry and every attribute gets a number when it is first asked for."""

    def __init__(self, tsm: EmulatedTsm, descriptor: int) -> None:
        self._tsm = tsm
        self._descriptor = descriptor
        self._numbers: dict[tuple[str, ...], int] = {(): _ROOT}
        self._paths: dict[int, tuple[str, ...]] = {_ROOT: ()}
        self._handles: dict[int, OpenAttribute] = {}
        self._next_handle = 1
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            _INIT: self._init,
            _LOOKUP: self._lookup,
            _GETATTR: lambda node, _: self._attr_out(self._paths[node]),
            _SETATTR: lambda node, _: self._attr_out(self._paths[node]),  # O_TRUNC, which configfs lets pass
            _MKDIR: self._mkdir,
            _RMDIR: self._rmdir,
            _OPEN: self._open,
            _READ: self._read,
            _WRITE: self._write,
            _FLUSH: self._flush,
            _RELEASE: self._release,
            _OPENDIR: lambda _node, _: _OPEN_OUT.pack(0, 0, 0),
            _READDIR: self._readdir,
            _RELEASEDIR: lambda _node, _: b"",
            _DESTROY: lambda _node, _: b"",
        }

    def serve(self) -> None:
        """Answer until the mount is gone."""
        while True:
            try:
                request = os.read(self._descriptor, _MAX_WRITE + 4096)
            except InterruptedError:
                continue
            except OSError:  # ENODEV: unmounted
                return
            _, operation, unique, node, *_ = _IN.unpack_from(request)
            if operation in _UNANSWERED:
                continue
            try:
                answer = self._answers.get(operation, _unknown)(node, request[_IN.size :])
                number = 0
            except OSError as error:
                answer, number = b"", -(error.errno or errno.EIO)
            with contextlib.suppress(OSError):  # whoever asked is gone
                os.write(self._descriptor, _OUT.pack(_OUT.size + len(answer), number, unique) + answer)

    def _init(self, _node: int, body: bytes) -> bytes:
        _, minor, readahead, _ = _INIT_IN.unpack_from(body)
        return _INIT_OUT.pack(7, min(minor, 31), readahead, 0, 0, 0, _MAX_WRITE, 1, 0, 0, 0)

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry_out((*self._paths[node], _name(body)))

    def _mkdir(self, node: int, body: bytes) -> bytes:
        path = (*self._paths[node], _name(body[_MKDIR_IN_BYTES:]))
        if len(path) != 1:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._tsm.mkdir(path[0])
        return self._entry_out(path)

    def _rmdir(self, node: int, body: bytes) -> bytes:
        if self._paths[node]:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self._tsm.rmdir(_name(body))
        return b""

    def _open(self, node: int, body: bytes) -> bytes:
        entry, attribute = self._paths[node]
        flags, _ = _OPEN_IN.unpack_from(body)
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        self._handles[handle] = self._tsm.open(entry, attribute, writing=writing)
        return _OPEN_OUT.pack(handle, _DIRECT_IO, 0)

    def _read(self, _node: int, body: bytes) -> bytes:
        handle, offset, size, *_ = _READ_IN.unpack_from(body)
        return self._handles[handle].read()[offset : offset + size]

    def _write(self, _node: int, body: bytes) -> bytes:
        handle, offset, size, *_ = _WRITE_IN.unpack_from(body)
        self._handles[handle].write(body[_WRITE_IN.size :][:size], offset)
        return _WRITE_OUT.pack(size, 0)

    def _flush(self, _node: int, body: bytes) -> bytes:
        self._handles[_HANDLE_IN.unpack_from(body)[0]].close()
        return b""

    def _release(self, _node: int, body: bytes) -> bytes:
        del self._handles[_HANDLE_IN.unpack_from(body)[0]]
        return b""

    def _readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size, *_ = _READ_IN.unpack_from(body)
        path = self._paths[node]
        names = self._tsm.attributes(path[0]) if path else self._tsm.names()
        answer = b""
        for position, name in list(enumerate(names, 1))[offset:]:
            raw = name.encode()
            mode = stat.S_IFREG if path else stat.S_IFDIR
            entry = _DIRENT.pack(self._number((*path, name)), position, len(raw), mode >> 12) + raw
            entry += bytes(-len(entry) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer

    def _entry_out(self, path: tuple[str, ...]) -> bytes:
        return _ENTRY_OUT.pack(self._number(path), 0, 0, 0, 0, 0) + self._attr(path)

    def _attr_out(self, path: tuple[str, ...]) -> bytes:
        return _ATTR_OUT.pack(0, 0, 0) + self._attr(path)

    def _attr(self, path: tuple[str, ...]) -> bytes:
        if len(path) == 2:
            permissions = self._tsm.attributes(path[0]).get(path[1])
            if permissions is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            mode = stat.S_IFREG | permissions
        else:
            if path and path[0] not in self._tsm.names():
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            mode = stat.S_IFDIR | 0o755
        owner = (os.getuid(), os.getgid())
        return _ATTR.pack(self._number(path), 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, *owner, 0, 4096, 0)

    def _number(self, path: tuple[str, ...]) -> int:
        number = self._numbers.setdefault(path, len(self._numbers) + 1)
        self._paths[number] = path
        return number


def _name(body: bytes) -> str:
    return os.fsdecode(body.rstrip(b"\0"))


def _unknown(_node: int, _body: bytes) -> bytes:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
