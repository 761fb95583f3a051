"""Ways to evidence: what the kernel, the paravisor and the simulated root hand out (docs/spec/attestation.md, 6.5)."""
