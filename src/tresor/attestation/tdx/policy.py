"""What is acceptable of tdx evidence (docs/spec/attestation.md, 7)."""

import msgspec

__all__ = ["TdxPolicy"]


class TdxPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for tdx evidence."""
