"""Write the trust vectors: `generate_trust.py FOLDER`.

Always the same bytes: fixed keys, fixed times, and Ed25519 signs without chance.  A test runs this and compares.
"""

import sys
from itertools import chain
from pathlib import Path

from trust_case import SHARED, Case, write_case
from trust_cases_container import container, headers
from trust_cases_content import bundle_content, good, in_force, manifest_content, manifests, measurements, roots
from trust_cases_signature import keys, signatures


def cases() -> list[Case]:
    """Return all cases by number.

    Raises:
        ValueError: two cases have one number.
    """
    families = (
        good(),
        container(),
        headers(),
        signatures(),
        keys(),
        bundle_content(),
        manifest_content(),
        in_force(),
        roots(),
        manifests(),
        measurements(),
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
