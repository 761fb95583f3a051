"""NVIDIA GPUs and NVSwitches in confidential computing mode (docs/spec/attestation.md, 5.3).

spdm            bytes of one SPDM exchange to fields
evidence_list   NVIDIA's JSON of several devices to their parts
verify          did a device of NVIDIA's sign this?
rim             reference integrity manifests: signed XML to golden measurements
holds           manifests that NVIDIA is known to have put on hold
ocsp            what NVIDIA's responders said about a certificate
nras            the tokens with which NVIDIA's remote verifier answers
policy          what is acceptable
appraise        do genuine reports, manifests and tokens show what is wanted?
collateral      what of a bag of collateral concerns a device
findings        from errors to checks, from checks to the claim
report_result   the appraisal of reports in one result
token_result    the appraisal of tokens in one result
verifier        the entrance: what is needed, and the result for one piece of evidence
"""
