"""Azure's vTPM: vouched for by the hardware, or not (docs/spec/attestation.md, 5.4.4).

From a hardware report that its own package verifies, down to the registers of the vTPM:

    REPORT_DATA is a hash of the runtime data  ->  they name the attestation key  ->  it signed the quote  ->  the
    quote holds a digest of the registers

Not looked at: the certificate that Azure issues for the attestation key (NV index 0x01C101D0), for the hardware report
names the key; and who wrote the runtime data: MEASUREMENT or MRTD tell, and they are held by policy.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tresor.attestation.azure.abi import HclReport, RuntimeData, parse_runtime_data
from tresor.attestation.azure.documents import UnverifiedQuote
from tresor.attestation.azure.tpm import TpmQuote, TpmSignature, parse_quote, parse_signature
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceForgedError

__all__ = ["GenuineQuote", "verify_quote", "verify_runtime_data"]


@dataclass(frozen=True, slots=True)
class GenuineQuote:
    """A quote by the attestation key of the runtime data; nothing says yet that it is wanted.

    Attributes:
        quote: its fields.
        registers: bank (TPM_ALG_ID) and index to value.
    """

    quote: TpmQuote
    registers: Mapping[tuple[int, int], bytes]


def verify_runtime_data(hcl_report: HclReport, report_data: bytes) -> RuntimeData:
    """Verify that the hardware signed a hash of the runtime data, and read them.

    Args:
        hcl_report: what `parse_hcl_report` read.
        report_data: REPORT_DATA of the hardware report, 64 bytes; this function does not verify that report.

    Raises:
        EvidenceForgedError: REPORT_DATA is not the hash and zeros.
        EvidenceMalformedError: the runtime data cannot be read.
    """
    digest = hashlib.new(hcl_report.hash_name, hcl_report.runtime_data).digest()  # (4)
    if report_data != digest.ljust(len(report_data), b"\0"):
        raise EvidenceForgedError(
            AttestationCode.RUNTIME_DATA_MISMATCH,
            f"REPORT_DATA is {report_data.hex()}, {hcl_report.hash_name} of the runtime data is {digest.hex()}",
        )
    return parse_runtime_data(hcl_report.runtime_data)  # (5)


def verify_quote(unverified: UnverifiedQuote, ak: rsa.RSAPublicKey) -> GenuineQuote:
    """Verify that an attestation key signed a quote of these registers.

    Args:
        unverified: quote, signature and values.
        ak: the attestation key that the runtime data name.

    Raises:
        EvidenceMalformedError: no quote, or no signature of an allowed scheme.
        EvidenceForgedError: the signature does not verify, or the registers are not those quoted.
    """
    quote = parse_quote(unverified.message)  # (6)
    signature = parse_signature(unverified.signature, modulus_bytes=(ak.key_size + 7) // 8)
    try:
        ak.verify(signature.signature, quote.signed, _padding(signature), signature.digest)  # (7)
    except InvalidSignature as error:
        raise EvidenceForgedError(
            AttestationCode.SIGNATURE_INVALID, "the quote was not signed by the attestation key of the runtime data"
        ) from error
    digest = hashes.Hash(signature.digest)  # the quote's digest is of the function that its signature uses
    for value in unverified.pcrs:
        digest.update(value)
    sizes = [selection.digest_bytes for selection in quote.selections for _ in selection.indices]
    if [len(value) for value in unverified.pcrs] != sizes or digest.finalize() != quote.pcr_digest:  # (8)
        raise EvidenceForgedError(
            AttestationCode.PCR_DIGEST_MISMATCH,
            f"the {len(unverified.pcrs)} values given are not those of the {len(sizes)} registers quoted",
        )
    names = ((selection.algorithm, index) for selection in quote.selections for index in selection.indices)
    return GenuineQuote(quote, dict(zip(names, unverified.pcrs, strict=True)))


def _padding(signature: TpmSignature) -> padding.PKCS1v15 | padding.PSS:
    if signature.scheme == "rsassa":
        return padding.PKCS1v15()
    # The length of the salt is the TPM's choice: that of the digest, or as much as fits.
    return padding.PSS(padding.MGF1(signature.digest), padding.PSS.AUTO)
