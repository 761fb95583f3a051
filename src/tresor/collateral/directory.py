"""Evidence and collateral from disk: files and whole folders, within limits (docs/spec/attestation.md, 3.3).

A folder is one level deep, and only its regular files count.  What a file is, its content says; one name is reserved:
`facts.json`, in which people note what they know about a sample, is never read.
"""

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tresor.attestation.folder import File, Folder, gather
from tresor.attestation.recognise import MAX_FILE_BYTES
from tresor.errors import TresorError

__all__ = ["MAX_FILES", "MAX_TOTAL_BYTES", "UnreadableError", "load_folder", "read_files"]

MAX_FILES: Final = 256
MAX_TOTAL_BYTES: Final = 64 << 20
_IGNORED: Final = frozenset({"facts.json"})


class UnreadableError(TresorError):
    """A path cannot be read, or holds more than is read."""

    code = "input_unusable"


def load_folder(paths: Iterable[Path]) -> Folder:
    """Read files and folders and sort what is in them.

    Raises:
        UnreadableError: a path cannot be read, a folder is empty, or there are too many files or bytes.
    """
    return gather(read_files(paths))


def read_files(paths: Iterable[Path]) -> list[File]:
    """Read files, and the regular files of folders in the order of their names.

    Each file is read up to one byte more than `MAX_FILE_BYTES`, by which `recognise` knows that it is too long.

    Raises:
        UnreadableError: a path cannot be read, a folder is empty, or there are too many files or bytes.
    """
    files: list[File] = []
    left = MAX_TOTAL_BYTES
    for path, named in _listed(paths):
        if len(files) == MAX_FILES:
            raise UnreadableError(f"there are more than {MAX_FILES} files")
        data = _read(path)
        left -= len(data)
        if left < 0:
            raise UnreadableError(f"there are more than {MAX_TOTAL_BYTES} bytes")
        files.append(File(path.name, data, named))
    return files


def _listed(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    for path in paths:
        try:
            if not path.is_dir():
                yield path, True
                continue
            inside = sorted(child for child in path.iterdir() if child.name not in _IGNORED and child.is_file())
        except OSError as error:
            raise UnreadableError(f"cannot read {str(path)!a}: {error.strerror}") from error
        if not inside:
            raise UnreadableError(f"there is no file in {str(path)!a}")
        yield from ((child, False) for child in inside)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            if stat.S_ISDIR(path.stat().st_mode):  # exchanged since it was listed
                raise IsADirectoryError(0, "is a directory")
            chunks = bytearray()
            while len(chunks) <= MAX_FILE_BYTES and (chunk := file.read(MAX_FILE_BYTES + 1 - len(chunks))):
                chunks += chunk
    except OSError as error:
        raise UnreadableError(f"cannot read {str(path)!a}: {error.strerror}") from error
    return bytes(chunks)
