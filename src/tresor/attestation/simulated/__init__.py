"""Reports that no hardware made, in a form that cannot be mistaken (docs/spec/attestation.md)."""
