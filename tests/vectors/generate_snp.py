"""Write the SEV-SNP vectors: `PYTHONPATH=tests python tests/vectors/generate_snp.py FOLDER`.

Each run makes an AMD of its own (`support.fake_amd`), so bytes differ from run to run and no private key is kept;
names, titles and verdicts stay.  Where a title names a sample, the evidence is of real hardware.
"""

import sys
from itertools import chain
from pathlib import Path

from snp_case import Case, write_case
from snp_cases_certificate import certificates, extensions, signers, tcb_versions
from snp_cases_chain import chains, revocation
from snp_cases_good import good
from snp_cases_malformed import malformed
from snp_cases_policy import binding, guests, launch_data, platforms, tcb_floors

__all__ = ["cases", "main"]


def cases() -> list[Case]:
    """Return all cases by number.

    Raises:
        ValueError: two cases have one number.
    """
    families = (
        good(),
        malformed(),
        certificates(),
        extensions(),
        tcb_versions(),
        signers(),
        chains(),
        revocation(),
        guests(),
        platforms(),
        tcb_floors(),
        launch_data(),
        binding(),
    )
    found = sorted(chain.from_iterable(families), key=lambda case: case.name)
    if len({case.name[:3] for case in found}) != len(found):
        raise ValueError("two cases have one number")
    return found


def main(folder: str) -> None:
    """Write all cases below `folder`, which is made."""
    root = Path(folder)
    root.mkdir(parents=True)
    for case in cases():
        write_case(case, root)


if __name__ == "__main__":
    main(sys.argv[1])
