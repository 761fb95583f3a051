"""Write the Intel TDX vectors: `PYTHONPATH=tests python tests/vectors/generate_tdx.py FOLDER`.

Always the same bytes; a test runs this and compares.  All quotes and collateral are signed under the root of
`support.fake_intel`, which stands beside the folders as `root.der`.
"""

import sys
from itertools import chain
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from tdx_case import SHARED, Case, write_case
from tdx_cases_chain import chains, revocations
from tdx_cases_collateral import collaterals, enclaves, modules, tcb_levels
from tdx_cases_content import bindings, domains, event_logs, measurements
from tdx_cases_quote import forms, good, signatures

from support.fake_intel import INTEL


def cases() -> list[Case]:
    """Return all cases by number.

    Raises:
        ValueError: two cases have one number.
    """
    families = (
        good(),
        forms(),
        signatures(),
        chains(),
        revocations(),
        collaterals(),
        enclaves(),
        modules(),
        tcb_levels(),
        domains(),
        measurements(),
        bindings(),
        event_logs(),
    )
    found = sorted(chain.from_iterable(families), key=lambda case: case.name)
    if len({case.name[:3] for case in found}) != len(found):
        raise ValueError("two cases have one number")
    return found


def main(folder: str) -> None:
    """Write the root, what most cases share, and all cases below `folder`, which is made."""
    root = Path(folder)
    root.mkdir(parents=True)
    (root / "root.der").write_bytes(INTEL.root.certificate.public_bytes(Encoding.DER))
    for name, data in SHARED.items():
        (root / name).write_bytes(data)
    for case in cases():
        write_case(case, root)


if __name__ == "__main__":
    main(sys.argv[1])
