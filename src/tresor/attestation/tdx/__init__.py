"""Intel TDX (docs/spec/attestation.md)."""
