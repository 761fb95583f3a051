"""The newest trust bundle a verifier has accepted, so that an older one is refused (docs/operations/release.md)."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from tresor.cli.verify_input import InputError
from tresor.encodings import parse_json
from tresor.errors import JsonError
from tresor.trust.bundle import TrustBundle
from tresor.trust.jwk import TrustKey

__all__ = ["BundleMemory", "Known"]

_MAX_STATE_BYTES = 1 << 20


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle that was accepted: its version, and `sha256:` and the digest of its token."""

    version: int
    digest: str | None = None


@dataclass(slots=True)
class BundleMemory:
    """What is known of bundles, by release root and workload.

    Attributes:
        path: where it is kept; None for nowhere.
        floor: version below which every bundle is refused.
        bundles: by `<kid of the root>/<workload>`.
    """

    path: Path | None
    floor: int
    bundles: dict[str, Known] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | None, floor: int) -> Self:
        """Read the memory; a file that is not there is an empty one.

        Raises:
            InputError: it cannot be read, or holds something else.
        """
        if path is None:
            return cls(None, floor)
        try:
            with Path(path).open("rb") as file:
                bundles = msgspec.convert(parse_json(file.read(_MAX_STATE_BYTES)), dict[str, Known])
        except FileNotFoundError:
            bundles = {}
        except OSError as error:
            raise InputError(f"cannot read {path!a}: {error.strerror}") from error
        except (JsonError, msgspec.ValidationError) as error:
            raise InputError(f"{path!a} is not what --state wrote: {error}") from error
        return cls(Path(path), floor, bundles)

    def known(self, root: TrustKey, workload: str) -> Known:
        """Return what a bundle must not be older than."""
        known = self.bundles.get(f"{root.kid}/{workload}", Known(0))
        return known if known.version >= self.floor else Known(self.floor)

    @property
    def checks_rollback(self) -> bool:
        """Whether an older bundle could be told from the newest."""
        return self.path is not None or self.floor > 0

    def remember(self, root: TrustKey, bundle: TrustBundle) -> None:
        """Keep a bundle that was accepted, where there is a place to.

        Raises:
            InputError: it cannot be written.
        """
        if self.path is None:
            return
        claims = bundle.content.claims
        self.bundles[f"{root.kid}/{claims.workload}"] = Known(claims.version, bundle.digest)
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            fresh.write_bytes(msgspec.json.encode(self.bundles))
            fresh.replace(self.path)
        except OSError as error:
            raise InputError(f"cannot write {str(self.path)!a}: {error.strerror}") from error
