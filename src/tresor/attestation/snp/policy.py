"""What is acceptable of snp evidence (docs/spec/attestation.md, 7)."""

import msgspec

__all__ = ["SnpPolicy"]


class SnpPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for snp evidence."""
