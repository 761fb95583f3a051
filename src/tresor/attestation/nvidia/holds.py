"""Reference values that NVIDIA is known to have put on hold: what an offline verifier must not take for good.

A hold (certificateHold) is a revocation that may be lifted, and only a responder knows when.  Evidence that rests on
such a manifest is undecided until a fresh answer `good` about the manifest's signer is at hand.
"""

from typing import Final

__all__ = ["HELD_RIMS"]

HELD_RIMS: Final = {
    # NVIDIA/attestation-sdk 73c032eb: hopper_evidence_cert_hold.json is evidence of this driver, and of the chain of
    # its driver manifest the test `Certhold` (unit-tests/gpu/verifier_test.cpp) expects revoked, certificateHold.
    "NV_GPU_DRIVER_GH100_570.86.10": "NVIDIA's responder has answered certificateHold for the signer of this manifest",
}
"""Name of a manifest to what is known of it."""
