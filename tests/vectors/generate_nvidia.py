"""Write the NVIDIA vectors: `PYTHONPATH=tests python tests/vectors/generate_nvidia.py FOLDER`.

Always the same bytes; a test runs this and compares.  Everything is signed under the roots of `support.fake_nvidia`,
which stand beside the folders.
"""

import sys
from pathlib import Path

import nvidia_cases_collateral
import nvidia_cases_report
import nvidia_cases_token
from nvidia_case import Case, write_case

from support.fake_nvidia import anchors_of


def cases() -> list[Case]:
    """Return all cases by number.

    Raises:
        ValueError: two cases have one number.
    """
    families = (nvidia_cases_report.cases(), nvidia_cases_collateral.cases(), nvidia_cases_token.cases())
    found = [case for family in families for case in family]
    if len({case.name[:3] for case in found}) != len(found):
        raise ValueError("two cases have one number")
    return found


def main(folder: str) -> None:
    """Write the anchors and all cases below `folder`, which is made."""
    root = Path(folder)
    root.mkdir(parents=True)
    for name, der in anchors_of().items():
        (root / name).write_bytes(der)
    for case in cases():
        write_case(case, root)


if __name__ == "__main__":
    main(sys.argv[1])
