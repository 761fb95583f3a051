"""What is acceptable of nvidia evidence (docs/spec/attestation.md, 7)."""

import msgspec

__all__ = ["NvidiaPolicy"]


class NvidiaPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for nvidia evidence."""
