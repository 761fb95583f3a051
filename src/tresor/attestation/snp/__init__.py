"""AMD SEV-SNP (docs/spec/attestation.md)."""
