"""What is acceptable of nitro evidence (docs/spec/attestation.md, 7)."""

import msgspec

__all__ = ["NitroPolicy"]


class NitroPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for nitro evidence."""
