"""Evidence of nothing, for laptops and demonstrations: reports that a root on this machine signs.

What keeps them from being mistaken stands in their layout (docs/spec/attestation.md, 5.6), in trust bundles and in
verifiers, none of which is here.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tresor.errors import KeyFileError
from tresor.identity.simulated import SimulatedRoot
from tresor.identity.source import CollectedEvidence, EvidenceSourceError, SourceCode

__all__ = ["SimulatedSource", "open_root"]


def _now() -> datetime:
    return datetime.now(UTC)


class SimulatedSource:
    """Simulated evidence.

    Args:
        root: signs.
        image_digest: of what is said to run; MEASUREMENT follows from it.
        clock: returns the instant (aware, UTC) from which the report's certificate is valid.
    """

    tee: Literal["simulated"] = "simulated"

    def __init__(self, root: SimulatedRoot, *, image_digest: bytes, clock: Callable[[], datetime] = _now) -> None:
        self._root = root
        self._image_digest = image_digest
        self._clock = clock

    def __repr__(self) -> str:
        return "<SimulatedSource: NOT A TEE>"

    def collect(self, report_data: bytes) -> CollectedEvidence:
        """Make a report with `report_data`, by a processor of its own; see `EvidenceSource`."""
        processor = self._root.issue(self._clock())
        report = processor.report(report_data, self._image_digest)
        return CollectedEvidence(tee=self.tee, parts={"snp_report": report}, certificates=processor.certificates)


def open_root(path: Path, *, clock: Callable[[], datetime] = _now) -> SimulatedRoot:
    """Read the root in a file; make root and file, of mode 0600, where there is none.

    Several processes may do so at a time: all get the same root.

    Raises:
        EvidenceSourceError: the file cannot be used, or is open to others.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return _load(path)
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # of mode 0600
            file.write(SimulatedRoot.create(clock()).private_bytes())
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first: its root counts
                os.link(file.name, path)
        return _load(path)
    except OSError as error:
        raise EvidenceSourceError(
            SourceCode.UNAVAILABLE, f"simulated root {path}: {error.strerror}: its folder has to be writable"
        ) from error
    except KeyFileError as error:
        raise EvidenceSourceError(SourceCode.UNAVAILABLE, f"simulated root {path}: {error}") from error


def _load(path: Path) -> SimulatedRoot:
    with path.open("rb") as file:
        if (mode := os.fstat(file.fileno()).st_mode & 0o777) & 0o077:
            raise KeyFileError(f"mode is {mode:o}, want 600: others may have read it")
        return SimulatedRoot.load(file.read())
