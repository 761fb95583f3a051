"""What is acceptable of azure evidence (docs/spec/attestation.md, 7)."""

import msgspec

__all__ = ["AzurePolicy"]


class AzurePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for azure evidence."""
