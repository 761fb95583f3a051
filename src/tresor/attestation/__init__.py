"""Evidence of trusted execution environments, appraised offline against pinned vendor roots (RFC 9334).

One sub-package per TEE, each with `abi` (well-formed?), `verify` (genuine?), `appraise` (acceptable?) and `verifier`,
which joins the three behind the interface of `tresor.attestation.registry`.  Nothing here reads a file, a clock or the
network: bytes, collateral, policy and time are given.  Implements docs/spec/attestation.md.
"""
