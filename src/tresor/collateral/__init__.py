"""Collateral from disk and network (docs/spec/attestation.md, 3.2)."""
