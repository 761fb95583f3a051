"""Azure confidential virtual machines behind their vTPM (docs/spec/attestation.md)."""
