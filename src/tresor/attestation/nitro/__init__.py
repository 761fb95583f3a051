"""AWS Nitro Enclaves (docs/spec/attestation.md)."""
