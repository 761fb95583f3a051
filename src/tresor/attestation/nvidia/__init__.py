"""NVIDIA GPUs (docs/spec/attestation.md)."""
