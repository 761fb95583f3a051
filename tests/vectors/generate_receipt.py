"""Write the receipt vectors: `generate_receipt.py FOLDER`.

Always the same bytes: fixed keys, fixed times, and the nonces of RFC 6979.  A test runs this and compares.
"""

import sys
from itertools import chain
from pathlib import Path

from receipt_case import SHARED, Case, write_case
from receipt_cases_attested import attested, evidence
from receipt_cases_claims import claim_values, contradictions, times
from receipt_cases_container import container, header
from receipt_cases_exchange import extensions, ids_and_nonces, requests, responses, several, streams
from receipt_cases_good import good
from receipt_cases_signature import key_sets, signatures


def cases() -> list[Case]:
    """Return all cases by number.

    Raises:
        ValueError: two cases have one number.
    """
    families = (
        good(),
        container(),
        header(),
        signatures(),
        key_sets(),
        claim_values(),
        contradictions(),
        times(),
        ids_and_nonces(),
        requests(),
        responses(),
        extensions(),
        streams(),
        several(),
        attested(),
        evidence(),
    )
    found = sorted(chain.from_iterable(families), key=lambda case: case.name)
    numbers = [case.name[:3] for case in found]
    if len(set(numbers)) != len(numbers):
        raise ValueError("two cases have one number")
    return found


def main(folder: str) -> None:
    """Write all cases below `folder`, which is made."""
    root = Path(folder)
    root.mkdir(parents=True)
    for name, data in SHARED.items():
        (root / name).write_bytes(data)
    for case in cases():
        write_case(case, root)


if __name__ == "__main__":
    main(sys.argv[1])
