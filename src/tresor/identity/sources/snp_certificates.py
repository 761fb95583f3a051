"""Certificates that a host hands its SNP guest beside a report."""

from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.snp.abi import parse_certificate_table
from tresor.identity.source import EvidenceSourceError, SourceCode

__all__ = ["certificates_of"]


def certificates_of(table: bytes) -> tuple[bytes, ...]:
    """Return the certificates of a table, unverified; none of an empty one or of one that is all zeros.

    Raises:
        EvidenceSourceError: the table cannot be read.
    """
    if not any(table):
        return ()
    try:
        return parse_certificate_table(table)
    except EvidenceMalformedError as error:
        raise EvidenceSourceError(
            SourceCode.FAILED, f"the host hands out certificates that cannot be read: {error}"
        ) from error
