"""Has programs under test trust hardware vendors of the tests' own, and lose patience sooner.

The vendors' roots are pinned in `tresor.attestation.roots`, and no configuration reaches them.  A test that wants the
real programs to take evidence of a fake AMD, Intel or NVIDIA starts them with this folder on `PYTHONPATH`, so that
Python runs this file before anything else, and with the name of a file in `TESTS_VENDOR_ROOTS`, without which nothing
happens here.  It is no part of the product: nothing of it is installed.  `support.provider_network` writes that file.
"""

import hashlib
import json
import os
import ssl
import sys
from pathlib import Path


def _install(path: Path) -> None:
    from tresor.attestation import roots  # noqa: PLC0415 - not in programs that are to be left alone
    from tresor.attestation.x509 import load_certificate  # noqa: PLC0415 - likewise

    vendors = json.JSONDecoder().decode(path.read_text())
    ders = {vendor: [ssl.PEM_cert_to_DER_cert(pem) for pem in pems] for vendor, pems in vendors["roots"].items()}
    held = {vendor: tuple(map(load_certificate, certificates)) for vendor, certificates in ders.items()}
    anchors = roots.TrustAnchors(
        amd={"Milan": held["amd"]},
        intel=held["intel"],
        nvidia_device=held["nvidia_device"],
        nvidia_rim=held["nvidia_rim"],
    )
    roots.vendor_anchors = lambda: anchors  # type: ignore[assignment]  # a function that has no cache to clear
    for number, der in enumerate(ders["amd"]):  # what trust bundles may name
        roots.PINS[f"amd_tests{number}_ark"] = hashlib.sha256(der).hexdigest()
    if "tresor.app.worker" in sys.orig_argv:
        from tresor.upstreams import pool  # noqa: PLC0415 - which other programs never load

        pool._ASK_TIMEOUT_S = vendors["ask_timeout_s"]


if name := os.environ.get("TESTS_VENDOR_ROOTS"):
    _install(Path(name))
